"""What `rag.commands.train` does once its configuration is composed: train, keep the best, write the run folder."""

import math
import re
import time
from pathlib import Path

import pytorch_lightning as pl
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig
from pytorch_lightning.loggers import WandbLogger
from pytorch_lightning.utilities.rank_zero import rank_zero_only
from rich.table import Table

from rag.compose import plain, reading
from rag.demo import ensure
from rag.errors import UserError
from rag.evaluation.as_read import AsRead
from rag.files import write_aside
from rag.index.passages import PassageStore
from rag.model import RagModel
from rag.reports.finished import complete_run
from rag.reports.run_report import write_run_report
from rag.safe_text import say
from rag.terminal import Terminal
from rag.training import plan
from rag.training.callbacks import (
    KnownMetrics,
    StopsBetweenSteps,
    TrainingProgress,
    checkpoints,
    stops_at_loss,
)
from rag.training.compiling import CompiledLayers, check_compiler
from rag.training.curves import join_curves
from rag.training.loggers import WandbPredictions, send_report
from rag.training.refresh import IndexRefresh, trained_retriever, trains_passages
from rag.training.resume import BEFORE, WholeCheckpoints, check_checkpoint, resume_from
from rag.training.schedule import Schedule
from rag.training.summary import describe, describe_unopened, first_line, settings_shown, show, slow_precision


def train(cfg: DictConfig) -> Path:
    """Train what the configuration describes, which `plan.check` has seen; the run's folder."""
    folder = Path(cfg.paths.run)
    missing = plan.missing_inputs(cfg)
    if cfg.info and missing:
        show(describe_unopened(plain(cfg), missing))
        return folder
    if plan.are_made(cfg, missing):
        ensure(plain(cfg.needs), Path(cfg.paths.demo), Path(cfg.paths.data), cfg.seed)
    run = plan.open_run(cfg)
    if run.finished and not cfg.info:
        plan.say_finished(run)
        complete_run(folder)
        return folder
    if cfg.compile:
        check_compiler()
    pl.seed_everything(cfg.seed, verbose=False)
    module = instantiate(cfg.module)
    module.train()  # from_pretrained leaves models in evaluation mode, and Lightning keeps the mode it finds
    datamodule = instantiate(cfg.datamodule, model=module.model)
    measures = () if datamodule.task is None else datamodule.task.measures
    check_monitor(cfg.monitor, (*(f"dev/{name}" for name in measures), *module.dev_metrics))
    known = KnownMetrics()
    refresh = None
    if cfg.refresh is not None:
        trained_retriever(module)
        refresh = IndexRefresh(Schedule.set_by("refresh", plain(cfg.refresh)), run.folder, cfg.refresh_in)
    callbacks = [
        TrainingProgress(cfg.name),
        known,
        WandbPredictions(),
        *([CompiledLayers()] if cfg.compile else []),
        *(instantiate(callback) for callback in (cfg.get("callbacks") or {}).values()),
        *([] if refresh is None else [refresh]),  # before what saves its state
        *checkpoints(run.folder, cfg.monitor, cfg.monitor_mode, cfg.patience, cfg.checkpoint_minutes),
        StopsBetweenSteps(run.folder / "last.ckpt"),  # after those whose state it saves
    ]
    if cfg.stop_at_loss is not None:
        callbacks.append(stops_at_loss(module.loss_metric, cfg.stop_at_loss))
    loggers = [] if cfg.info else [instantiate(logger) for logger in (cfg.get("logger") or {}).values()]
    plugins = [*(cfg.trainer.get("plugins") or []), WholeCheckpoints()]
    trainer = instantiate(cfg.trainer, logger=loggers, callbacks=callbacks, plugins=plugins)
    if not cfg.info:
        rank_zero_only(say)(first_line(cfg.name, trainer, datamodule, run.folder, run.resumable))
        if slow := slow_precision(trainer):
            rank_zero_only(say)(slow)
    # What is wrong with the data is told before anything is written.
    datamodule.setup("fit")
    module.check_data(datamodule, trainer.world_size)
    retriever = module.model.retriever if isinstance(module.model, RagModel) else None
    if retriever is not None:
        retriever.check_depth(module.model.n_docs)
        passages = retriever.index.folder / "passages"  # which an engine may have instead
        changed = "changes" in (retriever.index.passages.source or {})  # by add= and remove=, on purpose
        if plan.over_index(cfg) and Path(cfg.corpus.path).exists() and passages.is_dir() and not changed:
            PassageStore.prepare(
                cfg.corpus.path, passages, False, reading(cfg.corpus)
            )  # refuses another corpus
    if cfg.info:
        show(describe(cfg.name, settings_shown(plain(cfg)), module, datamodule, trainer))
        return folder
    resume = cfg.ckpt_path
    if run.resumable:
        resume = resume_from(run.folder, lambda file: check_checkpoint(file, module))
    elif resume is not None:
        check_checkpoint(resume, module, trainer.max_steps)
    if retriever is not None:
        cut = AsRead(module.model.generator, retriever.index).describe_cut()
        if trainer.is_global_zero and cut:
            say(cut)
    if trainer.is_global_zero:
        run.begin()
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                logger.log_hyperparams(plan.decisive(cfg))
    start = time.perf_counter()
    try:
        trainer.fit(module, datamodule=datamodule, ckpt_path=resume, weights_only=True)
    except SystemExit:  # what Lightning makes of Ctrl-C
        raise KeyboardInterrupt from None
    best = run.folder / "best.ckpt"
    if cfg.monitor and best.exists():
        module.load_state_dict(torch.load(best, weights_only=True, map_location="cpu")["state_dict"])
    module.check_weights(module.state_dict())
    if refresh is not None:
        refresh.finish(trainer, module)
    if trainer.is_global_zero:
        if cfg.monitor and not best.exists() and cfg.monitor in known.all():
            say(
                f"{cfg.monitor} was NaN in every evaluation on dev, which has nothing to compute it from: model/ holds "
                "the weights of the last step, not of the best"
            )
        with write_aside(run.folder / "model") as aside:
            aside.mkdir()
            module.save(aside, run.folder)
        metrics = {
            name: round(value, 4) if math.isfinite(value) else None  # JSON has no NaN
            for name, value in sorted(known.all().items())
        }
        training = round(time.perf_counter() - start, 1)
        join_curves(run.folder)
        run.finish({"steps": trainer.global_step, "training_seconds": training, "metrics": metrics})
        (run.folder / BEFORE).unlink(missing_ok=True)
        table = Table(
            "metric", "value", title=f"{cfg.name}: {trainer.global_step:,} steps in {training:,.0f} s"
        )
        for name, value in metrics.items():
            table.add_row(name, "–" if value is None else f"{value:.4f}")
        Terminal().print(table)
        report = write_run_report(run.folder)
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                send_report(logger, report)
        say(f"model in {run.folder / 'model'}, report in {report}")
        if refresh is None and retriever is not None and trains_passages(retriever):
            say(
                "no index holds the vectors of the passage encoder that was trained: build one with build_index.py "
                f"passage_encoder={run.folder / 'model' / 'passage_encoder'} index.path=FOLDER, or train with refresh=…"
            )
    return folder


def check_monitor(monitor: str | None, metrics: tuple[str, ...]) -> None:
    """UserError unless the metric that chooses the best checkpoint is one that this kind of training has."""
    known = {re.sub(r"@\w+$", "", metric) for metric in metrics}
    if monitor is not None and re.sub(r"@\d+$", "", monitor) not in known:
        raise UserError(
            f"monitor={monitor} is not a dev metric of this training; available: {', '.join(metrics)}"
        )
