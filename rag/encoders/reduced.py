"""Embedding with products of fewer bits on a CPU; a GPU always uses half precision.

bfloat16   the faster where the processor multiplies in it; vectors keep about three digits
int8       on any processor; vectors keep two (rag/int8.py)
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from jaxtyping import Float32

from rag.encoders.protocol import AnyPassageEncoder, encode
from rag.errors import UserError
from rag.index.passage import Passage
from rag.index.vectors import EncoderInfo
from rag.int8 import INT8, to_int8

BFLOAT16 = "bfloat16"  # the precision, in a manifest


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


def reduced(encoder: Any, bfloat16: bool, int8: bool) -> Any:
    """A passage encoder with products of so many bits, where that is asked for; None, where there is none, stays."""
    if bfloat16 and int8:
        raise UserError("bfloat16=true and int8=true exclude each other: take one")
    return in_precision(encoder, BFLOAT16 if bfloat16 else INT8 if int8 else None)


def in_precision(encoder: Any, precision: str | None) -> Any:
    """A passage encoder with the precision that an index's manifest names."""
    if encoder is None or precision is None:
        return encoder
    return InBfloat16(encoder) if precision == BFLOAT16 else InInt8(encoder)
