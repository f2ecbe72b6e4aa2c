"""From the states of a text's tokens to its one vector, as sentence-transformers' Pooling and Normalize do it."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

POOLINGS = ("cls", "mean", "max", "last", "mean_sqrt_len")


def pool(
    states: Float[Tensor, "batch length width"],
    mask: Int[Tensor, "batch length"] | Bool[Tensor, "batch length"],
    pooling: str,
) -> Float[Tensor, "batch width"]:
    """One vector a text, padded at its end. With h_i the states of its n tokens:

    cls: h_1. last: h_n. mean: Σ h_i / n. mean_sqrt_len: Σ h_i / √n. max: the largest of each dimension.
    """
    if pooling == "cls":
        return states[:, 0]
    if pooling == "last":
        ends = mask.long().sum(dim=1) - 1
        return states[torch.arange(len(states), device=states.device), ends]
    kept = mask.bool().unsqueeze(2)
    if pooling == "max":
        return states.masked_fill(~kept, -torch.inf).amax(dim=1)
    total, count = (states * kept).float().sum(dim=1), kept.sum(dim=1).float()
    return total / (count if pooling == "mean" else count.sqrt())


def unit_length(vectors: Float[Tensor, "batch dim"]) -> Float[Tensor, "batch dim"]:
    """Divided by their length, in float32: the inner product of two is their cosine."""
    return F.normalize(vectors.float(), dim=1)
