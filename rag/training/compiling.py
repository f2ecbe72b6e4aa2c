"""Section 2.4, faster on a GPU: the layers of the models in training, each compiled into few kernels."""

import os
import shlex
import shutil
from importlib.util import find_spec
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from rag.errors import UserError
from rag.safe_text import say


def check_compiler() -> None:
    """UserError where there is nothing to compile with."""
    if torch.cuda.is_available():
        if find_spec("triton") is None:
            raise UserError("compile=true needs Triton, which is not installed: pip install triton")
        return
    asked = os.environ.get("CXX", "g++")
    if not any(map(shutil.which, shlex.split(asked)[:1])):
        raise UserError(
            f"compile=true needs a C++ compiler on a CPU, and there is no {asked}: install one, or name it by CXX"
        )


def compile_layers(model: nn.Module) -> None:
    """Let torch compile every layer of transformers' models in `model`, when it is first called.

    Once for all layers of a kind, whatever the shapes of batches. Raises UserError where there is no such layer, or
    nothing to compile with.
    """
    # The class that transformers makes every layer of a model of: what may be recomputed by itself.
    layers = [each for each in model.modules() if isinstance(each, GradientCheckpointingLayer)]
    if not layers:
        raise UserError(
            "compile=true, but no model here has layers of transformers' kind: leave that setting out"
        )
    check_compiler()
    for layer in layers:
        layer.compile(dynamic=True)


class CompiledLayers(Callback):
    """compile=true. What is asked of the model on dev, token by token, is computed as ever: it has other shapes."""

    def __init__(self) -> None:
        self._as_ever: Any = None
        self._compiled_before: int | None = None

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        compile_layers(pl_module)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._compiled_before = _compiled()
        if trainer.is_global_zero:
            gain = "" if torch.cuda.is_available() else "; on a CPU it gains little or nothing"
            say(f"compiling the layers: the first step takes about half a minute{gain}")

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        before, self._compiled_before = self._compiled_before, None
        if before == _compiled() and trainer.is_global_zero:
            say("compile=true changed nothing: this training goes past the layers it was for; leave it out")

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._as_ever = torch.compiler.set_stance("force_eager")
        self._as_ever.__enter__()

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._leave()

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        self._leave()

    def _leave(self) -> None:
        if self._as_ever is not None:
            self._as_ever.__exit__(None, None, None)
            self._as_ever = None


def _compiled() -> int:
    """How many pieces of code torch has compiled in this process."""
    from torch._dynamo.utils import counters  # takes long to import

    return counters["stats"]["unique_graphs"]
