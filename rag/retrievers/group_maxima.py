"""The highest inner product of every group of vectors with each query: what exact search reads all vectors for.

A row-wise maximum is all that is kept of the scores, a number for each group instead of one for each vector, so that a
search moves little more than the vectors themselves. On a CUDA GPU a kernel of Triton's, which torch brings there,
takes the maxima where the products are made; elsewhere the scores of a part of the vectors are held for a moment.
"""

from functools import cache
from importlib.util import find_spec

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

SCORES_AT_ONCE = 1 << 24  # held for a moment: 64 MB in float32


def group_maxima(
    vectors: Float[Tensor, "N D"], queries: Float[Tensor, "B D"], group: int
) -> Float[Tensor, "B groups"]:
    """max over each group of `group` successive vectors, the last one perhaps shorter, of q(x)ᵀd(z), in float32.

    group: a power of two, 128 at most. vectors, queries: of one dtype, on one device; half precision is multiplied
    as it is and summed in float32.
    """
    if vectors.is_cuda and vectors.dtype in (torch.bfloat16, torch.float16) and _has_triton():
        from rag.retrievers.maxima_kernel import by_kernel

        return by_kernel(vectors, queries, group)
    rows = max(1, SCORES_AT_ONCE // max(1, len(queries)) // group) * group
    maxima = [_of_scores((queries @ part.T).float(), group) for part in vectors.split(rows)]
    return torch.cat(maxima, dim=1) if maxima else queries.new_empty(len(queries), 0)


def _of_scores(scores: Float[Tensor, "B rows"], group: int) -> Float[Tensor, "B groups"]:
    if missing := -scores.shape[1] % group:
        scores = F.pad(scores, (0, missing), value=-torch.inf)
    return scores.unflatten(1, (-1, group)).amax(dim=2)


@cache
def _has_triton() -> bool:
    return find_spec("triton") is not None
