"""What happens beside training: the progress bar, stopping, and the checkpoints a run goes on from and ends with."""

import math
import signal
import sys
import threading
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback, Checkpoint, EarlyStopping, ModelCheckpoint

from rag.errors import UserError
from rag.progress import progress_bar


class TrainingProgress(Callback):
    """One bar over the steps, on the first rank."""

    def __init__(self, description: str):
        self.description = description
        self.stack = ExitStack()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        bar = progress_bar(
            self.description,
            trainer.max_steps,
            "steps",
            done=trainer.global_step,
            show=trainer.is_global_zero,
        )
        self.advance = self.stack.enter_context(bar)
        self.done = trainer.global_step

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.advance(trainer.global_step - self.done)
        self.done = trainer.global_step

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.stack.close()

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        self.stack.close()


def look_is_due(trainer: pl.Trainer) -> bool:
    """Whether dev is looked at after the step that just ended.

    A checkpoint that was taken before this look would lose it: who goes on from there begins with the next step.
    """
    every = trainer.val_check_batch
    if not trainer.enable_validation or not every or math.isinf(every):
        return False
    return (trainer.fit_loop.total_batch_idx + 1) % every == 0


def log_step(trainer: pl.Trainer) -> None:
    """Log what Lightning logs of a step once its callbacks are done: a checkpoint that is taken among these says that
    the step is done, and nobody would do it, and log it, again."""
    trainer._logger_connector.update_train_step_metrics()
    for logger in trainer.loggers:
        logger.save()


class StopsBetweenSteps(Checkpoint):
    """Ctrl-C, or a scheduler's SIGTERM, ends training after the step at hand, with a checkpoint to go on from.

    Where dev is due after that step, it is looked at first. As a Checkpoint it comes after all other callbacks, in the
    order of the list, so that what it saves holds what they remember of that look. A second signal ends it at once. On
    several ranks, which a signal may reach at different steps, nothing is written beyond what is there.
    """

    def __init__(self, file: Path):
        self.file = file
        self.asked = False
        self.before: dict[int, Any] = {}

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.done = trainer.global_step
        if trainer.world_size == 1 and threading.current_thread() is threading.main_thread():
            self.before = {each: signal.signal(each, self.ask) for each in (signal.SIGINT, signal.SIGTERM)}

    def ask(self, number: int, frame: Any) -> None:
        self.asked = True
        self.restore()

    def restore(self) -> None:
        for each, handler in self.before.items():
            signal.signal(each, handler)
        self.before = {}

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        # After some of a step's accumulated batches there is nothing to go on from: their gradients are not kept.
        whole, self.done = trainer.global_step > self.done, trainer.global_step
        if self.asked and whole and not look_is_due(trainer):
            log_step(trainer)
            self.stop(trainer)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.asked:
            self.stop(trainer)

    def stop(self, trainer: pl.Trainer) -> None:
        trainer.save_checkpoint(self.file)
        raise KeyboardInterrupt

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.restore()

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        self.restore()


class KnownMetrics(Callback):
    """What was logged last under each name. A resumed run knows it too, which may have nothing left to do."""

    def __init__(self) -> None:
        self.before: dict[str, float] = {}
        self.trainer: pl.Trainer | None = None

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        self.trainer = trainer

    def all(self) -> dict[str, float]:
        now = {} if self.trainer is None else self.trainer.callback_metrics
        return self.before | {name: float(value) for name, value in now.items()}

    def state_dict(self) -> dict[str, Any]:
        return {"metrics": self.all()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.before = dict(state_dict["metrics"])


class LastCheckpoint(ModelCheckpoint):
    """Keeps what training goes on from, as it is after a whole step and the look at dev that is due after it, never
    amid the batches that one accumulates."""

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        self.done = trainer.global_step
        self.put_off: tuple[Any, Any, int] | None = None
        self.logged = True  # of the step at hand

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step > self.done:
            self.done = trainer.global_step
            if look_is_due(trainer):
                self.put_off = outputs, batch, batch_idx
            else:
                self.logged = False
                super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
                self.logged = True

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.put_off is not None:
            super().on_train_batch_end(trainer, pl_module, *self.put_off)
            self.put_off = None

    def _save_checkpoint(self, trainer: pl.Trainer, filepath: str) -> None:
        if not self.logged:
            log_step(trainer)
        for logger in trainer.loggers:  # the rows of the steps that nobody will do again
            logger.save()
        super()._save_checkpoint(trainer, filepath)

    @property
    def state_key(self) -> str:
        return _key_of_lightnings(self, super().state_key)


def _key_of_lightnings(callback: Callback, key: str) -> str:
    """The key by which checkpoints of runs from before these classes know a callback's state."""
    return key.replace(type(callback).__qualname__, ModelCheckpoint.__qualname__)


class BestCheckpoint(ModelCheckpoint):
    """Keeps the weights of the best step. A metric that is NaN or infinite is never the best, nor the first."""

    def check_monitor_top_k(self, trainer: pl.Trainer, current: torch.Tensor | None = None) -> bool:
        if current is not None and not torch.isfinite(current):
            return False
        return super().check_monitor_top_k(trainer, current)

    @property
    def state_key(self) -> str:
        return _key_of_lightnings(self, super().state_key)


def checkpoints(
    folder: str | Path,
    monitor: str | None,
    mode: str = "max",
    patience: int | None = None,
    minutes: float = 15.0,
) -> list[Callback]:
    """Keep `last.ckpt`, to go on from, and, where `monitor` names a dev metric, the weights of the best step.

    mode: whether a higher ("max") or a lower value ("min") is better. patience: training stops after so many looks at
    dev without a better value. Neither file's name holds an equals sign, so that either can be given on the command
    line. Raises UserError for another mode, or patience without a metric to wait for.
    """
    if mode not in ("max", "min"):
        raise UserError(f"monitor_mode={mode} does not exist; available: max and min")
    if monitor is None and patience is not None:
        raise UserError(
            f"patience={patience} needs a dev metric to wait for, and monitor names none: give monitor=…"
        )
    last = LastCheckpoint(
        folder,
        "last",
        train_time_interval=timedelta(minutes=minutes),
        enable_version_counter=False,
        save_top_k=1,
    )
    if monitor is None:
        return [last]
    best = BestCheckpoint(
        folder, "best", monitor=monitor, mode=mode, save_weights_only=True, enable_version_counter=False
    )
    if patience is None:
        return [best, last]  # in this order: what training goes on from remembers the best so far
    # A metric that dev has nothing to judge by counts as no better one.
    return [best, last, EarlyStopping(monitor, patience=patience, mode=mode, check_finite=False)]


def stops_at_loss(metric: str, loss: float) -> Callback:
    """End training at the first step whose `metric`, a loss, is below `loss`."""
    return EarlyStopping(
        metric, patience=sys.maxsize, mode="min", stopping_threshold=loss, check_on_train_epoch_end=True
    )
