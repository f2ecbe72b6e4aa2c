"""Section 2.2: every passage embedded once, d(z), in shards that can be made in parallel and resumed."""

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from filelock import Timeout
from jaxtyping import Bool, Float32, Int64

from rag.errors import UserError
from rag.files import lock_file, read_json, write_aside, write_json
from rag.index.corpus_files import FORMATS
from rag.index.passage import Passage
from rag.index.passages import PassageStore
from rag.index.reading import AS_USUAL, CorpusReading
from rag.index.vectors import BLOCK_ROWS, PLAN_FORMAT, EncoderInfo, shard_file, shard_shape
from rag.progress import progress_bar

_LOOK_AGAIN = 1.0  # seconds, where other processes are at work on all that is left
_LOCK_HOLDER = ".lock-holder"  # the process that builds in a folder


def prepare(
    corpus: Path | str,
    folder: Path | str,
    show_progress: bool = True,
    reading: CorpusReading = AS_USUAL,
) -> PassageStore:
    """The first step: the passages of `corpus`, a file or folder that `read_passages` reads, in `folder`/passages.

    A store that is already there is opened. One process calls this, before all of them embed. Raises
    UserError if the corpus is malformed or is not the one that the folder was started with, or if another build
    is at work in the folder.
    """
    folder = Path(folder)
    if not Path(corpus).exists():
        raise UserError(f"{corpus} does not exist: give the path of a corpus ({FORMATS})")
    with lock_folder(folder):
        return PassageStore.prepare(corpus, folder / "passages", show_progress, reading)


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


class PassageEncoder(Protocol):
    """d(z), as far as an index needs it: what `rag.encoders.open_passage_encoder` returns, or one of your own."""

    def encode(self, passages: Sequence[Passage]) -> Float32[np.ndarray, "N D"]:
        """The vectors of some passages."""
        ...

    def describe(self) -> EncoderInfo:
        """What the manifest says of the vectors' encoder. An index is refused for another one's."""
        ...


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
    `process_count`-th shard and then what is left of the others': those of a process that is gone, or slower. It
    returns when all shards are there.

    Raises UserError if the folder was started with another corpus, encoder or shard size, if another build is
    at work in it, if it cannot be written, or if `encode` or `known` gives something else than one finite
    vector a passage.
    """
    folder = Path(folder)
    plan = {
        "format": PLAN_FORMAT,
        "encoder": asdict(encoder),
        "origin": "encoded" if known is None else known.origin,
        "corpus_sha256": store.sha256,
        "passages": len(store),
        "shard_size": shard_size,
    }
    with lock_folder(folder, process_index, process_count):
        _agree(folder, plan)
        starts = range(0, len(store), shard_size)
        sizes = {n: min(shard_size, len(store) - start) for n, start in enumerate(starts)}
        left = [n for n in sizes if not _is_there(folder, n, sizes[n])]
        left.sort(key=lambda n: (n - process_index) % process_count)  # its own first, then the next process's
        done, made = len(store) - sum(sizes[n] for n in left), 0
        with progress_bar("embedding passages", len(store), "passages", done, show_progress) as bar:
            for number in _claimed(folder, left, sizes, process_count, bar):
                began = time.perf_counter()
                shard = _shard(store, encode, known, starts[number], sizes[number], batch_size, bar)
                with write_aside(shard_file(folder / "vectors", number)) as aside, open(aside, "wb") as file:
                    np.save(file, shard, allow_pickle=False)
                del shard  # or the next one would be made beside it
                _took(folder, process_index, process_count, time.perf_counter() - began)
                made += sizes[number]
    return made


def _claimed(
    folder: Path, left: list[int], sizes: dict[int, int], process_count: int, bar: Callable[[int], None]
) -> Iterator[int]:
    """The shards of `left` that nobody else makes, each while this process holds the lock of its claim; until all are
    there. The system drops the lock of a process that is gone, and its shard is another's then."""
    if process_count == 1:
        yield from left
        return
    while left:
        others = []
        for number in left:
            claim = lock_file(folder / "vectors" / f".claim-{number:05d}", wait=False)
            try:
                claim.acquire()
            except Timeout:
                others.append(number)
                continue
            try:
                if _is_there(folder, number, sizes[number]):
                    bar(sizes[number])
                else:
                    yield number
            finally:
                claim.release()
        if left := others:
            time.sleep(_LOOK_AGAIN)


def _is_there(folder: Path, number: int, rows: int) -> bool:
    return (shard_shape(shard_file(folder / "vectors", number)) or (0,))[0] == rows


def _took(folder: Path, process_index: int, process_count: int, seconds: float) -> None:
    """Add up the seconds of this process, over all runs that were needed, beside the shards."""
    path = folder / "vectors" / f"seconds-{process_index}-of-{process_count}.json"
    before = read_json(path)["seconds"] if path.exists() else 0.0
    write_json(path, {"seconds": before + seconds})


def seconds_embedding(folder: Path) -> float | None:
    """What the vectors in `folder` took, all processes together; None where that was not written down."""
    files = sorted((folder / "vectors").glob("seconds-*-of-*.json"))
    return sum(read_json(file)["seconds"] for file in files) if files else None


def _agree(folder: Path, plan: dict[str, Any]) -> None:
    """Write down whose vectors these will be; refuse to mix them with those of an earlier, other plan."""
    path = folder / "vectors" / "plan.json"
    if not path.is_file():
        write_json(path, plan)
        return
    begun = read_json(path)
    instead = f"choose another index.path, or delete {path.parent} to start over"
    if begun.get("corpus_sha256") != plan["corpus_sha256"]:
        raise UserError(
            f"{folder} was started with another corpus ({begun.get('passages', 0):,} passages, hash "
            f"{str(begun.get('corpus_sha256'))[:12]}; now {plan['passages']:,}, "
            f"{plan['corpus_sha256'][:12]}): {instead}"
        )
    was, now = EncoderInfo(**begun["encoder"]), EncoderInfo(**plan["encoder"])
    if not was.may_be(now):
        raise UserError(
            f"{folder} was started with the passage encoder {was.name} (weights {was.weights}), not with "
            f"{now.name} (weights {now.weights}): {instead}"
        )
    if was.precision != now.precision:
        before, wanted = (
            "in the usual precision" if each.precision is None else f"in {each.precision}"
            for each in (was, now)
        )
        as_before = f"give {was.precision}=true" if was.precision else f"leave {now.precision}=true out"
        raise UserError(
            f"{folder} was started {before}, not {wanted}: {as_before}, or delete {path.parent} to start over"
        )
    if begun.get("shard_size") != plan["shard_size"]:
        raise UserError(
            f"{folder} was started with shard_size={begun.get('shard_size')}, not {plan['shard_size']}: "
            "give that one, or "
            f"delete {path.parent} to start over"
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
    for begin in range(start, start + count, BLOCK_ROWS):
        rows = np.arange(begin, min(begin + BLOCK_ROWS, start + count))
        if shard is not None and known is not None:
            part = shard[begin - start : begin - start + len(rows)]
            have = known.fill(begin, part)
            broken = have & ~np.isfinite(part).all(axis=1)
            if broken.any():
                raise UserError(
                    f"the vector of passage {store[rows[broken][0]].id!r} {known.origin} is not finite: "
                    "download the vectors again"
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
