"""`group_maxima` on a CUDA GPU, by a kernel that takes the maxima where the products are made."""

import torch
import triton  # type: ignore[import-not-found]
import triton.language as tl  # type: ignore[import-not-found]
from jaxtyping import Float
from torch import Tensor

ROWS, STEP = 128, 64  # vectors of a program, and how many of their numbers it reads at a time


def by_kernel(
    vectors: Float[Tensor, "N D"], queries: Float[Tensor, "B D"], group: int
) -> Float[Tensor, "B groups"]:
    """`group_maxima`: the vectors are read once for every 128 queries, and nothing but the maxima is written."""
    count, dim = vectors.shape
    maxima = torch.empty(len(queries), -(-count // group), device=vectors.device)
    if not maxima.numel():
        return maxima
    together = min(128, max(16, 1 << (len(queries) - 1).bit_length()))
    programs = -(-count // ROWS) * -(-len(queries) // together)
    _maxima[(programs,)](  # pyright: ignore[reportIndexIssue]
        vectors.contiguous(),
        queries.contiguous(),
        maxima,
        count,
        len(queries),
        maxima.shape[1],
        dim=dim,
        rows=ROWS,
        together=together,
        group=group,
        step=STEP,
        num_warps=8 if together == 128 else 4,
        num_stages=3,
    )
    return maxima


@triton.jit
def _maxima(
    vectors,
    queries,
    maxima,
    count,
    asked,
    groups,
    dim: tl.constexpr,
    rows: tl.constexpr,
    together: tl.constexpr,
    group: tl.constexpr,
    step: tl.constexpr,
):
    # Programs that read the same vectors for other queries run side by side: the second finds them in the cache.
    parts = tl.cdiv(asked, together)
    block = (tl.program_id(0) // parts).to(tl.int64)
    row = block * rows + tl.arange(0, rows)
    query = (tl.program_id(0) % parts) * together + tl.arange(0, together)
    scores = tl.zeros((rows, together), tl.float32)
    for first in range(0, dim, step):
        column = first + tl.arange(0, step)
        of_vectors = tl.load(
            vectors + row[:, None] * dim + column[None, :],
            mask=(row[:, None] < count) & (column[None, :] < dim),
            other=0.0,
        )
        of_queries = tl.load(
            queries + query[None, :] * dim + column[:, None],
            mask=(query[None, :] < asked) & (column[:, None] < dim),
            other=0.0,
        )
        scores = tl.dot(of_vectors, of_queries, scores)
    scores = tl.where(row[:, None] < count, scores, float("-inf"))
    highest = tl.max(tl.reshape(scores, (rows // group, group, together)), axis=1)
    which = block * (rows // group) + tl.arange(0, rows // group)
    tl.store(
        maxima + query[None, :].to(tl.int64) * groups + which[:, None],
        highest,
        mask=(query[None, :] < asked) & (which[:, None] < groups),
    )
