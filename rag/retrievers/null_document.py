"""Appendix F: an empty passage that is always retrieved beside the K, for questions no passage helps with.

Its score, a logit of p(z|x) beside the inner products d(z)ᵀq(x), is one of

    NullEmbedding   d(∅)ᵀq(x), d(∅) a learned vector
    NullBias        a learned number
    NullNetwork     a small network's output for q(x)

The paper saw no gain from any. Inner products of DPR's vectors are around 70: a score that starts at zero
has no part in the sum, and so no gradient, until the others come down to it. `start` says where it begins.
"""

from pathlib import Path
from typing import Any, Self

import torch
from jaxtyping import Float
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from rag.errors import UserError
from rag.files import write_aside
from rag.finite import check_finite
from rag.marginalize import at_least_float32, wide_linear, without_autocast
from rag.parts import describe
from rag.runs import FOLDER


class NullDocument(nn.Module):
    """The score of the empty passage: q(x) of B questions in, B logits out."""

    settings: dict[str, Any]  # the constructor's arguments

    def forward(self, queries: Float[Tensor, "batch dim"]) -> Float[Tensor, " batch"]:
        with without_autocast(queries):
            return self.score(at_least_float32(queries))

    def score(self, queries: Float[Tensor, "batch dim"]) -> Float[Tensor, " batch"]:
        """`forward`, in float32 or wider whatever the trainer's precision and the weights' type."""
        raise NotImplementedError

    def save_pretrained(self, file: str | Path) -> None:
        """Write the weights as one safetensors file."""
        metadata = {name: str(value) for name, value in self.settings.items()}
        with write_aside(file) as aside:
            save_file({name: w.contiguous() for name, w in self.state_dict().items()}, aside, metadata)

    def description(self) -> dict[str, Any]:
        return describe(type(self).from_pretrained, file=f"{FOLDER}/null_document.safetensors")

    @classmethod
    def from_pretrained(cls, file: str | Path) -> Self:
        """Read what `save_pretrained` of the same class wrote. Raises UserError if it is something else."""
        try:
            with safe_open(file, "pt") as saved:
                weights = {name: saved.get_tensor(name) for name in saved.keys()}
                settings = {name: int(value) for name, value in (saved.metadata() or {}).items()}
            null = cls(**settings)
            null.load_state_dict(weights)
        except (OSError, ValueError, TypeError, RuntimeError) as error:
            reason = str(error).strip().splitlines()[0]
            raise UserError(
                f"{file} holds no {cls.__name__} ({reason}): give the run that trained it"
            ) from error
        check_finite(weights, file)
        return null


class NullEmbedding(NullDocument):
    """d(∅)ᵀq(x). dim: D, the length of the vectors; start: the length d(∅) begins with, in a random direction."""

    def __init__(self, dim: int, start: float = 0.0):
        super().__init__()
        self.settings = {"dim": dim}
        self.vector = nn.Parameter(nn.functional.normalize(torch.randn(dim), dim=0) * start)

    def score(self, queries: Float[Tensor, "batch dim"]) -> Float[Tensor, " batch"]:
        return queries @ self.vector.to(queries.dtype)


class NullBias(NullDocument):
    """A learned number. start: where it begins."""

    def __init__(self, start: float = 0.0):
        super().__init__()
        self.settings = {}
        self.bias = nn.Parameter(torch.tensor(float(start)))

    def score(self, queries: Float[Tensor, "batch dim"]) -> Float[Tensor, " batch"]:
        return self.bias.to(queries.dtype).expand(len(queries))


class NullNetwork(NullDocument):
    """A network of one hidden layer over q(x). dim: D; hidden: its width; start: its output at the beginning."""

    def __init__(self, dim: int, hidden: int = 64, start: float = 0.0):
        super().__init__()
        self.settings = {"dim": dim, "hidden": hidden}
        self.hidden = nn.Linear(dim, hidden)
        self.output = nn.Linear(hidden, 1)
        nn.init.zeros_(self.output.weight)
        nn.init.constant_(self.output.bias, start)

    def score(self, queries: Float[Tensor, "batch dim"]) -> Float[Tensor, " batch"]:
        return wide_linear(self.output, torch.tanh(wide_linear(self.hidden, queries))).squeeze(1)
