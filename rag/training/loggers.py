"""Where training curves go: a CSV file, and what may be beside it."""

import netrc
import os
import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger, WandbLogger

from rag.errors import UserError
from rag.safe_text import say


class Curves(CSVLogger):
    """metrics.csv. A row that was written before the checkpoint of its step (callbacks.py) is not written again."""

    _last = ""

    def log_metrics(self, metrics: dict[str, Any], step: int | None = None) -> None:
        row = repr((step, {name: float(value) for name, value in metrics.items()}))  # NaN is equal to none
        if row != self._last:
            super().log_metrics(metrics, step)
        self._last = row


def wandb_logger(project: str, name: str, folder: str, **settings: Any) -> WandbLogger:
    """Weights & Biases: online for whoever is logged in, otherwise into `folder`, to be sent by `wandb sync`."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    logger = WandbLogger(project=project, name=name, save_dir=folder, offline=not logged_in(), **settings)
    # Lightning hands wandb a setting that wandb has given up, which warns of that whatever its value.
    vars(logger).get("_wandb_init", {}).pop("anonymous", None)
    return logger


def tensorboard_logger(folder: str, **settings: Any) -> TensorBoardLogger:
    """TensorBoard's event files, in `folder`/tensorboard; UserError where the package is not installed."""
    if find_spec("tensorboard") is None:
        raise UserError(
            "logger=tensorboard needs the package tensorboard: "
            'python -m pip install -e ".[tensorboard]" -c constraints.txt'
        )
    return TensorBoardLogger(folder, name="", version="tensorboard", default_hp_metric=False, **settings)


class WandbPredictions(Callback):
    """After each look at dev, a table of some of its questions with what was answered and retrieved."""

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        shown = pl_module.shown
        if not shown or not trainer.is_global_zero:
            return
        columns = list(shown[0])
        rows = [[one[column] for column in columns] for one in shown]
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                logger.log_table("dev/predictions", columns=columns, data=rows)


def send_report(logger: WandbLogger, page: Path) -> None:
    """Add the run's report and its picture as an artifact, and print where the run can be seen."""
    import wandb

    run = logger.experiment
    artifact = wandb.Artifact(re.sub(r"[^\w.-]", "-", f"report-{run.id}"), type="report")
    for file in (page, page.with_suffix(".png")):
        if file.exists():
            artifact.add_file(str(file))
    run.log_artifact(artifact)
    folder = Path(run.dir).parent
    run.finish()
    say(f"Weights & Biases: {run.url}" if run.url else f"Weights & Biases, offline: wandb sync {folder}")


def logged_in() -> bool:
    """Whether an API key is at hand, in the environment or in the netrc file that `wandb login` writes."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    try:
        hosts = netrc.netrc().hosts
    except (OSError, netrc.NetrcParseError):
        return False
    return any("wandb" in host for host in hosts)
