"""How a FAISS index is searched: parameters chosen by measured recall, candidates re-ranked by their true vectors."""

import time
from collections.abc import Callable
from itertools import product, takewhile
from typing import Any

import numpy as np
from jaxtyping import Float32, Int64

from rag.index import lazy_faiss as faiss
from rag.index.faiss_types import (
    IndexType,
    graph_of,
    inner_index,
    keeps_vectors,
    quantises_by_cell,
    transformed,
)
from rag.index.vectors import DecodedVectors, Vectors, best, exact_search

RECALL_AT = (1, 5, 20, 50, 100)
TUNED_AT = (5, 20, 50)  # the search parameters are chosen by the worst recall at these K
REFINES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)
RERANKED = 100  # candidates at least, where there is re-ranking: refine·K would be few for a small K
_QUERIES, _WIDEST = 50, 3_200  # searched at a time while tuning, and candidates of each
_AT_ONCE = 8  # steps to double the effort
_MOST_CANDIDATES = 32_768  # of a graph: more of them take longer than exact search


def set_search(index: Any, search: dict[str, int]) -> None:
    """Put search parameters into force (nprobe, ef_search; refine is `find`'s)."""
    ivf = faiss.try_extract_index_ivf(index)
    if "nprobe" in search and ivf is not None:
        ivf.nprobe = search["nprobe"]
    hnsw = graph_of(index)
    if "ef_search" in search and hnsw is not None:
        hnsw.efSearch = search["ef_search"]
        # The same candidates from a heap. FAISS's own queue is looked through from end to end for each that is taken,
        # which for thousands of them costs more than their products.
        hnsw.search_bounded_queue = False


def untuned(index: Any, kind: IndexType) -> dict[str, int]:
    """The search parameters asked for, or else those that an index came with; nothing to re-rank by."""
    ivf = faiss.try_extract_index_ivf(index)
    hnsw = graph_of(index)
    search = {} if ivf is None else {"nprobe": kind.nprobe or ivf.nprobe}
    search |= {} if hnsw is None else {"ef_search": kind.ef_search or hnsw.efSearch}
    return search | {"refine": 1}


def proposed(k: int, refine: int, passages: int) -> int:
    """How many candidates an index is asked for: k; or, where they are re-ranked, refine·k and 100 at least."""
    return min(k if refine == 1 else max(k * refine, RERANKED), passages)


def find(
    index: Any, vectors: Vectors | DecodedVectors, queries: Float32[np.ndarray, "B D"], k: int, refine: int
) -> tuple[Float32[np.ndarray, "B k"], Int64[np.ndarray, "B k"]]:
    """Scores and rows of the k best, best first; −inf and −1 where there are fewer.

    With refine > 1, refine·k candidates, 100 at least, are put in order by their true vectors, and the scores are
    exact.
    """
    scores, rows = index.search(queries, proposed(k, refine, len(vectors)))
    if refine > 1:
        return best(true_scores(vectors, queries, rows), rows, k)
    scores[rows < 0] = -np.inf
    return scores, rows


def true_scores(
    vectors: Vectors | DecodedVectors, queries: Float32[np.ndarray, "B D"], rows: Int64[np.ndarray, "B C"]
) -> Float32[np.ndarray, "B C"]:
    """q(x)ᵀd(z) of each query's candidates, from their true vectors; −inf for a row of −1."""
    scores = np.empty(rows.shape, np.float32)
    step = max(1, (1 << 22) // (rows.shape[1] * vectors.dim))  # 16 MB at a time
    for start in range(0, len(queries), step):
        part = slice(start, start + step)
        scores[part] = np.einsum("bd,bkd->bk", queries[part], vectors.gather(rows[part]))
    scores[rows < 0] = -np.inf
    return scores


class Trial:
    """An index held against exact search on Q queries.

    Exact search gives twice as many passages as are asked for, so that one with the score of the K-th best
    counts as found too.
    """

    def __init__(
        self,
        index: Any,
        vectors: Vectors,
        queries: Float32[np.ndarray, "Q D"],
        exact: tuple[np.ndarray, np.ndarray] | None = None,
    ):
        """exact: what exact search gives for the queries, where it was done already."""
        self.index = index
        self.vectors = vectors
        self.queries = queries
        scores, rows = exact or exact_search(vectors, queries, min(2 * max(RECALL_AT), len(vectors)))
        self._best = rows[:, : max(TUNED_AT)].copy()  # a view would keep the rest
        self.bounds = scores - 1e-5 * np.maximum(1, np.abs(scores))
        order = np.argsort(rows, axis=1)
        self._rows = np.take_along_axis(rows, order, axis=1)
        self._scores = np.take_along_axis(scores, order, axis=1)
        self._found: dict[tuple[int, ...], dict[tuple[int, int], np.ndarray]] = {}

    @classmethod
    def several(cls, index: Any, vectors: Vectors, *queries: Float32[np.ndarray, "_ D"]) -> list["Trial"]:
        """A trial with each of several sets of queries, for one exact search."""
        exact = exact_search(vectors, np.concatenate(queries), min(2 * max(RECALL_AT), len(vectors)))
        parts = [np.split(each, np.cumsum([len(some) for some in queries])[:-1]) for each in exact]
        return [cls(index, vectors, *each) for each in zip(queries, zip(*parts, strict=True), strict=True)]

    def cells_needed(self, cuts: list[int], target: float) -> tuple[int, int]:
        """How many cells hold a share `target` of the best passages, at least, and how many hold all but a
        thousandth of them: fewer cannot reach the target, and more find nothing new."""
        chain, ivf = inner_index(self.index)
        if not isinstance(faiss.downcast_index(ivf.quantizer), faiss.IndexFlat):
            return min(8, ivf.nlist), ivf.nlist
        place = np.empty(
            self._best.shape, np.int64
        )  # of each best passage's cell in the order of the query's
        for start in range(0, len(self.queries), _QUERIES):
            part = slice(start, start + _QUERIES)
            order = ivf.quantizer.search(transformed(chain, self.queries[part]), ivf.nlist)[1]
            order = np.argsort(order, axis=1)
            for query, rows in enumerate(self._best[part], start):
                cells = ivf.quantizer.assign(transformed(chain, self.vectors.gather(rows)), 1)[:, 0]
                place[query] = order[query - start, cells]
            self.vectors.release()

        def holding(share: float) -> int:
            each = (np.sort(place[:, :k], axis=None) for k in cuts)
            return int(max(places[int(np.ceil(share * places.size)) - 1] for places in each)) + 1

        return holding(target), holding(max(target, 0.999))

    def recall(self, k: int, search: dict[str, int]) -> Float32[np.ndarray, " Q"]:
        """Of each query, the share of the k best that is among the candidates."""
        # The first of more candidates are the same ones, except in a graph, where more are looked at for them.
        refine = search["refine"]
        pairs = {(k, refine)}
        if graph_of(self.index) is None and refine in REFINES:
            cuts = [each for each in RECALL_AT if each <= len(self.vectors)]
            times = [1] if keeps_vectors(self.index) else REFINES
            pairs |= {pair for pair in product(cuts, times) if pair[0] * pair[1] <= _WIDEST}
        key = tuple(value for name, value in search.items() if name != "refine")
        known = self._found.setdefault(key, {})
        if (k, refine) not in known:
            known |= self._recalls(pairs - known.keys(), search)
        return known[k, refine]

    def _recalls(
        self, pairs: set[tuple[int, int]], search: dict[str, int]
    ) -> dict[tuple[int, int], Float32[np.ndarray, " Q"]]:
        """`recall` for several pairs of k and refine, by one search."""
        set_search(self.index, search)
        width = max(proposed(*pair, len(self.vectors)) for pair in pairs)
        good = {pair: np.zeros(len(self.queries), np.float32) for pair in pairs}
        for start in range(0, len(self.queries), _QUERIES):
            part = slice(start, start + _QUERIES)
            _, rows = self.index.search(self.queries[part], width)
            scores = np.full(rows.shape, -np.inf, np.float32)  # of those that are exact search's as well
            for query, retrieved in enumerate(rows):
                position = np.searchsorted(self._rows[start + query], retrieved)
                position = position.clip(max=self._rows.shape[1] - 1)
                same = self._rows[start + query, position] == retrieved
                scores[query, same] = self._scores[start + query, position[same]]
            for (k, refine), recalls in good.items():
                enough = scores[:, : proposed(k, refine, len(self.vectors))] >= self.bounds[part, k - 1 : k]
                recalls[part] = np.minimum(enough.sum(axis=1), k) / k
        return good

    def milliseconds(self, search: dict[str, int]) -> float:
        """Of one query at a time, K = 50: of 50 queries, or as many as two seconds are enough for."""
        set_search(self.index, search)
        k = min(max(TUNED_AT), len(self.vectors))
        seconds: list[float] = []
        for query in self.queries[:50]:
            start = time.perf_counter()
            find(self.index, self.vectors, query[None], k, search["refine"])
            seconds.append(time.perf_counter() - start)
            self.vectors.release()
            if sum(seconds) > 2:
                break
        return sum(seconds) / len(seconds) * 1000


def tune(kind: IndexType, trial: Trial) -> dict[str, int]:
    """Of the search parameters that reach the target at K = 5, 20 and 50, the cheapest by `_cost`.

    Where none do: the cheapest that come within 0.002 of the best there are. Recall grows with the effort and with
    refine, so that the least effort that will do is found by doubling and halving, with all candidates re-ranked;
    then more effort is tried for fewer of them.
    """
    space = _Space(kind, trial)
    if len(space.efforts) == len(space.refines(0)) == 1:
        return space.parameters(0, space.refines(0)[0])

    def reached(at: int, refine: int) -> bool:
        each = space.recalls(at, refine)
        return min(r.mean() - 1.64 * r.std() / len(r) ** 0.5 for r in each) >= kind.target_recall

    def mean(at: int, refine: int) -> float:
        return float(min(recall.mean() for recall in space.recalls(at, refine)))

    def widest(at: int) -> int:
        return space.refines(at)[-1]

    first, last = _first(
        len(space.efforts), lambda at: reached(at, widest(at)), lambda at: mean(at, widest(at))
    )
    enough = reached
    if first is None:
        least = mean(last, widest(last)) - 0.002
        first, _ = _first(last + 1, lambda at: mean(at, widest(at)) >= least)
        enough = lambda at, refine: mean(at, refine) >= least  # noqa: E731
    assert first is not None
    chosen, cost, in_vain = (first, widest(first)), np.inf, 0
    for at in range(first, len(space.efforts)):
        refine = next((each for each in space.refines(at) if enough(at, each)), None)
        if refine is not None and space.cost(at, refine) < cost:
            chosen, cost, in_vain = (at, refine), space.cost(at, refine), 0
        elif (in_vain := in_vain + 1) == 2:
            break
        if refine == space.refines(at)[0] or space.cost(at + 1, 1) >= cost:
            break
    return space.parameters(*chosen)


def _first(
    count: int, enough: Callable[[int], bool], gain: Callable[[int], float] | None = None
) -> tuple[int | None, int]:
    """The first of so many numbers that is enough, if all after it are; and the last that was looked at.

    None where there is none, or where the numbers have long stopped to gain anything.
    """
    low, at, step, before = 0, 0, _AT_ONCE, -np.inf
    while not enough(at):
        if at == count - 1:
            return None, at
        if gain is not None:
            if gain(at) < before + 0.0005:
                return None, at
            before = gain(at)
        low, at = at + 1, min(at + step, count - 1)
    high = at
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle + 1, high)
    return high, at


class _Space:
    """The search parameters that there are for an index: efforts by their number, least first, and refine."""

    def __init__(self, kind: IndexType, trial: Trial):
        self.kind = kind
        self.trial = trial
        self.inner = inner_index(trial.index)[1]
        self.graph = graph_of(trial.index)
        self.cuts = [k for k in TUNED_AT if k <= len(trial.vectors)] or [len(trial.vectors)]
        self.effort, given, efforts = "", None, [0]
        if isinstance(self.inner, faiss.IndexIVF):
            self.effort, given = "nprobe", kind.nprobe
            least, most = (1, 1) if given else trial.cells_needed(self.cuts, kind.target_recall)
            efforts = _steps(least, most)
        elif self.graph is not None:
            self.effort, given = "ef_search", kind.ef_search
            efforts = _steps(64, max(64, min(len(trial.vectors), _MOST_CANDIDATES)))
        self.efforts = [given] if given else efforts

    def refines(self, at: int) -> list[int]:
        if self.kind.refine or keeps_vectors(self.trial.index):
            return [self.kind.refine or 1]
        if self.graph is None:
            return list(REFINES)
        # a graph proposes from those that it looks at, so that more candidates than that are a larger ef_search
        most, passages = self.efforts[at], len(self.trial.vectors)
        return [each for each in REFINES if each == 1 or proposed(self.cuts[-1], each, passages) <= most]

    def parameters(self, at: int, refine: int) -> dict[str, int]:
        return ({self.effort: self.efforts[at]} if self.effort else {}) | {"refine": refine}

    def recalls(self, at: int, refine: int) -> list[Float32[np.ndarray, " Q"]]:
        return [self.trial.recall(k, self.parameters(at, refine)) for k in self.cuts]

    def cost(self, at: int, refine: int) -> float:
        """What a query with K = 50 reads, in bytes of codes that are read in order; ∞ beyond the last effort.

        Measured on one core (768 dimensions, a million vectors): codes of scalar quantisers and of RaBitQ at 13
        bytes a nanosecond, those of a product quantiser, which are looked up, at a fifth of that; true vectors, read
        at random, at a twelfth; RaBitQ quantises the query anew for each cell in 3.6 μs.
        """
        if at >= len(self.efforts):
            return np.inf
        value, dim, passages = self.efforts[at], self.trial.vectors.dim, len(self.trial.vectors)
        candidates = proposed(self.cuts[-1], refine, passages)
        if isinstance(self.inner, faiss.IndexIVF):
            size = self.inner.code_size * (5 if isinstance(self.inner, faiss.IndexIVFPQ) else 1)
            codes = value * (
                passages * size / self.inner.nlist + 4 * dim * (15 if quantises_by_cell(self.inner) else 1)
            )
        elif self.graph is not None:
            size = faiss.downcast_index(self.inner.storage).sa_code_size()
            codes = max(value, candidates) * self.graph.nb_neighbors(0) * size
        else:
            codes = passages * self.inner.sa_code_size()
        return codes + (12 * candidates * 4 * dim if refine > 1 else 0)


def _steps(least: int, most: int) -> list[int]:
    """From the least to the most, each an eighth of a doubling more than the one before."""
    steps = (int(least * 2 ** (n / _AT_ONCE)) for n in range(64 * _AT_ONCE))
    return sorted({*takewhile(lambda each: each < most, steps), most})
