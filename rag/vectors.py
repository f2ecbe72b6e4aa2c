"""Section 2.2: the vectors d(z) of all passages, made once by the passage encoder and kept on disk.

    passages/ ──embed──▶ vectors/00000.npy, 00001.npy, … and plan.json

d(z) = BERT_d(z) is never trained again (section 2.4), so that every index is made from these vectors, and the
loss takes its q(x)ᵀd(z) from them. They stand in shards of equally many rows, float32, N in all and of D
dimensions each; a shard appears when it is complete. plan.json says which encoder and which passages they are
of. They are read by mapping the shards.
"""

import mmap
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from filelock import Timeout
from jaxtyping import Bool, Float32, Int64

from rag import lazy_faiss as faiss
from rag.errors import UserError
from rag.files import lock_file, read_json, write_aside, write_json
from rag.passages import FORMATS, Passage, PassageStore
from rag.progress import progress_bar

UNKNOWN = "unknown"
_PLAN_FORMAT = 1
_LOCK_HOLDER = ".lock-holder"  # the process that builds in a folder
_BLOCK = 16_384  # rows held in memory at a time


@dataclass(frozen=True)
class EncoderInfo:
    """Whose vectors these are: the passage encoder's name, the hash of its weights, its tokenizer's
    fingerprint; both are UNKNOWN where vectors were taken over and their encoder was not at hand.

    question_encoder: the weights' hash of the question encoder that it was trained with, if known.
    """

    name: str
    weights: str
    tokenizer: str
    question_encoder: str | None = None

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
        self._shards: dict[int, np.ndarray] = {}
        self._maps: list[mmap.mmap] = []

    def __len__(self) -> int:
        return self._length

    def _shard(self, number: int) -> np.ndarray:
        if number not in self._shards:
            # "copy on write": torch warns of arrays that cannot be written; nobody writes
            mapped: Any = np.load(shard_file(self.folder, number), mmap_mode="c")
            mapped._mmap.madvise(mmap.MADV_RANDOM)  # from a disk, read a vector for a vector
            self._maps.append(mapped._mmap)
            self._shards[number] = np.asarray(mapped)
        return self._shards[number]

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
        for each in self._maps:
            each.madvise(mmap.MADV_DONTNEED)

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
        return vectors.reshape(*np.shape(rows), self.dim)


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
        found = flat >= 0
        if found.any():
            vectors[found] = self._index.reconstruct_batch(flat[found])
        return vectors.reshape(*np.shape(rows), self.dim)


def shard_file(folder: Path, number: int) -> Path:
    return folder / f"{number:05d}.npy"


def _shard_shape(file: Path) -> tuple[int, int] | None:
    """Rows and dimensions of a shard; None if it is missing, damaged or cut short."""
    try:
        array = np.load(file, mmap_mode="r")
    except (FileNotFoundError, ValueError, EOFError):
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
        shape = _shard_shape(shard_file(path.parent, number))
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


def prepare(
    corpus: Path | str,
    folder: Path | str,
    show_progress: bool = True,
    encoding: str | None = None,
    words: int | None = None,
) -> PassageStore:
    """The first step: the passages of `corpus`, a file or folder that `read_passages` reads, in
    `folder`/passages. encoding, words: as in `read_passages`.

    A store that is already there is opened. One process calls this, before all of them embed. Raises
    UserError if the corpus is malformed or is not the one that the folder was begun with, or if another build
    is at work in the folder.
    """
    folder = Path(folder)
    if not Path(corpus).exists():
        raise UserError(f"{corpus} does not exist: give the path of a corpus ({FORMATS})")
    with lock_folder(folder):
        return PassageStore.prepare(corpus, folder / "passages", show_progress, encoding, words)


class Known(Protocol):
    """Vectors that exist already, of all passages or of some: a file's, or those of an earlier edition.

    origin: where they are from, for the manifest.
    """

    dim: int
    origin: str

    def fill(self, start: int, vectors: Float32[np.ndarray, "rows D"]) -> Bool[np.ndarray, " rows"]:
        """Put the vectors of the passages from row `start` on into `vectors`, and say of which there are some."""
        ...


Encode = Callable[[list[Passage]], Float32[np.ndarray, "N D"]]


def embed(
    store: PassageStore,
    encode: Encode | None,
    folder: Path | str,
    encoder: EncoderInfo,
    shard_size: int = 50_000,
    batch_size: int = 64,
    process_index: int = 0,
    process_count: int = 1,
    show_progress: bool = True,
    known: Known | None = None,
) -> int:
    """Write the vectors of all passages as shards of `shard_size` rows into `folder`/vectors; return how many
    now.

    encode: may be None where all vectors are known. known: vectors that are taken as they are; what it lacks is
    encoded.

    Passages of like length are encoded together, so that little is padding. A shard appears when it is
    complete; a second run goes on at the first missing one and gives the same bytes. Of `process_count`
    processes, on one machine or several with a common disk, number `process_index` takes every
    `process_count`-th shard.

    Raises UserError if the folder was begun with another corpus, encoder or shard size, if another build is
    at work in it, if it cannot be written, or if `encode` or `known` gives something else than one finite
    vector a passage.
    """
    folder = Path(folder)
    plan = {
        "format": _PLAN_FORMAT,
        "encoder": asdict(encoder),
        "origin": "encoded" if known is None else known.origin,
        "corpus_sha256": store.sha256,
        "passages": len(store),
        "shard_size": shard_size,
    }
    with lock_folder(folder, process_index, process_count):
        _agree(folder, plan)
        starts = {
            n: n * shard_size for n in range(process_index, -(-len(store) // shard_size), process_count)
        }
        sizes = {n: min(shard_size, len(store) - start) for n, start in starts.items()}
        missing = [
            n for n in starts if (_shard_shape(shard_file(folder / "vectors", n)) or (0,))[0] != sizes[n]
        ]
        done = sum(sizes[n] for n in starts if n not in missing)
        with progress_bar("embedding passages", sum(sizes.values()), "passages", done, show_progress) as bar:
            for number in missing:
                shard = _shard(store, encode, known, starts[number], sizes[number], batch_size, bar)
                with write_aside(shard_file(folder / "vectors", number)) as aside, open(aside, "wb") as file:
                    np.save(file, shard, allow_pickle=False)
                del shard  # or the next one would be made beside it
    return sum(sizes[n] for n in missing)


def _agree(folder: Path, plan: dict[str, Any]) -> None:
    """Write down whose vectors these will be; refuse to mix them with those of an earlier, other plan."""
    path = folder / "vectors" / "plan.json"
    if not path.is_file():
        write_json(path, plan)
        return
    begun = read_json(path)
    instead = f"choose another index.path, or delete {path.parent} to begin again"
    if begun.get("corpus_sha256") != plan["corpus_sha256"]:
        raise UserError(
            f"{folder} was begun with another corpus ({begun.get('passages', 0):,} passages, hash "
            f"{str(begun.get('corpus_sha256'))[:12]}; now {plan['passages']:,}, "
            f"{plan['corpus_sha256'][:12]}): {instead}"
        )
    was, now = EncoderInfo(**begun["encoder"]), EncoderInfo(**plan["encoder"])
    if not was.may_be(now):
        raise UserError(
            f"{folder} was begun with the passage encoder {was.name} (weights {was.weights}), not with "
            f"{now.name} (weights {now.weights}): {instead}"
        )
    if begun.get("shard_size") != plan["shard_size"]:
        raise UserError(
            f"{folder} was begun with shard_size={begun.get('shard_size')}, not {plan['shard_size']}: "
            "give that one, or "
            f"delete {path.parent} to begin again"
        )


def _shard(
    store: PassageStore,
    encode: Encode | None,
    known: Known | None,
    start: int,
    count: int,
    batch_size: int,
    bar: Callable[[int], None],
) -> Float32[np.ndarray, "count D"]:
    """The vectors of `count` passages from row `start` on."""
    shard = None if known is None else np.empty((count, known.dim), np.float32)
    for begin in range(start, start + count, _BLOCK):
        rows = np.arange(begin, min(begin + _BLOCK, start + count))
        if shard is not None and known is not None:
            part = shard[begin - start : begin - start + len(rows)]
            have = known.fill(begin, part)
            broken = have & ~np.isfinite(part).all(axis=1)
            if broken.any():
                raise UserError(
                    f"the vector of passage {store[rows[broken][0]].id!r} {known.origin} is not finite: "
                    "fetch the vectors again"
                )
            bar(int(have.sum()))
            rows = rows[~have]
        if not len(rows):
            continue
        if encode is None:
            raise UserError(
                f"passage {store[rows[0]].id!r} has no vector, and there is no encoder to make one"
            )
        for chosen, vectors in _encoded(store, encode, rows, batch_size):
            if shard is None:
                shard = np.empty((count, vectors.shape[1]), np.float32)
            if vectors.shape[1] != shard.shape[1]:
                raise UserError(
                    f"the encoder makes vectors of {vectors.shape[1]} dimensions and the others have "
                    f"{shard.shape[1]}: give the encoder that made them"
                )
            shard[chosen - start] = vectors
            bar(len(chosen))
    assert shard is not None
    return shard


def _encoded(
    store: PassageStore, encode: Encode, rows: Int64[np.ndarray, " N"], batch_size: int
) -> Iterator[tuple[Int64[np.ndarray, " B"], Float32[np.ndarray, "B D"]]]:
    """The vectors of `rows`, batch by batch, passages of like length together."""
    if rows[-1] - rows[0] + 1 == len(rows):
        passages = store.slice(int(rows[0]), int(rows[-1]) + 1)
    else:
        passages = [store[row] for row in rows]
    # the longest first: a batch that does not fit into memory fails at once
    by_length = sorted(range(len(rows)), key=lambda i: -len(passages[i].title) - len(passages[i].text))
    for first in range(0, len(rows), batch_size):
        chosen = by_length[first : first + batch_size]
        vectors = np.asarray(encode([passages[i] for i in chosen]), dtype=np.float32)
        if vectors.ndim != 2 or len(vectors) != len(chosen):
            raise UserError(f"the encoder gave an array of shape {vectors.shape} for {len(chosen)} passages")
        finite = np.isfinite(vectors).all(axis=1)
        if not finite.all():
            bad = passages[chosen[int(np.flatnonzero(~finite)[0])]]
            raise UserError(
                f"the encoder gave a vector that is not finite for passage {bad.id!r}: use a higher precision"
            )
        yield rows[chosen], vectors


# ---------------------------------------------------------------------------------- one build at a time


@contextmanager
def lock_folder(folder: Path, process_index: int = 0, process_count: int = 1) -> Iterator[None]:
    """Keep a second build out of `folder`, apart from the other processes of this one.

    The system drops the lock when the process ends, however it ends; a file beside it only names the process.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _taken(folder / f".lock-{process_index}-of-{process_count}", folder):
            for path in folder.glob(
                ".lock-*-of-*"
            ):  # of a build by another number of processes: nobody may hold one
                if not path.name.endswith(f"-of-{process_count}"):
                    with _taken(path, folder):
                        pass
            (folder / _LOCK_HOLDER).write_text(str(os.getpid()))
            yield
    except PermissionError as error:
        raise UserError(
            f"{folder} cannot be written ({error.strerror}): choose another index.path"
        ) from error
    except (FileExistsError, NotADirectoryError) as error:
        raise UserError(f"{folder} is not a folder: choose another index.path") from error


@contextmanager
def _taken(path: Path, folder: Path) -> Iterator[None]:
    lock = lock_file(path, wait=False)
    try:
        lock.acquire()
    except Timeout:
        holder = folder / _LOCK_HOLDER
        raise UserError(
            f"another build (process {holder.read_text() if holder.is_file() else 'unknown'}) is at work in {folder}: "
            "wait until it has ended, or choose another index.path"
        ) from None
    try:
        yield
    finally:
        lock.release()
