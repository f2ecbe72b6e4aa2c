"""Embedding by OpenVINO on a CPU, in bfloat16 where the processor has it, else in float32: the extra "openvino"."""

import logging
import sys
import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32
from torch import Tensor, nn

from rag.encoders.precisions import NO_OPENVINO, OPENVINO
from rag.encoders.protocol import TOKENS_AT_ONCE, of_like_length
from rag.errors import UserError
from rag.index.passage import Passage
from rag.index.vectors import EncoderInfo

_TELEMETRY = "openvino_telemetry"
_EXAMPLE = [Passage("1", "A title", "and a text."), Passage("2", "Another", "with other words.")]


class InOpenVino:
    """A passage encoder compiled by OpenVINO: what an index needs of one, `encode` and `describe`.

    Its vectors are float32; in bfloat16 they keep about three digits. Raises UserError where OpenVINO is not installed,
    for an encoder on a GPU, and for one that it cannot compile.
    """

    def __init__(self, encoder: Any):
        try:
            openvino = _without_telemetry()
        except ImportError as error:
            raise UserError(NO_OPENVINO) from error
        if next(encoder.parameters()).device.type != "cpu":
            raise UserError("openvino=true is for a CPU: leave it out on a GPU, which is faster without")
        self.encoder = encoder
        example = encoder.tokenize(_EXAMPLE)
        self.names = list(example)
        root = logging.getLogger()
        level = root.level  # which OpenVINO raises, and whose warnings would be lost for good
        try:
            with warnings.catch_warnings(), torch.no_grad():
                warnings.simplefilter("ignore")  # of tracing, by which OpenVINO reads a model
                model = openvino.convert_model(
                    _Positional(encoder, self.names), example_input=tuple(example.values())
                )
            threads = {"INFERENCE_NUM_THREADS": torch.get_num_threads(), "NUM_STREAMS": 1}
            self._compiled = openvino.Core().compile_model(model, "CPU", threads)
        except RuntimeError as error:
            raise UserError(
                f"OpenVINO cannot compile {encoder.describe().name} ({str(error).splitlines()[0]:.200}): leave "
                "openvino=true out"
            ) from error
        finally:
            root.setLevel(level)

    def describe(self) -> EncoderInfo:
        return replace(self.encoder.describe(), precision=OPENVINO)

    def encode(self, passages: Sequence[Passage]) -> Float32[np.ndarray, "passages dim"]:
        """Passages of like length go through together, a few at once."""
        tokens = self.encoder.tokenize(passages)
        request = self._compiled.create_infer_request()
        mask = tokens.get("attention_mask")
        if mask is None or any(each.shape != mask.shape for each in tokens.values()):
            return self._run(request, tokens).copy()
        vectors = np.empty((len(mask), self.encoder.dim), np.float32)
        for rows, columns in of_like_length(mask, TOKENS_AT_ONCE * torch.get_num_threads()):
            vectors[rows.numpy()] = self._run(request, {n: v[rows][:, columns] for n, v in tokens.items()})
        return vectors

    def _run(self, request: Any, tokens: dict[str, Tensor]) -> Float32[np.ndarray, "passages dim"]:
        return request.infer([tokens[name].contiguous().numpy() for name in self.names])[0]


def _without_telemetry() -> Any:
    """The module openvino, imported as where openvino-telemetry is not installed: with it, importing and converting are
    reported to OpenVINO's makers unless somebody objects."""
    absent = _TELEMETRY not in sys.modules
    if absent:
        sys.modules[_TELEMETRY] = None  # type: ignore[assignment]  # what Python takes for a module that is not there
    try:
        import openvino

        return openvino
    finally:
        if absent:
            del sys.modules[_TELEMETRY]


class _Positional(nn.Module):
    """The encoder as a function of its inputs in order, as tracing wants it."""

    def __init__(self, encoder: Any, names: Sequence[str]):
        super().__init__()
        self.encoder, self.names = encoder, names

    def forward(self, *values: Tensor) -> Tensor:
        return self.encoder(**dict(zip(self.names, values, strict=True))).float()
