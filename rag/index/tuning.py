"""How a FAISS index is searched: parameters chosen by measured recall, candidates re-ranked by their true vectors."""

import time
from itertools import product
from typing import Any

import numpy as np
from jaxtyping import Float32, Int64

from rag.index import lazy_faiss as faiss
from rag.index.faiss_types import IndexType, graph_of, inner_index, keeps_vectors
from rag.index.vectors import DecodedVectors, Vectors, best, exact_search

RECALL_AT = (1, 5, 20, 50, 100)
TUNED_AT = (5, 20, 50)  # the search parameters are chosen by the worst recall at these K
REFINES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)
_QUERIES, _WIDEST = 50, 3_200  # searched at a time while tuning, and candidates of each


def set_search(index: Any, search: dict[str, int]) -> None:
    """Put search parameters into force (nprobe, ef_search; refine is `find`'s)."""
    ivf = faiss.try_extract_index_ivf(index)
    if "nprobe" in search and ivf is not None:
        ivf.nprobe = search["nprobe"]
    hnsw = graph_of(index)
    if "ef_search" in search and hnsw is not None:
        hnsw.efSearch = search["ef_search"]


def untuned(index: Any, kind: IndexType) -> dict[str, int]:
    """The search parameters asked for, or else those that an index came with; nothing to re-rank by."""
    ivf = faiss.try_extract_index_ivf(index)
    hnsw = graph_of(index)
    search = {} if ivf is None else {"nprobe": kind.nprobe or ivf.nprobe}
    search |= {} if hnsw is None else {"ef_search": kind.ef_search or hnsw.efSearch}
    return search | {"refine": 1}


def find(
    index: Any, vectors: Vectors | DecodedVectors, queries: Float32[np.ndarray, "B D"], k: int, refine: int
) -> tuple[Float32[np.ndarray, "B k"], Int64[np.ndarray, "B k"]]:
    """Scores and rows of the k best, best first; −inf and −1 where there are fewer.

    With refine > 1, refine·k candidates are put in order by their true vectors, and the scores are exact.
    """
    candidates = min(k * refine, len(vectors))
    scores, rows = index.search(queries, candidates)
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

    def __init__(self, index: Any, vectors: Vectors, queries: Float32[np.ndarray, "Q D"]):
        self.index = index
        self.vectors = vectors
        self.queries = queries
        exact, rows = exact_search(vectors, queries, min(2 * max(RECALL_AT), len(vectors)))
        self.bounds = exact - 1e-5 * np.maximum(1, np.abs(exact))
        order = np.argsort(rows, axis=1)
        self._rows = np.take_along_axis(rows, order, axis=1)
        self._scores = np.take_along_axis(exact, order, axis=1)
        self._found: dict[tuple[int, ...], dict[tuple[int, int], np.ndarray]] = {}

    def recall(self, k: int, search: dict[str, int]) -> Float32[np.ndarray, " Q"]:
        """Of each query, the share of the k best that is among the refine·k candidates."""
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
        width = min(max(k * refine for k, refine in pairs), len(self.vectors))
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
                enough = scores[:, : k * refine] >= self.bounds[part, k - 1 : k]
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
    """Of the search parameters that reach the target at K = 5, 20 and 50, those that read the fewest bytes a query.

    Where none do: the cheapest that come within 0.002 of the best there are.
    """
    inner = inner_index(trial.index)[1]
    cuts = [k for k in TUNED_AT if k <= len(trial.vectors)] or [len(trial.vectors)]
    refines = [kind.refine] if kind.refine else [1] if keeps_vectors(trial.index) else list(REFINES)
    graph = graph_of(trial.index)
    if isinstance(inner, faiss.IndexIVF):
        effort, given = "nprobe", kind.nprobe
        steps = (int(8 * 2 ** (n / 2)) for n in range(64))
        efforts = [*(n for n in steps if n < inner.nlist), inner.nlist]
    elif graph is not None:
        effort, given = "ef_search", kind.ef_search
        efforts = [64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048, 3072, 4096]
    else:
        effort, given, efforts = "", None, [0]

    def bytes_read(value: int, refine: int) -> float:
        """Codes looked at, and true vectors; these are read at random, and count four times."""
        candidates = refine * cuts[-1]
        if isinstance(inner, faiss.IndexIVF):
            codes = len(trial.vectors) * inner.code_size * value / inner.nlist
        elif graph is not None:
            looked_at = max(value, candidates) * graph.nb_neighbors(0)
            codes = looked_at * faiss.downcast_index(inner.storage).sa_code_size()
        else:
            codes = len(trial.vectors) * inner.sa_code_size()
        return codes + (4 * candidates * 4 * trial.vectors.dim if refine > 1 else 0)

    pairs = [(value, refine) for value in ([given] if given else efforts) for refine in refines]
    pairs.sort(key=lambda pair: bytes_read(*pair))
    parameters = [({effort: value} if effort else {}) | {"refine": refine} for value, refine in pairs]
    measured: list[float] = []
    for search in parameters if len(parameters) > 1 else ():
        each = [trial.recall(k, search) for k in cuts]
        measured.append(float(min(recall.mean() for recall in each)))
        error = [recall.std() / len(recall) ** 0.5 for recall in each]
        if min(r.mean() - 1.64 * e for r, e in zip(each, error, strict=True)) >= kind.target_recall:
            return search
    enough = (i for i, recall in enumerate(measured) if recall >= max(measured) - 0.002)
    return parameters[next(enough, 0)]
