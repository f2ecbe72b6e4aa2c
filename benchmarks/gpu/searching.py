"""Part e: exact search, 64 questions over as many 768-dimensional bfloat16 vectors as fit, beside the bandwidth limit.

Every vector has to be read once: their bytes over the bandwidth of a large copy is the least time there is. Measured
are the products alone, ExactSearch as a retriever calls it, true vectors and all, and beside it another way to find the
best of a block of scores, by groups: the highest of each group first, then the best within the best groups.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks import world
from benchmarks.gpu.setting import Setting, release
from benchmarks.machine import copy_bandwidth, timed
from rag.retrievers.exact import ExactSearch

DIM, QUESTIONS, K = 768, 64, 50
AIM = 0.8
GROUP = 64


class Vectors:
    """`length` vectors, all different: a block of random ones again and again, each time with other signs.

    As much of an index as ExactSearch needs; the vectors are made on the device, since they would take minutes to
    copy there.
    """

    folder = "random vectors"

    def __init__(self, length: int, dim: int, block: int):
        draw = np.random.default_rng(world.SEED)
        self.length, self.dim = length, dim
        self.block = draw.standard_normal((block, dim), np.float32)
        self.signs = draw.choice(np.array([-1, 1], np.float32), (-(-length // block), dim))

    def __len__(self) -> int:
        return self.length

    def on(self, device: torch.device, dtype: torch.dtype) -> Tensor:
        block, signs = (
            torch.from_numpy(each).to(device=device, dtype=dtype) for each in (self.block, self.signs)
        )
        made = torch.empty(self.length, self.dim, device=device, dtype=dtype)
        for some, signs_of_block in zip(made.split(len(block)), signs, strict=True):
            torch.mul(block[: len(some)], signs_of_block, out=some)
        return made

    def vectors(self, rows: np.ndarray) -> np.ndarray:
        return self.block[rows % len(self.block)] * self.signs[rows // len(self.block)]


class MadeThere(ExactSearch):
    """ExactSearch whose vectors are made on its device."""

    def _copied(self) -> Tensor:
        index: Any = self.index
        return index.on(self.device, self.dtype)


@torch.inference_mode()
def best_by_groups(vectors: Tensor, queries: Tensor, k: int, block: int = 1 << 20) -> tuple[Tensor, Tensor]:
    """The k largest inner products of each query with all vectors, and their rows, best first.

    The k best of a block are in the k groups whose highest scores are the k highest: of the scores, which for 64
    queries take a twelfth of the vectors' bytes, only these groups are read a second time.
    """
    scores = torch.full((len(queries), k), -torch.inf, dtype=queries.dtype, device=queries.device)
    rows = torch.full((len(queries), k), -1, dtype=torch.long, device=queries.device)
    inside = torch.arange(GROUP, device=rows.device)
    for start in range(0, len(vectors), block):
        block_scores = queries @ vectors[start : start + block].T
        whole = block_scores.shape[1] // GROUP * GROUP
        rest = torch.arange(start + whole, start + block_scores.shape[1], device=rows.device)
        candidate_scores, candidate_rows = (
            [scores, block_scores[:, whole:]],
            [rows, rest.expand(len(queries), -1)],
        )
        if whole:
            groups = block_scores[:, :whole].unflatten(1, (-1, GROUP))
            best = groups.amax(dim=2).topk(min(k, groups.shape[1]), dim=1, sorted=False).indices.unsqueeze(2)
            candidate_scores.append(groups.gather(1, best.expand(-1, -1, GROUP)).flatten(1))
            candidate_rows.append((start + best * GROUP + inside).flatten(1))
        scores, order = torch.cat(candidate_scores, dim=1).topk(k, dim=1)
        rows = torch.cat(candidate_rows, dim=1).gather(1, order)
    return scores, rows


def how_many(free: int, dim: int) -> int:
    """Vectors in bfloat16 that leave a tenth of the free bytes, and 2 GB at least, for scores."""
    return int(min(0.9 * free, free - 2e9)) // (2 * dim)


def run(setting: Setting) -> int:
    device = setting.device
    bandwidth = copy_bandwidth(device)
    release()
    count, block = 20_000, 4_096
    if device == "cuda":
        count, block = how_many(torch.cuda.mem_get_info()[0], DIM), 1 << 16
    index: Any = Vectors(count, DIM, block)
    search = MadeThere(index, device, torch.bfloat16)
    stored = search._copy
    assert stored is not None
    queries = torch.from_numpy(np.random.default_rng(1).standard_normal((QUESTIONS, DIM), np.float32)).to(
        device
    )
    half = queries.to(torch.bfloat16)
    least = stored.numel() * 2 / bandwidth
    metrics = {"bytes_per_second": bandwidth, "least_seconds": least}
    setting.tell("a copy of 4 GB", metrics, {"vectors": count, "dim": DIM})

    @torch.inference_mode()
    def products() -> None:
        for some in stored.split(1 << 20):
            torch.matmul(half, some.T)

    calls = {
        "products alone": products,
        "ExactSearch": lambda: search.search(queries, K),
        "by groups of 64, without true vectors": lambda: best_by_groups(stored, half, 2 * K + 16),
    }
    for name, call in calls.items():
        call()
        seconds = min(timed(call, device) for _ in range(3))
        rate = {"questions_per_second": QUESTIONS / seconds, "of_bandwidth": least / seconds}
        where = {"vectors": count, "questions": QUESTIONS, "K": K}
        if name == "ExactSearch":
            setting.tell(name, {"seconds": seconds} | rate, where, f"≥ {AIM}", least / seconds >= AIM)
        else:
            setting.tell(name, {"seconds": seconds} | rate, where)
    rows = search.search(queries, K)
    _, candidates = best_by_groups(stored, half, 2 * K + 16)
    candidates = candidates.cpu().numpy()
    missed = float(
        np.mean([not set(exact) <= set(some) for exact, some in zip(rows, candidates, strict=True)])
    )
    setting.tell(
        "questions where the groups miss a passage", {"share": missed}, {}, "0", missed == 0, must=True
    )
    return int(missed > 0)
