"""Embedding faster: with products of fewer bits on a CPU where they are asked for, in half precision on a GPU.

bfloat16   by torch, where the processor multiplies in it; vectors keep about three digits
openvino   by OpenVINO, in bfloat16 where the processor has it, else in float32 (openvino.py); the fastest
int8       by torch, on any processor; vectors keep two digits (rag/int8.py)
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32
from torch import nn

from rag.encoders.openvino import InOpenVino
from rag.encoders.precisions import BFLOAT16, INT8, OPENVINO, chosen_precision
from rag.encoders.protocol import AnyPassageEncoder, encode
from rag.index.passage import Passage
from rag.index.vectors import EncoderInfo
from rag.int8 import to_int8


class InBfloat16:
    """A passage encoder whose products are in bfloat16: what an index needs of one, `encode` and `describe`.

    Its vectors are float32, to about three digits, and the index's manifest says how they were made.
    """

    def __init__(self, encoder: AnyPassageEncoder):
        self.encoder = encoder

    def describe(self) -> EncoderInfo:
        return replace(self.encoder.describe(), precision=BFLOAT16)

    def encode(self, passages: Sequence[Passage]) -> Float32[np.ndarray, "passages dim"]:
        return encode(self.encoder, passages, half=True)


class InInt8:
    """A passage encoder whose products are in 8 bits, as `InBfloat16`; the encoder itself is changed for good."""

    def __init__(self, encoder: Any):
        self.info = replace(
            encoder.describe(), precision=INT8
        )  # whose hash is that of the weights as they were
        self.encoder = encoder
        to_int8(encoder)

    def describe(self) -> EncoderInfo:
        return self.info

    def encode(self, passages: Sequence[Passage]) -> Float32[np.ndarray, "passages dim"]:
        return encode(self.encoder, passages)


class InHalf:
    """A passage encoder with weights in float16 on a GPU; the encoder itself is changed for good.

    A fifth faster than float32 weights under autocast, and nearer to what float32 gives (benchmarks/RESULTS.md).
    Passages whose states are beyond float16's range are encoded again under autocast, and all where a weight is.
    """

    def __init__(self, encoder: Any):
        self.info = encoder.describe()  # whose hash is that of the weights as they were
        self.encoder = encoder
        most = torch.finfo(torch.float16).max
        self.fits = all(
            float(weight.detach().abs().amax()) <= most for weight in encoder.parameters() if weight.numel()
        )
        if self.fits:
            encoder.half()

    def describe(self) -> EncoderInfo:
        return self.info

    def encode(self, passages: Sequence[Passage]) -> Float32[np.ndarray, "passages dim"]:
        vectors = encode(self.encoder, passages)
        if not self.fits or np.isfinite(vectors).all():
            return vectors
        cut = self.encoder.cut
        try:
            return encode(self.encoder.float(), passages)
        finally:
            self.encoder.half()
            self.encoder.cut = cut  # each passage counts once


_HOW = {BFLOAT16: InBfloat16, INT8: InInt8, OPENVINO: InOpenVino}


def reduced(encoder: Any, **asked: bool) -> Any:
    """A passage encoder in the one precision that is asked for by its name, bfloat16, int8 or openvino, where one is;
    else as it is, or on a GPU in half precision.

    None, where there is no encoder, stays. Raises UserError where several are asked for.
    """
    chosen = chosen_precision(**asked)
    weight = next(encoder.parameters(), None) if isinstance(encoder, nn.Module) else None
    if chosen is None and weight is not None and weight.is_cuda and weight.dtype == torch.float32:
        return InHalf(encoder)
    return in_precision(encoder, chosen)


def in_precision(encoder: Any, precision: str | None) -> Any:
    """A passage encoder with the precision that an index's manifest names."""
    return encoder if encoder is None or precision is None else _HOW[precision](encoder)
