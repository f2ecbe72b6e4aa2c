"""Section 2.2: how sharp p_η(z|x) is, softmax of s · q(x)ᵀd(z).

Inner products of DPR's vectors differ by several units, and s = 1 is the paper's. Cosines differ by tenths: at s = 1
every passage would be about as likely as the next, and the sum over passages would learn from none of them.
"""

import math
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from rag.errors import UserError
from rag.parts import TrainedPart, describe


class LearnedScale(nn.Module):
    """A learned number above zero, by its logarithm. start: where it begins."""

    def __init__(self, start: float = 20.0):
        super().__init__()
        if not (math.isfinite(start) and start > 0):
            raise UserError(f"a learned scale cannot start at {start}: give a number above 0")
        self.log = nn.Parameter(torch.tensor(math.log(start)))

    def forward(self) -> Float[Tensor, ""]:
        return self.log.exp()


Scale = float | LearnedScale


def checked(scale: Any, name: str) -> Scale:
    """The scale as it was given; UserError unless it is learned or a number above zero."""
    if isinstance(scale, LearnedScale):
        return scale
    if (
        isinstance(scale, bool)
        or not isinstance(scale, int | float)
        or not (math.isfinite(scale) and scale > 0)
    ):
        raise UserError(
            f"retriever.{name}={scale} is not a scale: give a number above 0, or "
            f"{{_target_: rag.retrievers.LearnedScale, start: 20}}"
        )
    return float(scale)


def value_of(scale: Scale) -> float | Float[Tensor, ""]:
    """The number that logits are multiplied with; differentiable where it is learned."""
    return scale() if isinstance(scale, LearnedScale) else scale


def number_of(scale: Scale) -> float:
    """The number as it stands."""
    return scale.log.detach().exp().item() if isinstance(scale, LearnedScale) else scale


def described(scale: Scale) -> Any:
    """How it is made again; a learned one's weights are read from its part."""
    return describe(LearnedScale, start=1.0) if isinstance(scale, LearnedScale) else scale


def parts_of(scale: Scale, name: str) -> list[TrainedPart]:
    """The trained part of a learned scale, none of a constant."""
    return [TrainedPart(f"{name}.safetensors", scale, "retriever")] if isinstance(scale, LearnedScale) else []
