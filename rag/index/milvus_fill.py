"""A collection filled from the vectors of an index folder, its recall measured, the folder's manifest written last.

    vectors/*.npy, passages/ ──batches──▶ collection        collection.json: its name, and the rows that are in it

A batch counts once the engine has acknowledged it and collection.json says so. After a kill the batch that was under
way is written again by its keys, so that no row is there twice and none is missing; the count at the end says the same,
and what an engine lost is found by halves and written again.
"""

import platform
import time
import uuid
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Float32

from rag.errors import UserError
from rag.files import read_json, write_json
from rag.index.build import described_files, is_cosine, measured_with, timed
from rag.index.editions import remove_half_written
from rag.index.embed import lock_folder, seconds_embedding
from rag.index.manifest import CorpusInfo, Manifest
from rag.index.milvus_collection import MESSAGE, Collection
from rag.index.milvus_connection import Connection
from rag.index.milvus_type import EFFORT, GRAPHS, JOURNAL, KEEPS_VECTORS, MilvusType
from rag.index.opening import IndexFiles, open_files
from rag.index.passages import PassageStore
from rag.index.tuning import RECALL_AT, TUNED_AT, find, proposed, true_scores
from rag.index.vectors import EncoderInfo, Vectors, exact_search, open_vectors
from rag.progress import progress_bar

_TEXT_BYTES = 1_000  # of a passage, about
_AGAIN = 4_096  # rows that are written again at a time where some are missing


def fill(
    folder: Path | str,
    type: MilvusType,
    queries: Float32[np.ndarray, "Q D"] | None = None,
    recall_queries: int = 200,
    seed: int = 0,
    show_progress: bool = True,
    replaces: IndexFiles | None = None,
) -> Manifest:
    """Fill a collection with the vectors and passages in `folder`, as `build` makes index.faiss; its manifest.

    replaces: the edition whose place this one will take; `drop_replaced` drops its collection then.

    A call that was interrupted is taken up by the next. Raises UserError as `build` does, and for an engine that does
    not answer, cannot search so, or loses what it took.
    """
    folder = Path(folder)
    with lock_folder(folder):
        remove_half_written(folder)
        store = PassageStore.open(folder / "passages")
        took = seconds_embedding(folder)
        seconds: dict[str, float] = {} if took is None else {"embed": took}
        plan, vectors = open_vectors(folder, store)
        connection = Connection(type.place(folder))
        journal = _begun(folder, type, connection, store, plan, replaces)
        collection = Collection(
            connection, journal["collection"], len(store), vectors.dim, type.kind, {}, type.texts, vectors
        )
        with timed(seconds, "add"):
            _write(folder, journal, collection, type, store, vectors, show_progress)
        with timed(seconds, "settle"):
            _settle(collection, store if type.texts else None, vectors, show_progress)
        return _measured(
            folder, type, collection, store, plan, vectors, queries, recall_queries, seed, seconds
        )


def _begun(
    folder: Path,
    type: MilvusType,
    connection: Connection,
    store: PassageStore,
    plan: dict[str, Any],
    replaces: IndexFiles | None,
) -> dict[str, Any]:
    """What an earlier call began of this very collection, or a new beginning."""
    identity = type.identity(store.sha256, plan["encoder"])
    begun = read_json(folder / JOURNAL) if (folder / JOURNAL).is_file() else {}
    if (begun.get("identity"), begun.get("uri")) == (identity, connection.uri):
        return begun
    name = f"{type.name}_{identity}_{uuid.uuid4().hex[:8]}"
    journal: dict[str, Any] = {"collection": name, "identity": identity, "uri": connection.uri, "rows": 0}
    if replaces is not None and (old := replaces.collection) is not None:
        journal["replaces"] = {"uri": old.connection.uri, "collection": old.name}
    write_json(folder / JOURNAL, journal)
    return journal


def is_full(folder: Path) -> bool:
    """Whether the collection of a finished index is there and holds every row. Raises UserError if nobody can tell."""
    collection = open_files(folder).collection
    return collection is None or (collection.exists() and collection.count() == collection.ntotal)


def _write(
    folder: Path,
    journal: dict[str, Any],
    collection: Collection,
    type: MilvusType,
    store: PassageStore,
    vectors: Vectors,
    show_progress: bool,
) -> None:
    """All rows, from where the journal says on."""
    if not collection.exists():
        collection.create(type)
        journal["rows"] = 0
    found = collection.describe()
    if (found.dim, found.metric, found.texts) != (vectors.dim, "IP", type.texts):
        raise UserError(
            f"{collection.where} holds vectors of {found.dim} dimensions searched by {found.metric}, and this "
            f"index has {vectors.dim} by IP: somebody else made it; delete {folder / JOURNAL} to fill another"
        )
    done, again = int(journal["rows"]), True
    step = max(1, MESSAGE // (4 * vectors.dim + (_TEXT_BYTES if type.texts else 0)))
    with progress_bar("filling the collection", len(store), "passages", done, show_progress) as bar:
        for start, block in vectors.blocks(step):
            stop = start + len(block)
            if stop <= done:
                continue
            first = max(start, done)
            passages = store.slice(first, stop) if type.texts else None
            collection.put(first, block[first - start :], passages, again)
            again = False
            journal["rows"] = stop
            write_json(folder / JOURNAL, journal)
            bar(stop - first)


def _settle(
    collection: Collection, store: PassageStore | None, vectors: Vectors, show_progress: bool
) -> None:
    """Wait for the engine's disk and index, load the collection, and see that every row is there once."""
    collection.connection.call("flush", collection.name)
    collection.load()
    with progress_bar("indexing in the engine", collection.ntotal, "passages", show=show_progress) as bar:
        indexed = 0
        while waiting := int(_of_index(collection).get("pending_index_rows") or 0):
            now = collection.ntotal - waiting
            bar(max(0, now - indexed))
            indexed = max(indexed, now)
            time.sleep(1)
        bar(collection.ntotal - indexed)
    if collection.count() == collection.ntotal:
        return
    for start, stop in _incomplete(collection, 0, collection.ntotal):
        collection.put(
            start,
            vectors.gather(np.arange(start, stop)),
            None if store is None else store.slice(start, stop),
            True,
        )
    collection.connection.call("flush", collection.name)
    if (count := collection.count()) != collection.ntotal:
        raise UserError(
            f"{collection.where} holds {count:,} passages after {collection.ntotal:,} were written: another program "
            "writes to it, or the engine loses rows; stop that, and run build_index.py again"
        )


def _of_index(collection: Collection) -> dict[str, Any]:
    return collection.connection.call("describe_index", collection.name, "vector") or {}


def _incomplete(collection: Collection, start: int, stop: int) -> list[tuple[int, int]]:
    """Ranges of at most _AGAIN rows of which some are missing."""
    if collection.count_between(start, stop) == stop - start:
        return []
    if stop - start <= _AGAIN:
        return [(start, stop)]
    middle = (start + stop) // 2
    return _incomplete(collection, start, middle) + _incomplete(collection, middle, stop)


def _measured(
    folder: Path,
    type: MilvusType,
    collection: Collection,
    store: PassageStore,
    plan: dict[str, Any],
    vectors: Vectors,
    queries: Float32[np.ndarray, "Q D"] | None,
    recall_queries: int,
    seed: int,
    seconds: dict[str, float],
) -> Manifest:
    with timed(seconds, "measure"):
        described, measuring, choosing = measured_with(queries, vectors, recall_queries, seed)
        search, recall, milliseconds = measure(type, collection, vectors, measuring, choosing)
    with timed(seconds, "write"):
        files = described_files(folder, len(store), vectors)
    manifest = Manifest(
        encoder=EncoderInfo(**plan["encoder"]),
        corpus=CorpusInfo(str((store.source or {}).get("path", "")), store.sha256, len(store)),
        dim=vectors.dim,
        shard_size=vectors.shard_size,
        factory=type.factory,
        metric="cosine" if is_cosine(EncoderInfo(**plan["encoder"]), vectors) else "inner product",
        search=search,
        recall=recall,
        recall_queries=described,
        ms_per_query=milliseconds,
        threads=0,
        seconds={name: round(value, 3) for name, value in seconds.items()},
        versions={
            "python": platform.python_version(),
            "milvus": str(collection.connection.call("get_server_version")),
            "numpy": np.__version__,
            "pyarrow": pa.__version__,
        },
        files=files,
        vectors=plan.get("origin", "encoded"),
        type=asdict(type),
        engine={
            "uri": type.uri and type.place(folder),  # None: the file beside the folder, wherever that is
            "collection": collection.name,
            "rows": len(store),
            "kind": type.kind,
            "texts": type.texts,
        },
    )
    manifest.write(folder / "manifest.json")
    (folder / "index.faiss").unlink(missing_ok=True)  # of a type that was here before
    return manifest


def measure(
    type: MilvusType,
    collection: Collection,
    vectors: Vectors,
    queries: Float32[np.ndarray, "Q D"],
    choosing: Float32[np.ndarray, "others D"],
) -> tuple[dict[str, int], dict[str, float], float]:
    """Search parameters that reach the target at K = 5, 20 and 50 for the queries `choosing`; the recall by them of
    `queries` at each K, and the milliseconds of one query at a time with K = 50, the way to the engine and back
    included."""
    for given in (queries, choosing):
        if given.ndim != 2 or given.shape[1] != vectors.dim or not len(given):
            raise UserError(
                f"queries of shape {given.shape} cannot measure an index of {vectors.dim} dimensions: embed them with "
                "the question encoder that belongs to the passages' encoder"
            )
    ks = [k for k in RECALL_AT if k <= len(vectors)]
    exact, _ = exact_search(vectors, np.concatenate([queries, choosing]), max(ks))
    refine = type.refine or (1 if type.kind in KEEPS_VECTORS else 4)
    effort = EFFORT[type.kind]
    most = int(type.params.get("nlist", 128)) if effort == "nprobe" else 4_096
    values = [*(n for n in (8 * 2**each for each in range(10)) if n < most), most]
    values = [0] if effort is None else [type.search] if type.search else values
    best: tuple[float, dict[str, int]] | None = None
    for value in values:
        collection.parameters = {} if effort is None else {effort: value}
        recall = _recalls(type, collection, vectors, choosing, exact[len(queries) :], ks, refine)
        worst = min([recall[str(k)] for k in TUNED_AT if k <= len(vectors)] or [recall[str(ks[-1])]])
        if best is None or worst > best[0]:
            best = worst, collection.parameters
        if worst >= type.target_recall:
            break
    assert best is not None
    collection.parameters = best[1]
    recall = _recalls(type, collection, vectors, queries, exact[: len(queries)], ks, refine)
    k = min(max(TUNED_AT), len(vectors))
    some, began = queries[:20], time.perf_counter()
    for query in some:
        find(collection, vectors, query[None], k, refine)
    seconds = (time.perf_counter() - began) / len(some)
    return best[1] | {"refine": refine}, recall, round(seconds * 1000, 3)


def _recalls(
    type: MilvusType,
    collection: Collection,
    vectors: Vectors,
    queries: Float32[np.ndarray, "Q D"],
    exact: Float32[np.ndarray, "Q K"],
    ks: list[int],
    refine: int,
) -> dict[str, float]:
    """The mean share of the K best passages that is among refine·K candidates, for each K; one with the score of the
    K-th best counts as found too."""
    recall, scores = {}, np.empty((0, 0), np.float32)
    for k in sorted(ks, reverse=True):
        candidates = proposed(k, refine, len(vectors))
        if (
            type.kind in GRAPHS or not scores.size
        ):  # a graph looks at more for more; the others find the same first
            scores = true_scores(vectors, queries, collection.search(queries, candidates)[1])
        bound = exact[:, k - 1 : k] - 1e-5 * np.maximum(1, np.abs(exact[:, k - 1 : k]))
        found = np.minimum((scores[:, :candidates] >= bound).sum(axis=1), k)
        recall[str(k)] = round(float(found.mean() / k), 4)
    return {str(k): recall[str(k)] for k in ks}
