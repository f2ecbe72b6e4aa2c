"""Section 2.2: the vectors d(z) of all passages, made once by the passage encoder and kept on disk.

    passages/ ──embed──▶ vectors/00000.npy, 00001.npy, … and plan.json

d(z) = BERT_d(z) is never trained again (section 2.4), so that every index is made from these vectors, and the
loss takes its q(x)ᵀd(z) from them. They stand in shards of equally many rows, float32, N in all and of D
dimensions each; a shard appears when it is complete. plan.json says which encoder and which passages they are
of. They are read by mapping the shards.
"""

import mmap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, Int64

from rag.errors import UserError
from rag.files import read_json
from rag.index import lazy_faiss as faiss
from rag.index.passages import PassageStore

try:
    import resource
except ImportError:  # Windows, which has no such bound
    resource = None

UNKNOWN = "unknown"
PLAN_FORMAT = 1
SHARDS_OPEN = 4_096  # mapped at a time, where the system sets no bound
BLOCK_ROWS = 16_384  # rows held in memory at a time
LOOKED_AT = 256  # vectors, for whether they have unit length
# What to do about a shard that was altered.
EMBED_AGAIN = "delete it and run build_index.py as before, which embeds the passages of that file alone"


@dataclass(frozen=True)
class EncoderInfo:
    """Whose vectors these are: the passage encoder's name, the hash of its weights, its tokenizer's
    fingerprint; both are UNKNOWN where vectors were taken over and their encoder was not at hand.

    question_encoder: the weights' hash of the question encoder that it was trained with, if known. reading: its
    pooling, normalize and prompt; None: DPR's [CLS], or unknown as the weights are. precision: that of its products,
    where somebody asked for another one than usual.
    """

    name: str
    weights: str
    tokenizer: str
    question_encoder: str | None = None
    reading: dict[str, Any] | None = None
    precision: str | None = None

    def may_be(self, other: "EncoderInfo") -> bool:
        """Whether both are one encoder, as far as is known."""
        if UNKNOWN in (self.weights, other.weights):
            return self.name == other.name
        return (self.weights, self.tokenizer) == (other.weights, other.tokenizer)


# ---------------------------------------------------------------------------------- vectors on disk


class Vectors:
    """The true vectors of all passages, float32, over memory-mapped shards of `shard_size` rows."""

    def __init__(self, folder: Path, passages: int, dim: int, shard_size: int):
        self.folder = folder
        self.dim = dim
        self.shard_size = shard_size
        self._length = passages
        self._shards: dict[int, tuple[np.ndarray, mmap.mmap]] = {}

    def __len__(self) -> int:
        return self._length

    def _shard(self, number: int) -> np.ndarray:
        if number not in self._shards:
            if len(self._shards) >= _open_at_once():  # each holds a descriptor; mapping it again costs little
                self._shards.pop(next(iter(self._shards)))
            # "copy on write": torch warns of arrays that cannot be written; nobody writes
            mapped: Any = np.load(shard_file(self.folder, number), mmap_mode="c")
            mapped._mmap.madvise(mmap.MADV_RANDOM)  # from a disk, read a vector for a vector
            self._shards[number] = np.asarray(mapped), mapped._mmap
        return self._shards[number][0]

    def blocks(self, rows: int = 4_096) -> Iterator[tuple[int, Float32[np.ndarray, "rows D"]]]:
        """All vectors in order, as (first row, views of at most `rows` rows).

        What was passed is released, so that this process holds one block at a time.
        """
        for number in range(-(-self._length // self.shard_size)):
            mapped: Any = np.load(shard_file(self.folder, number), mmap_mode="c")
            mapped._mmap.madvise(mmap.MADV_SEQUENTIAL)
            shard = np.asarray(mapped)
            for start in range(0, len(shard), rows):
                yield number * self.shard_size + start, shard[start : start + rows]
                mapped._mmap.madvise(mmap.MADV_DONTNEED)

    def release(self) -> None:
        """Give back the pages that were read into this process; the system's cache of the files keeps them."""
        for _, mapped in self._shards.values():
            mapped.madvise(mmap.MADV_DONTNEED)

    def gather(self, rows: Int64[np.ndarray, " *shape"]) -> Float32[np.ndarray, "*shape D"]:
        """The vectors of `rows`; zeros where a row is -1 (nothing found)."""
        flat = np.asarray(rows, dtype=np.int64).reshape(-1)
        if flat.size and not (-1 <= flat.min() and flat.max() < self._length):
            raise IndexError(f"rows from {flat.min()} to {flat.max()} of {self._length} vectors")
        vectors = np.zeros((flat.size, self.dim), np.float32)
        shard_of = flat // self.shard_size  # -1 for a row of -1
        for number in np.unique(shard_of):
            if number >= 0:
                here = np.flatnonzero(shard_of == number)
                vectors[here] = self._shard(int(number))[flat[here] - number * self.shard_size]
        if not np.isfinite(vectors).all():
            row = flat[int(np.flatnonzero(~np.isfinite(vectors).all(axis=1))[0])]
            raise self._damaged(int(row) // self.shard_size, f"a vector that is not finite (row {row})")
        return vectors.reshape(*np.shape(rows), self.dim)

    def look(self) -> None:
        """UserError unless every shard has the rows and dimensions that it should; of a few, a vector is read."""
        shards = -(-self._length // self.shard_size)
        some = np.random.default_rng().integers(0, shards, 3)
        for number in range(shards):
            file = shard_file(self.folder, number)
            rows = min(self.shard_size, self._length - number * self.shard_size)
            shape = shard_shape(file)
            if shape != (rows, self.dim):
                found = "no vectors in float32" if shape is None else f"vectors of shape {shape}"
                raise self._damaged(number, f"{found} instead of {(rows, self.dim)}")
            if number in some and not np.isfinite(np.load(file, mmap_mode="r")[-1]).all():
                raise self._damaged(number, "vectors that are not finite")

    def verify(self) -> None:
        """Read every vector; UserError where one is not finite."""
        for start, block in self.blocks():
            if not np.isfinite(block).all():
                raise self._damaged(start // self.shard_size, "vectors that are not finite")

    def _damaged(self, number: int, what: str) -> UserError:
        file = shard_file(self.folder, number)
        return UserError(f"{file} holds {what}, so it was altered: {EMBED_AGAIN}")


class DecodedVectors:
    """What an index's quantiser left of the vectors, for an index that was taken over without the true ones."""

    shard_size = 0

    def __init__(self, index: Any):
        self.dim = index.d
        self._index = index
        self._mapped = False

    def __len__(self) -> int:
        return self._index.ntotal

    def blocks(self, rows: int) -> Iterator[tuple[int, Float32[np.ndarray, "rows D"]]]:
        """All vectors in order, as (first row, at most `rows` of them)."""
        for start in range(0, len(self), rows):
            yield start, self.gather(np.arange(start, min(start + rows, len(self))))

    def gather(self, rows: Int64[np.ndarray, " *shape"]) -> Float32[np.ndarray, "*shape D"]:
        """The vectors of `rows`; zeros where a row is -1 (nothing found)."""
        flat = np.asarray(rows, dtype=np.int64).reshape(-1)
        if flat.size and not (-1 <= flat.min() and flat.max() < len(self)):
            raise IndexError(f"rows from {flat.min()} to {flat.max()} of {len(self)} vectors")
        if not self._mapped:
            self._mapped = True
            ivf = faiss.try_extract_index_ivf(self._index)
            if ivf is not None:
                ivf.make_direct_map()  # where each row is in the cells
        vectors = np.zeros((flat.size, self.dim), np.float32)
        is_passage = flat >= 0
        if is_passage.any():
            vectors[is_passage] = self._index.reconstruct_batch(flat[is_passage])
        return vectors.reshape(*np.shape(rows), self.dim)


def have_unit_length(vectors: Vectors | DecodedVectors) -> bool | None:
    """Whether the first few hundred vectors have unit length, as saved in half precision; None where a quantiser has
    changed them, and so their lengths."""
    if not isinstance(vectors, Vectors):
        return None
    norms = np.linalg.norm(vectors.gather(np.arange(min(len(vectors), LOOKED_AT))), axis=1)
    return bool((np.abs(norms - 1.0) < 1e-2).all())


def _open_at_once() -> int:
    """How many shards may be mapped at a time: a quarter of the files that this process may open."""
    if resource is None:
        return SHARDS_OPEN
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return SHARDS_OPEN if soft == resource.RLIM_INFINITY else max(1, soft // 4)


def shard_file(folder: Path, number: int) -> Path:
    return folder / f"{number:05d}.npy"


def shard_shape(file: Path) -> tuple[int, int] | None:
    """Rows and dimensions of a shard; None if it is missing, damaged or cut short."""
    try:
        array = np.load(file, mmap_mode="r")
    except (OSError, ValueError, EOFError):
        return None
    return array.shape if array.dtype == np.float32 and array.ndim == 2 else None


def open_vectors(folder: Path, store: PassageStore) -> tuple[dict[str, Any], Vectors]:
    path = folder / "vectors" / "plan.json"
    if not path.is_file():
        raise UserError(f"{folder} holds no vectors yet: embed the passages first")
    plan = read_json(path)
    if plan.get("corpus_sha256") != store.sha256:
        raise UserError(
            f"the vectors in {folder} are of another corpus than its passages (hashes "
            f"{str(plan.get('corpus_sha256'))[:12]} and {store.sha256[:12]}): delete {path.parent} and "
            "embed again"
        )
    size = plan["shard_size"]
    rows, dims = 0, set()
    for number in range(-(-len(store) // size)):
        shape = shard_shape(shard_file(path.parent, number))
        if shape and shape[0] == min(size, len(store) - number * size):
            rows += shape[0]
            dims.add(shape[1])
    if rows != len(store):
        raise UserError(
            f"{folder}: {rows:,} vectors for {len(store):,} passages: run build_index.py with this "
            "index.path again "
            f"to embed the missing {len(store) - rows:,}"
        )
    if len(dims) > 1:
        raise UserError(
            f"the vectors in {folder} are of {' and '.join(map(str, sorted(dims)))} dimensions: "
            f"delete {path.parent} and embed again"
        )
    return plan, Vectors(path.parent, len(store), dims.pop(), size)


# ---------------------------------------------------------------------------------- exact search


def exact_search(
    vectors: Vectors, queries: Float32[np.ndarray, "B D"], k: int
) -> tuple[Float32[np.ndarray, "B k"], Int64[np.ndarray, "B k"]]:
    """The k largest inner products with all vectors and their rows, best first: what every index is judged
    by."""
    queries = np.ascontiguousarray(queries, np.float32)
    scores = np.full((len(queries), k), -np.inf, np.float32)
    rows = np.full((len(queries), k), -1, np.int64)
    for start, block in vectors.blocks():
        block_scores, block_rows = faiss.knn(
            queries, block, min(k, len(block)), metric=faiss.METRIC_INNER_PRODUCT
        )
        scores = np.concatenate([scores, block_scores], axis=1)
        rows = np.concatenate([rows, block_rows + start], axis=1)
        scores, rows = best(scores, rows, k)
    return scores, rows


def best(scores: np.ndarray, rows: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(scores, order, axis=1), np.take_along_axis(rows, order, axis=1)


# ---------------------------------------------------------------------------------- embedding


# ---------------------------------------------------------------------------------- one build at a time
