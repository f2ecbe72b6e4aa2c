"""Section 2.4 goes on where the paper stops: d(z) is trained as well.

    p_η(z|x) = softmax over the K passages of s · q(x)ᵀd(z),   d(z) as the passage encoder makes it in this very step

Retrieval searches the index, whose vectors are of an older state of the passage encoder; the passages it finds are
encoded again, with gradients. Memory is bounded: passages go through the encoder a few at a time, and beyond so many
tokens each part is computed again in the backward pass instead of being kept.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, Self, get_args

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from rag.encoders.opening import open_passage_encoder
from rag.encoders.protocol import TOKENS_AT_ONCE, AnyPassageEncoder, AnyQuestionEncoder, of_like_length
from rag.encoders.settings import EncoderSettings
from rag.errors import UserError, listed
from rag.index.folder import Index
from rag.index.passages import PassageStore
from rag.index.vectors import UNKNOWN
from rag.marginalize import at_least_float32

TOKENS_ON_A_GPU = 8_192  # at once, padding included: 32 of DPR's passages
TOKENS_KEPT = 16_384

Side = Literal["query", "passage", "both"]  # what of the two encoders is trained


def trained_sides(trainable: bool | str) -> tuple[bool, bool]:
    """Whether the question encoder and whether the passage encoder is trained; UserError for what says neither."""
    if isinstance(trainable, bool):
        return trainable, False
    if trainable not in get_args(Side):
        raise UserError(
            f"retriever.trainable={trainable} does not exist; available: {listed(get_args(Side))}, and false"
        )
    return trainable != "passage", trainable != "query"


class FreshPassages(nn.Module):
    """The passage encoder, and how passages go through it in a training step: `passage_encoder` of a DenseRetriever.

    encoder: d(z); None: the question encoder's own weights, one set for both sides, which `attach` takes.
    tokens_at_once: how many are encoded at a time, padding included; None: 1,024 a thread of a CPU, 8,192 elsewhere.
    tokens_kept: of so many, activations are kept for the backward pass; what is beyond is computed again there.
    """

    def __init__(
        self,
        encoder: AnyPassageEncoder | Any | None = None,
        tokens_at_once: int | None = None,
        tokens_kept: int = TOKENS_KEPT,
    ):
        super().__init__()
        if tokens_at_once is not None and tokens_at_once < 1:
            raise UserError(
                f"retriever.passage_encoder.tokens_at_once={tokens_at_once}: give a whole number above 0"
            )
        self.encoder: Any = encoder
        self.shared = encoder is None  # one set of weights for both sides
        self.tokens_at_once = tokens_at_once
        self.tokens_kept = tokens_kept

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path | None,
        encoder: EncoderSettings | None = None,
        tokens_at_once: int | None = None,
        tokens_kept: int = TOKENS_KEPT,
    ) -> Self:
        """Load the passage encoder from a folder or the hub; None: it shares the question encoder's weights."""
        opened = None if path is None else open_passage_encoder(path, encoder)
        return cls(opened, tokens_at_once, tokens_kept)

    def attach(self, question_encoder: AnyQuestionEncoder, index: Index, sides: tuple[bool, bool]) -> None:
        """Take the place beside a question encoder and over an index, and freeze what is not trained.

        Raises UserError where the index's vectors are not this encoder's, or one shared set of weights is to be half
        trained.
        """
        if self.shared:
            self.encoder = question_encoder.passage_side()
            if self.encoder is None:
                raise UserError(
                    "retriever.passage_encoder.path=null shares the question encoder's weights, but this one has no "
                    "passage side: give the folder of its passage encoder"
                )
            if sides in ((True, False), (False, True)):
                raise UserError(
                    f"retriever.trainable={'query' if sides[0] else 'passage'}, but both sides share one set of "
                    "weights: take retriever.trainable=both, or give retriever.passage_encoder.path"
                )
        check_made_by(index, self.encoder)
        self.encoder.requires_grad_(sides[1])

    def forward(
        self, store: PassageStore, rows: Int64[np.ndarray, "*shape"], gradient: bool = True
    ) -> Float[Tensor, "*shape dim"]:
        """d(z) of the passages in these rows, each encoded once; of a row of −1, any passage's.

        gradient: False encodes without gradients and dropout.
        """
        # there is always a passage to encode: weights without a gradient would stop training on several ranks
        unique, places = np.unique(rows.clip(0), return_inverse=True)
        tokens = self.encoder.tokenize([store[int(row)] for row in unique])
        if gradient:
            vectors = self._encode(tokens)
        else:
            training = self.encoder.training
            self.encoder.eval()
            with torch.no_grad():
                vectors = self._encode(tokens)
            self.encoder.train(training)
        return vectors[torch.from_numpy(places.reshape(rows.shape)).to(vectors.device)]

    def _encode(self, tokens: dict[str, Tensor]) -> Float[Tensor, "passages dim"]:
        device = next(self.encoder.parameters()).device
        mask = tokens.get("attention_mask")
        if mask is None or any(each.shape != mask.shape for each in tokens.values()):
            return self._run({name: value.to(device) for name, value in tokens.items()})
        at_once = self.tokens_at_once or (
            TOKENS_AT_ONCE * torch.get_num_threads() if device.type == "cpu" else TOKENS_ON_A_GPU
        )
        made, order, done = [], [], 0
        for rows, columns in of_like_length(mask, at_once):
            part = {name: value[rows][:, columns].to(device) for name, value in tokens.items()}
            done += part["attention_mask"].numel()
            if done <= self.tokens_kept or not torch.is_grad_enabled():
                made.append(self._run(part))
            else:
                again: Callable[..., Any] = checkpoint
                made.append(again(self._run, part, use_reentrant=False))
            order.append(rows)
        return torch.cat(made)[torch.cat(order).argsort().to(device)]

    def _run(self, tokens: dict[str, Tensor]) -> Float[Tensor, "passages dim"]:
        return at_least_float32(self.encoder(**tokens))


def check_made_by(index: Index, encoder: AnyPassageEncoder) -> None:
    """UserError unless the index's vectors were made by this encoder, weight for weight."""
    made_by = index.manifest.encoder
    build = "build_index.py, passage_encoder=… and another index.path"
    if made_by.weights == UNKNOWN:
        raise UserError(
            f"{index.folder} holds vectors of {made_by.name} whose weights are not known, so that they cannot be held "
            f"against the passage encoder that is to be trained: build an index with {build}"
        )
    if made_by.weights != (weights := encoder.fingerprint()):
        raise UserError(
            f"{index.folder} was embedded by {made_by.name} (weights {made_by.weights}), but the passage encoder to be "
            f"trained is {encoder.name} (weights {weights}): give the one that made the index, or build another with "
            f"{build}"
        )
