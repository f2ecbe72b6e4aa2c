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

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float32, Int64

from rag.errors import UserError
from rag.index import lazy_faiss as faiss
from rag.index.vectors import DecodedVectors, Vectors

POINTS_PER_CENTROID = (
    39  # fewer training vectors than this for each centroid, and k-means is not to be trusted
)
_BLOCK = 2_048  # vectors held in memory at a time
_GATHERED = 1_024  # vectors that are read one by one at a time: the system maps up to 64 KB for each


@dataclass(frozen=True)
class IndexType:
    """A type of FAISS index, by FAISS's own factory string; what is None is chosen from the corpus.

    factory: as in `faiss.index_factory`; "{nlist}" stands for the number of cells, "{m}" for the bytes that a
        product quantiser keeps of a vector: "Flat", "HNSW32", "SQ8", "SQfp16", "IVF{nlist},SQ8",
        "IVF{nlist},PQ{m}", "HNSW128,SQ8", "RR,IVF{nlist},RaBitQ".
    nlist: cells of an IVF index; None: the largest power of two up to 4·√N (2·√N for RaBitQ) that leaves 39 vectors
        for each.
    train_sample: vectors to find the cells with; None: 39 for each cell, at least 65,536 where there are so
        many.
    nprobe, ef_search: how many cells or candidates a search looks at; None: chosen together with refine, the
        pair that reaches `target_recall` and costs a query least.
    refine: search refine·K candidates, 100 at least, and re-rank them by their true vectors; None: 1 if the index keeps
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

    @property
    def search_parameters(self) -> dict[str, int | None]:
        """What a search goes by, as a manifest names it; None: chosen."""
        return {"nprobe": self.nprobe, "ef_search": self.ef_search, "refine": self.refine}


# ---------------------------------------------------------------------------------- an empty index


def filled_factory(kind: IndexType, passages: int, dim: int) -> str:
    """The factory string with its numbers filled in, for so many passages of so many dimensions."""
    largest = passages // POINTS_PER_CENTROID
    # For RaBitQ, a cell costs a query what 450 codes cost, so that fewer of them are quicker.
    wanted = (2 if "RaBitQ" in kind.factory else 4) * passages**0.5
    nlist = kind.nlist or 1 << max(0, int(np.log2(max(1, min(wanted, largest)))))
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
            'faiss.index_factory, or use factory="Flat" (index=flat)'
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
            f"{quantiser.ksub} centroids and there are {passages:,}: use SQ8, SQfp16 or Flat (index=sq8, "
            "sqfp16 or flat)"
        )
    if quantiser is not None:  # minutes of annealing, for a filter by Hamming distance that is not used here
        coded.do_polysemous_training = False
    if (hnsw := graph_of(index)) is not None:
        hnsw.efConstruction = kind.ef_construction
    return factory, index


def inner_index(index: Any) -> tuple[list[Any], Any]:
    """The transformations before an index (a rotation), and what they stand before."""
    index = faiss.downcast_index(index)
    if not isinstance(index, faiss.IndexPreTransform):
        return [], index
    transforms: Any = index.chain
    chain = [faiss.downcast_VectorTransform(transforms.at(i)) for i in range(transforms.size())]
    return chain, faiss.downcast_index(index.index)


def graph_of(index: Any) -> Any:
    return getattr(inner_index(index)[1], "hnsw", None)


def keeps_vectors(index: Any) -> bool:
    """Whether it holds them whole, so that re-ranking would change nothing."""
    return isinstance(inner_index(index)[1], faiss.IndexFlat | faiss.IndexHNSWFlat | faiss.IndexIVFFlat)


def transformed(chain: list[Any], block: np.ndarray) -> np.ndarray:
    for transform in chain:
        block = transform.apply(block)
    return block


def quantises_by_cell(index: Any) -> bool:
    """Whether a search quantises the query anew for each cell that it looks at, as RaBitQ does."""
    return isinstance(index, faiss.IndexIVFRaBitQ)


def _links(hnsw: Any, margin: float = 1.0) -> float:
    """Places for links that a graph keeps for a vector, on the average: one in M stands a layer higher, so that the
    layers above the lowest, of M links each, add M / (M − 1)."""
    above = hnsw.nb_neighbors(1)
    return hnsw.nb_neighbors(0) + margin * above / (above - 1)


def file_bytes(index: Any, passages: int) -> int:
    """How large the file of an index is (empty or full) with so many passages, to about a hundredth."""
    chain, inner = inner_index(index)
    if isinstance(inner, faiss.IndexIVF):
        size = passages * (inner.code_size + 8) + inner.nlist * inner.d * 4
        if (quantiser := getattr(inner, "pq", None)) is not None:
            size += quantiser.ksub * inner.d * 4
    elif hasattr(inner, "hnsw"):
        size = passages * (faiss.downcast_index(inner.storage).sa_code_size() + 4 * _links(inner.hnsw) + 12)
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
    chain, inner = inner_index(index)
    rows = _sample(code_sample(len(vectors)), len(vectors), seed)
    for number, transform in enumerate(chain):
        if not transform.is_trained:
            transform.train(_gather(vectors, rows, chain[:number]))
    if isinstance(inner, faiss.IndexIVF):
        more = _sample(cell_sample(kind, inner.nlist, len(vectors)), len(vectors), seed)
        if isinstance(faiss.downcast_index(inner.quantizer), faiss.IndexFlat):
            _find_cells(inner, more, vectors, chain, seed)
        else:  # cells that FAISS finds in its own way, as with IVF4096_HNSW128
            rows = more
    inner.train(_gather(vectors, rows, chain))
    index.is_trained = True


def cell_sample(kind: IndexType, nlist: int, passages: int) -> int:
    """How many vectors the cells are found with."""
    return min(passages, kind.train_sample or max(65_536, POINTS_PER_CENTROID * nlist))


def code_sample(passages: int) -> int:
    """How many vectors a quantiser of codes learns from."""
    return min(passages, 65_536, max(16_384, passages // 64))


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
        gathered[part] = transformed(chain, vectors.gather(rows[part]))
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
    chain, inner = inner_index(index)
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
    _, inner = inner_index(index)
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
    cell_of, before = _cells_before(ivf, chain)
    for start, block in vectors.blocks(_BLOCK):
        nearest = cell_of.assign(transformed(before, block), 1)
        cells[start : start + len(block)] = nearest[:, 0]
        advance(len(block) // 2)
    for cell, size in enumerate(np.bincount(cells, minlength=ivf.nlist).tolist()):
        ivf.invlists.resize(cell, size)  # a vector keeps its memory when it shrinks
        ivf.invlists.resize(cell, 0)
    for start, block in vectors.blocks(_BLOCK):
        inside = np.ascontiguousarray(transformed(chain, block))
        into = cells[start : start + len(block)].astype(np.int64)
        ivf.add_core(len(inside), faiss.swig_ptr(inside), None, faiss.swig_ptr(into))
        advance(len(block) - len(block) // 2)


def _cells_before(ivf: Any, chain: list[Any]) -> tuple[Any, list[Any]]:
    """The index of the cells, and the transformations before it: none where all of them are rotations, which the
    cells can be turned back by, once, instead of every vector forth."""
    rotations = [isinstance(each, faiss.LinearTransform) and each.is_orthonormal for each in chain]
    if (
        not all(rotations)
        or any(each.d_in != each.d_out or each.have_bias for each in chain)
        or not (isinstance(faiss.downcast_index(ivf.quantizer), faiss.IndexFlat) and chain)
    ):
        return ivf.quantizer, chain
    centroids = ivf.quantizer.reconstruct_n(0, ivf.nlist)
    for each in reversed(chain):
        centroids = each.reverse_transform(centroids)
    turned = faiss.IndexFlat(ivf.d, ivf.quantizer.metric_type)
    turned.add(centroids)
    return turned, []


def _measure_by(graph: Any, metric: int) -> None:
    graph.metric_type = faiss.downcast_index(graph.storage).metric_type = metric
    graph.hnsw.is_similarity = metric == faiss.METRIC_INNER_PRODUCT


def _reserve(inner: Any, passages: int) -> None:
    """Take the memory for all codes and links at once."""
    store: Any = faiss.downcast_index(inner.storage) if hasattr(inner, "storage") else inner
    reserved = [(store.codes, passages * store.code_size)] if hasattr(store, "codes") else []
    if hasattr(inner, "hnsw"):
        reserved.append((inner.hnsw.neighbors, int(passages * _links(inner.hnsw, 1.02))))
    for array, size in reserved:
        array.resize(size)
        array.resize(0)


# ---------------------------------------------------------------------------------- searching


# ---------------------------------------------------------------------------------- tuning
