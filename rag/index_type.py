"""Section 2.2: the types of FAISS index, and how one is trained, filled, tuned and searched in bounded memory.

    IndexType ──new_index──▶ empty ──train──▶ ──fill──▶ N vectors ──tune──▶ search parameters ──find──▶ rows

A type is a factory string of FAISS and the few numbers that are not chosen from the corpus. Inner product is
native: p_η(z|x) ∝ exp(d(z)ᵀq(x)) needs no added dimension. The vectors are read from their shards a block at a
time, so that building takes the index's own size and little more. What a compressed index proposes is put in
order by the true vectors (`refine`), whose inner products are the scores of the loss.

Cells. FAISS clusters for inner product into unit directions c, and an IVF index codes the residual x − c. Where
vectors are longer than 1 that is all of x. Here the directions are multiplied by s, the mean of xᵀc over the
sample: no cell changes, because s does not move the largest of xᵀ(s·c), and the residual is as short as one
factor for all cells can make it.

Graphs. HNSW links a vector to its neighbours, and prunes links by the triangle inequality. With inner products
for distances there is neither: long vectors are everybody's neighbours, others are nobody's and cannot be reached.
The graph is made by Euclidean distance and searched by inner product.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
from jaxtyping import Float32, Int64

from rag import lazy_faiss as faiss
from rag.errors import UserError
from rag.vectors import DecodedVectors, Vectors, best, exact_search

RECALL_AT = (1, 5, 20, 50, 100)
TUNED_AT = (5, 20, 50)  # the search parameters are chosen by the worst recall at these K
REFINES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)
POINTS_PER_CENTROID = (
    39  # fewer training vectors than this for each centroid, and k-means is not to be trusted
)
_BLOCK = 2_048  # vectors held in memory at a time
_QUERIES, _WIDEST = 50, 3_200  # searched at a time while tuning, and candidates of each
_GATHERED = 1_024  # vectors that are read one by one at a time: the system maps up to 64 KB for each


@dataclass(frozen=True)
class IndexType:
    """A type of FAISS index, by FAISS's own factory string; what is None is chosen from the corpus.

    factory: as in `faiss.index_factory`; "{nlist}" stands for the number of cells, "{m}" for the bytes that a
        product quantiser keeps of a vector: "Flat", "HNSW32", "SQ8", "SQfp16", "IVF{nlist},SQ8",
        "IVF{nlist},PQ{m}", "HNSW128,SQ8", "RR,IVF{nlist},RaBitQ".
    nlist: cells of an IVF index; None: the largest power of two up to 4·√N that leaves 39 vectors for each.
    train_sample: vectors to find the cells with; None: 39 for each cell, at least 65,536 where there are so
        many.
    nprobe, ef_search: how many cells or candidates a search looks at; None: chosen together with refine, the
        pair that reaches `target_recall` and reads the fewest bytes a query.
    refine: search refine·K candidates and re-rank them by their true vectors; None: 1 if the index keeps
        whole vectors, otherwise one of 1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64.
    target_recall: the least recall against exact search at K = 5, 20 and 50 that will do; it counts as
        reached when its lower bound at 95 % (over the queries measured with) reaches it.
    """

    factory: str = "Flat"
    nlist: int | None = None
    train_sample: int | None = None
    nprobe: int | None = None
    ef_construction: int = 200
    ef_search: int | None = None
    refine: int | None = None
    target_recall: float = 0.99


# ---------------------------------------------------------------------------------- an empty index


def filled_factory(kind: IndexType, passages: int, dim: int) -> str:
    """The factory string with its numbers filled in, for so many passages of so many dimensions."""
    largest = passages // POINTS_PER_CENTROID
    nlist = kind.nlist or 1 << max(0, int(np.log2(max(1, min(4 * passages**0.5, largest)))))
    bytes_kept = next((m for m in range(max(1, dim // 8), 0, -1) if dim % m == 0), 1)
    return kind.factory.replace("{nlist}", str(nlist)).replace("{m}", str(bytes_kept))


def new_index(kind: IndexType, passages: int, dim: int) -> tuple[str, Any]:
    """The factory string with its numbers filled in, and the empty index; refused if it cannot work."""
    largest = passages // POINTS_PER_CENTROID
    factory = filled_factory(kind, passages, dim)
    try:
        index = faiss.index_factory(dim, factory, faiss.METRIC_INNER_PRODUCT)
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1].removeprefix("Error: ")
        raise UserError(
            f"FAISS cannot make an index {factory!r} of {dim} dimensions ({reason}): see "
            'faiss.index_factory, or take factory="Flat" (index=flat)'
        ) from error
    ivf = faiss.try_extract_index_ivf(index)
    if ivf is not None and (ivf.nlist > largest or ivf.nlist < 2):
        can = f"at most {largest} cells, or " if largest > 1 else ""
        needed = max(2, ivf.nlist) * POINTS_PER_CENTROID
        raise UserError(
            f"an index of {max(2, ivf.nlist):,} cells needs {needed:,} passages ({POINTS_PER_CENTROID} for each "
            f"cell) and there are {passages:,}: take {can}a type without cells (index=flat, sq8 or hnsw)"
        )
    coded: Any = faiss.downcast_index(ivf if ivf is not None else index)
    quantiser = getattr(coded, "pq", None)
    if quantiser is not None and quantiser.ksub * POINTS_PER_CENTROID > passages:
        raise UserError(
            f"a product quantiser needs {quantiser.ksub * POINTS_PER_CENTROID:,} passages to learn its "
            f"{quantiser.ksub} centroids and there are {passages:,}: take SQ8, SQfp16 or Flat (index=sq8, "
            "sqfp16 or flat)"
        )
    if quantiser is not None:  # minutes of annealing, for a filter by Hamming distance that is not used here
        coded.do_polysemous_training = False
    if (hnsw := _graph(index)) is not None:
        hnsw.efConstruction = kind.ef_construction
    return factory, index


def _inner(index: Any) -> tuple[list[Any], Any]:
    """The transformations before an index (a rotation), and what they stand before."""
    index = faiss.downcast_index(index)
    if not isinstance(index, faiss.IndexPreTransform):
        return [], index
    transforms: Any = index.chain
    chain = [faiss.downcast_VectorTransform(transforms.at(i)) for i in range(transforms.size())]
    return chain, faiss.downcast_index(index.index)


def _graph(index: Any) -> Any:
    return getattr(_inner(index)[1], "hnsw", None)


def _keeps_vectors(index: Any) -> bool:
    """Whether it holds them whole, so that re-ranking would change nothing."""
    return isinstance(_inner(index)[1], faiss.IndexFlat | faiss.IndexHNSWFlat | faiss.IndexIVFFlat)


def _transform(chain: list[Any], block: np.ndarray) -> np.ndarray:
    for transform in chain:
        block = transform.apply(block)
    return block


def file_bytes(index: Any, passages: int) -> int:
    """How large the file of an index is (empty or full) with so many passages, to about a hundredth."""
    chain, inner = _inner(index)
    if isinstance(inner, faiss.IndexIVF):
        size = passages * (inner.code_size + 8) + inner.nlist * inner.d * 4
        if (quantiser := getattr(inner, "pq", None)) is not None:
            size += quantiser.ksub * inner.d * 4
    elif hasattr(inner, "hnsw"):
        links = inner.hnsw.nb_neighbors(0) + inner.hnsw.nb_neighbors(1) / (inner.hnsw.nb_neighbors(1) - 1)
        size = passages * (faiss.downcast_index(inner.storage).sa_code_size() + 4 * links + 12)
    else:
        size = passages * inner.sa_code_size()
    return int(size) + sum(4 * each.d_in * each.d_out for each in chain)


# ---------------------------------------------------------------------------------- training and filling


def train(index: Any, kind: IndexType, vectors: Vectors, seed: int = 0) -> None:
    """Teach an empty index its rotation, its cells and its quantiser from samples of the vectors.

    The cells are found over a sample that is held at a byte a dimension; the quantiser learns from 16,384
    vectors, or up to 65,536 of a large corpus.
    """
    if index.is_trained:
        return
    chain, inner = _inner(index)
    rows = _sample(min(65_536, max(16_384, len(vectors) // 64)), len(vectors), seed)
    for place, transform in enumerate(chain):
        if not transform.is_trained:
            transform.train(_gather(vectors, rows, chain[:place]))
    if isinstance(inner, faiss.IndexIVF):
        wanted = kind.train_sample or max(65_536, POINTS_PER_CENTROID * inner.nlist)
        more = _sample(wanted, len(vectors), seed)
        if isinstance(faiss.downcast_index(inner.quantizer), faiss.IndexFlat):
            _find_cells(inner, more, vectors, chain, seed)
        else:  # cells that FAISS finds in its own way, as with IVF4096_HNSW128
            rows = more
    inner.train(_gather(vectors, rows, chain))
    index.is_trained = True


def _sample(wanted: int, passages: int, seed: int) -> Int64[np.ndarray, " S"]:
    if wanted >= passages:
        return np.arange(passages)
    rows = np.random.default_rng(seed).choice(passages, wanted, replace=False, shuffle=False)
    return np.sort(rows)


def _gather(vectors: Vectors, rows: Int64[np.ndarray, " S"], chain: list[Any]) -> Float32[np.ndarray, "S D"]:
    """The transformed vectors of `rows`, few of them held in their own form at a time."""
    gathered = np.empty((len(rows), chain[-1].d_out if chain else vectors.dim), np.float32)
    for start in range(0, len(rows), _GATHERED):
        part = slice(start, start + _GATHERED)
        gathered[part] = _transform(chain, vectors.gather(rows[part]))
        vectors.release()
    return gathered


def _find_cells(
    ivf: Any, rows: Int64[np.ndarray, " S"], vectors: Vectors, chain: list[Any], seed: int
) -> None:
    """k-means for inner product over the sample, at a byte a dimension; centroids of the vectors' length."""
    codec = faiss.IndexScalarQuantizer(ivf.d, faiss.ScalarQuantizer.QT_8bit, faiss.METRIC_INNER_PRODUCT)
    codes = np.empty((len(rows), codec.sa_code_size()), np.uint8)
    for start in range(0, len(rows), 4 * _BLOCK):
        block = _gather(vectors, rows[start : start + 4 * _BLOCK], chain)
        if not codec.is_trained:
            codec.train(block)
        codes[start : start + len(block)] = codec.sa_encode(block)
    clustering = faiss.Clustering(ivf.d, ivf.nlist)
    clustering.spherical = True
    clustering.niter = ivf.cp.niter
    clustering.max_points_per_centroid = len(rows)
    clustering.seed = seed + 1
    clustering.decode_block_size = _BLOCK
    clustering.train_encoded(codes, codec, ivf.quantizer)
    stats: Any = clustering.iteration_stats
    last = stats.at(stats.size() - 1)
    centroids = faiss.vector_to_array(clustering.centroids).reshape(ivf.nlist, ivf.d)
    ivf.quantizer.reset()
    ivf.quantizer.add(centroids * np.float32(last.obj / len(rows)))


def fill(index: Any, vectors: Vectors, advance: Callable[[int], None] = lambda _: None) -> None:
    """Add all vectors, a block at a time, to memory that is taken once; `advance` hears of each block.

    An IVF index reads the vectors twice: its lists would otherwise grow by doubling, and need twice the index
    at their peak.
    """
    chain, inner = _inner(index)
    lists = faiss.downcast_InvertedLists(inner.invlists) if hasattr(inner, "invlists") else None
    if isinstance(lists, faiss.ArrayInvertedLists):
        _fill_lists(inner, vectors, chain, advance)
        index.ntotal = inner.ntotal
        return
    _reserve(inner, len(vectors))
    is_graph = hasattr(inner, "hnsw")
    if is_graph:
        _measure_by(inner, faiss.METRIC_L2)
    for _, block in vectors.blocks(8 * _BLOCK if is_graph else _BLOCK):  # each addition to a graph has a cost
        index.add(block)
        advance(len(block))
    if is_graph:
        _measure_by(inner, faiss.METRIC_INNER_PRODUCT)


def add_rest(
    index: Any, vectors: Vectors | DecodedVectors, advance: Callable[[int], None] = lambda _: None
) -> None:
    """Add the vectors that an index does not hold yet, those after its last."""
    first = index.ntotal
    advance(first)
    if first == len(vectors):
        return
    _, inner = _inner(index)
    if is_graph := hasattr(inner, "hnsw"):
        _measure_by(inner, faiss.METRIC_L2)
    for start, block in vectors.blocks(_BLOCK):
        new = block[max(0, first - start) :]
        if len(new):
            index.add(new)
            advance(len(new))
    if is_graph:
        _measure_by(inner, faiss.METRIC_INNER_PRODUCT)


def _fill_lists(ivf: Any, vectors: Vectors, chain: list[Any], advance: Callable[[int], None]) -> None:
    cells = np.empty(len(vectors), np.int32)
    for start, block in vectors.blocks(_BLOCK):
        found = ivf.quantizer.assign(_transform(chain, block), 1)
        cells[start : start + len(block)] = found[:, 0]
        advance(len(block) // 2)
    for cell, size in enumerate(np.bincount(cells, minlength=ivf.nlist).tolist()):
        ivf.invlists.resize(cell, size)  # a vector keeps its memory when it shrinks
        ivf.invlists.resize(cell, 0)
    for start, block in vectors.blocks(_BLOCK):
        own = np.ascontiguousarray(_transform(chain, block))
        into = cells[start : start + len(block)].astype(np.int64)
        ivf.add_core(len(own), faiss.swig_ptr(own), None, faiss.swig_ptr(into))
        advance(len(block) - len(block) // 2)


def _measure_by(graph: Any, metric: int) -> None:
    graph.metric_type = faiss.downcast_index(graph.storage).metric_type = metric
    graph.hnsw.is_similarity = metric == faiss.METRIC_INNER_PRODUCT


def _reserve(inner: Any, passages: int) -> None:
    """Take the memory for all codes and links at once."""
    store: Any = faiss.downcast_index(inner.storage) if hasattr(inner, "storage") else inner
    reserved = [(store.codes, passages * store.code_size)] if hasattr(store, "codes") else []
    if hasattr(inner, "hnsw"):
        above = inner.hnsw.nb_neighbors(1)
        links = inner.hnsw.nb_neighbors(0) + 1.02 * above / (above - 1)
        reserved.append((inner.hnsw.neighbors, int(passages * links)))
    for array, size in reserved:
        array.resize(size)
        array.resize(0)


# ---------------------------------------------------------------------------------- searching


def set_search(index: Any, search: dict[str, int]) -> None:
    """Put search parameters into force (nprobe, ef_search; refine is `find`'s)."""
    ivf = faiss.try_extract_index_ivf(index)
    if "nprobe" in search and ivf is not None:
        ivf.nprobe = search["nprobe"]
    hnsw = _graph(index)
    if "ef_search" in search and hnsw is not None:
        hnsw.efSearch = search["ef_search"]


def untuned(index: Any, kind: IndexType) -> dict[str, int]:
    """The search parameters asked for, or else those that an index came with; nothing to re-rank by."""
    ivf = faiss.try_extract_index_ivf(index)
    hnsw = _graph(index)
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


# ---------------------------------------------------------------------------------- tuning


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
        if _graph(self.index) is None and refine in REFINES:
            cuts = [each for each in RECALL_AT if each <= len(self.vectors)]
            times = [1] if _keeps_vectors(self.index) else REFINES
            pairs |= {pair for pair in product(cuts, times) if pair[0] * pair[1] <= _WIDEST}
        key = tuple(value for name, value in search.items() if name != "refine")
        found = self._found.setdefault(key, {})
        if (k, refine) not in found:
            found |= self._recalls(pairs - found.keys(), search)
        return found[k, refine]

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
            for query, found in enumerate(rows):
                place = np.searchsorted(self._rows[start + query], found)
                place = place.clip(max=self._rows.shape[1] - 1)
                same = self._rows[start + query, place] == found
                scores[query, same] = self._scores[start + query, place[same]]
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
    inner = _inner(trial.index)[1]
    cuts = [k for k in TUNED_AT if k <= len(trial.vectors)] or [len(trial.vectors)]
    refines = [kind.refine] if kind.refine else [1] if _keeps_vectors(trial.index) else list(REFINES)
    graph = _graph(trial.index)
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
