"""Section 2.4, faster on a GPU: the layers of the models in training, each compiled into few kernels."""

import os
import shutil
from importlib.util import find_spec
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from rag.errors import UserError


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
    if torch.cuda.is_available():
        if find_spec("triton") is None:
            raise UserError("compile=true needs Triton, which is not installed: pip install triton")
    elif shutil.which(os.environ.get("CXX", "g++")) is None:
        raise UserError("compile=true needs a C++ compiler on a CPU, and there is no g++: install it")
    for layer in layers:
        layer.compile(dynamic=True)


class CompiledLayers(Callback):
    """compile=true. What is asked of the model on dev, token by token, is computed as ever: it has other shapes."""

    def __init__(self) -> None:
        self._as_ever: Any = None

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        compile_layers(pl_module)

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
