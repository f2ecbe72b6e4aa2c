"""Section 2.2: what retrieval, embedding and training need of q(x) and d(z), whatever model makes them.

    p_η(z|x) = softmax over the K passages of scale · q(x)ᵀd(z)

A question encoder belongs to the passage encoder whose vectors fill the index. It knows that one's fingerprint
(`partner`) once it was trained with it, and always how that one has to read (`reading`): an index of other vectors is
refused. It remembers the scale of its training as well, which belongs to it and not to the index: no vector depends on
it, and where q(x) is trained further over the same index, so is a learned scale.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Int
from torch import Tensor

from rag.index.passage import Passage
from rag.index.tokens import tokenizer_fingerprint
from rag.index.vectors import EncoderInfo

TOKENS_AT_ONCE = 1_024  # a thread of a CPU: more do not stay in its caches, fewer cost more calls
COSINE, INNER_PRODUCT = "cosine", "inner product"
SCALE_OF_COSINES = 20.0  # sentence-transformers' own; at 1 a softmax of cosines is all but uniform


class AnyEncoder(Protocol):
    """What both sides share. Each is an nn.Module.

    tokenizer: its fingerprint goes into an index's manifest. max_length: tokens of a text, special ones included.
    dim: D. reading: how passages become vectors, as plain containers: pooling, normalize, prompt.
    """

    tokenizer: Any

    @property
    def max_length(self) -> int: ...

    @property
    def dim(self) -> int: ...

    @property
    def reading(self) -> dict[str, Any]: ...

    def __call__(self, **tokens: Tensor) -> Float[Tensor, "batch dim"]:
        """The vectors of what `tokenize` gives."""
        ...

    def fingerprint(self) -> str:
        """A hash of the weights and of all that decides the vectors beside them."""
        ...

    def recompute_layers(self) -> None:
        """Keep only each layer's input for the backward pass; UserError where the model cannot."""
        ...

    def save_pretrained(self, folder: Any) -> None:
        """Write it in the format it came in."""
        ...

    def requires_grad_(self, requires_grad: bool = True) -> Any: ...


class AnyQuestionEncoder(AnyEncoder, Protocol):
    """q(x). partner: the fingerprint of the passage encoder that it belongs to. scale: what q(x)ᵀd(z) was multiplied
    with in training. None, both, where nobody knows; what is saved keeps them."""

    partner: str | None
    scale: float | None

    def passage_fingerprint(self) -> str | None:
        """The fingerprint of the passage encoder that it would be with the same weights; None where it is none."""
        ...

    def passage_side(self) -> "AnyPassageEncoder | Any | None":
        """The passage encoder of the very same weights, shared and not copied; None where it is none."""
        ...

    def tokenize(self, questions: Sequence[str]) -> dict[str, Tensor]:
        """What `__call__` takes, padded to the longest; a longer question is cut at its end, with one warning."""
        ...


class AnyPassageEncoder(AnyEncoder, Protocol):
    """d(z). cut: passages so far that were longer than `max_length`, and lost their end.

    name: the folder or hub id that it was loaded from, by which an index's manifest names it.
    """

    cut: int
    name: str

    def describe(self) -> EncoderInfo:
        """What an index's manifest says of the encoder that made its vectors."""
        ...

    def tokenize(self, passages: Sequence[Passage]) -> dict[str, Tensor]:
        """What `__call__` takes, padded to the longest; where all of it has the shape (passages, length) of its
        `attention_mask`, any rows of it may be encoded alone, without the columns that are padding in all of them."""
        ...

    def encode(self, passages: Sequence[Passage]) -> Float32[np.ndarray, "passages dim"]:
        """The vectors of some passages, float32 on the CPU, made on the model's device."""
        ...


def describe_encoder(name: str, encoder: AnyEncoder) -> EncoderInfo:
    """What an index's manifest says of the encoder that made its vectors."""
    tokenizer = tokenizer_fingerprint(encoder.tokenizer)
    return EncoderInfo(name, encoder.fingerprint(), tokenizer, reading=encoder.reading)


def similarity(reading: Mapping[str, Any] | None) -> str:
    """What q(x)ᵀd(z) is: the cosine where the vectors have unit length."""
    return COSINE if (reading or {}).get("normalize") else INNER_PRODUCT


def default_scale(reading: Mapping[str, Any] | None) -> float:
    """The scale of q(x)ᵀd(z) in p(z|x) where none was asked for."""
    return SCALE_OF_COSINES if similarity(reading) == COSINE else 1.0


def hash_weights(weights: Mapping[str, Tensor], settings: Mapping[str, Any] | None = None) -> str:
    """16 hexadecimal digits of the weights' names and bytes and, where given, of `settings`."""
    digest = hashlib.sha256()
    if settings is not None:
        digest.update(json.dumps(settings, sort_keys=True).encode())
    for name, weight in sorted(weights.items()):
        digest.update(name.encode())
        held: Any = weight.detach().cpu().contiguous().view(torch.uint8).numpy()
        digest.update(held)
    return digest.hexdigest()[:16]


@torch.inference_mode()
def encode(
    encoder: Any, passages: Sequence[Passage], half: bool = False
) -> Float32[np.ndarray, "passages dim"]:
    """The vectors of some passages, as float32 on the CPU.

    They are made in half precision on a GPU, in one batch, and where `half` asks for it. On a CPU passages of like
    length go together, a few at once.
    """
    weight = next(encoder.parameters())
    device, wide = weight.device, weight.dtype == torch.float32
    tokens = encoder.tokenize(passages)
    on_gpu = device.type == "cuda"
    dtype = torch.bfloat16 if not on_gpu or torch.cuda.is_bf16_supported() else torch.float16
    mask = tokens.get("attention_mask")
    with torch.autocast(device.type, dtype=dtype, enabled=(on_gpu and wide) or half):
        if on_gpu or mask is None or any(each.shape != mask.shape for each in tokens.values()):
            tokens = {name: value.to(device, non_blocking=True) for name, value in tokens.items()}
            return encoder(**tokens).float().cpu().numpy()
        vectors = np.empty((len(mask), encoder.dim), np.float32)
        for rows, columns in of_like_length(mask, TOKENS_AT_ONCE * torch.get_num_threads()):
            part = {name: value[rows][:, columns] for name, value in tokens.items()}
            vectors[rows.numpy()] = encoder(**part).float().numpy()
    return vectors


def of_like_length(
    mask: Int[Tensor, "rows length"] | Bool[Tensor, "rows length"], most: int
) -> Iterator[tuple[Int[Tensor, " some"], Bool[Tensor, " length"]]]:
    """All rows of a padded batch, the longest first, in parts of at most `most` tokens, padding included, or of one
    row: the rows of a part, and the columns that are not padding in all of them."""
    lengths = mask.sum(dim=1)
    order = lengths.argsort(descending=True, stable=True)
    while len(order):
        count = max(1, most // max(1, int(lengths[order[0]])))
        rows, order = order[:count], order[count:]
        yield rows, mask[rows].bool().any(dim=0)
