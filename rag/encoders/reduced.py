"""Embedding faster on a CPU, with products of fewer bits; a GPU always uses half precision.

bfloat16   by torch, where the processor multiplies in it; vectors keep about three digits
openvino   by OpenVINO, in bfloat16 where the processor has it, else in float32 (openvino.py); the fastest
int8       by torch, on any processor; vectors keep two digits (rag/int8.py)
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from jaxtyping import Float32

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


_HOW = {BFLOAT16: InBfloat16, INT8: InInt8, OPENVINO: InOpenVino}


def reduced(encoder: Any, **asked: bool) -> Any:
    """A passage encoder in the one precision that is asked for by its name, bfloat16, int8 or openvino, where one is.

    None, where there is no encoder, stays. Raises UserError where several are.
    """
    return in_precision(encoder, chosen_precision(**asked))


def in_precision(encoder: Any, precision: str | None) -> Any:
    """A passage encoder with the precision that an index's manifest names."""
    return encoder if encoder is None or precision is None else _HOW[precision](encoder)
