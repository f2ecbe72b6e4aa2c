"""Sections 2.2 and 3: index.faiss from the vectors of a folder, its recall measured, its manifest written last."""

import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Float32

from rag.errors import UserError
from rag.files import hash_file, write_aside
from rag.index import lazy_faiss as faiss
from rag.index.catalog import FILE as CATALOG
from rag.index.editions import remove_half_written
from rag.index.embed import lock_folder, seconds_embedding
from rag.index.faiss_types import IndexType, add_rest, fill, new_index, train
from rag.index.manifest import DECODED, CorpusInfo, Manifest
from rag.index.passages import PassageStore
from rag.index.tuning import RECALL_AT, Trial, tune, untuned
from rag.index.vectors import (
    UNKNOWN,
    DecodedVectors,
    EncoderInfo,
    Vectors,
    have_unit_length,
    open_vectors,
    shard_file,
)
from rag.progress import progress_bar


def build(
    folder: Path | str,
    kind: IndexType | str = "Flat",
    queries: Float32[np.ndarray, "Q D"] | None = None,
    recall_queries: int = 200,
    seed: int = 0,
    show_progress: bool = True,
    begun: Any = None,
    encoder: EncoderInfo | None = None,
) -> Manifest:
    """Make index.faiss from the vectors that `embed` wrote, measure its recall, and write the manifest, returned.

    kind: an IndexType, or a factory string for one whose parameters are all chosen from the corpus.
    queries: vectors of held-out questions. None: vectors of sampled passages, each moved by Gaussian noise of half
        its own length (the manifest says which).
    recall_queries: so many of them measure recall, and as many others choose the search parameters; where there are
        fewer, half of them each.
    begun: a FAISS index that holds the vectors of the first rows already, or of all; it is completed instead of
        training one, and `kind` names its filled factory string.
    encoder: whose vectors `begun` holds, where it holds all and there are no true ones.

    An index that is already in the folder stays until the new one is complete. Raises UserError if vectors
    are missing, if the type cannot work for so many passages of so many dimensions, if another build is at
    work in the folder, or if it cannot be written.
    """
    folder = Path(folder)
    kind = IndexType(kind) if isinstance(kind, str) else kind
    with lock_folder(folder):
        remove_half_written(folder)
        store = PassageStore.open(folder / "passages")
        took = seconds_embedding(folder)
        seconds: dict[str, float] = {} if took is None else {"embed": took}
        add = (
            timed(seconds, "add"),
            progress_bar("building the index", len(store), "vectors", show=show_progress),
        )
        if begun is None:
            plan, vectors = open_vectors(folder, store)
            factory, index = new_index(kind, len(vectors), vectors.dim)
            with timed(seconds, "train"):
                train(index, kind, vectors, seed)
            with add[0], add[1] as bar:
                fill(index, vectors, bar)
        else:
            factory, index = kind.factory, begun
            if encoder is not None and not (folder / "vectors" / "plan.json").exists():
                plan, vectors = {"encoder": asdict(encoder)}, DecodedVectors(begun)
            else:
                plan, vectors = open_vectors(folder, store)
            with add[0], add[1] as bar:
                add_rest(index, vectors, bar)

        return _finish(
            folder, store, plan, vectors, kind, factory, index, queries, recall_queries, seed, seconds
        )


def measured_with(
    queries: Float32[np.ndarray, "Q D"] | None,
    vectors: Vectors | DecodedVectors,
    recall_queries: int,
    seed: int,
) -> tuple[str, Float32[np.ndarray, "some D"], Float32[np.ndarray, "others D"]]:
    """What recall is measured with: in words, and as vectors; and the vectors that choose the search parameters,
    every other one of the first that were given, or of passages' own vectors, moved. UserError for what is no such
    array."""
    described = "{n} held-out questions"
    if queries is None:
        described = "vectors of {n} sampled passages, each moved by Gaussian noise of half its length"
        queries = perturbed(vectors, 2 * recall_queries, seed)
    queries = np.ascontiguousarray(queries[: 2 * recall_queries], np.float32)
    if queries.ndim != 2 or queries.shape[1] != vectors.dim or not len(queries):
        raise UserError(
            f"queries of shape {queries.shape} cannot measure an index of {vectors.dim} dimensions: "
            "embed them with the question encoder that belongs to the passages' encoder"
        )
    if len(queries) == 1:
        return described.format(n=1), queries, queries
    measuring, choosing = queries[::2], queries[1::2]
    described = described.format(n=len(measuring))
    return f"{described}; {len(choosing)} others chose the search parameters", measuring, choosing


def _finish(
    folder: Path,
    store: PassageStore,
    plan: dict[str, Any],
    vectors: Vectors | DecodedVectors,
    kind: IndexType,
    factory: str,
    index: Any,
    queries: Float32[np.ndarray, "Q D"] | None,
    recall_queries: int,
    seed: int,
    seconds: dict[str, float],
) -> Manifest:
    """Measure an index that holds all vectors, choose its search parameters, write it and its manifest."""
    with timed(seconds, "measure"):
        described, measuring, choosing = measured_with(queries, vectors, recall_queries, seed)
        if isinstance(vectors, Vectors):
            trial, other = Trial.several(index, vectors, measuring, choosing)
            search = tune(kind, other)
            ks = [k for k in RECALL_AT if k <= len(vectors)]
            recall = {str(k): round(float(trial.recall(k, search).mean()), 4) for k in ks}
            ms_per_query = round(trial.milliseconds(search), 3)
        else:
            described = "unknown: there are no true vectors to search exactly"
            search, recall, ms_per_query = untuned(index, kind), {}, 0.0

    with timed(seconds, "write"), write_aside(folder / "index.faiss") as aside:
        _write_faiss(index, aside)
        files = described_files(folder, len(store), vectors) | {"index.faiss": _describe(aside)}
    manifest = Manifest(
        encoder=EncoderInfo(**plan["encoder"]),
        corpus=CorpusInfo(str((store.source or {}).get("path", "")), store.sha256, len(store)),
        dim=vectors.dim,
        shard_size=vectors.shard_size,
        factory=factory,
        metric="cosine" if is_cosine(EncoderInfo(**plan["encoder"]), vectors) else "inner product",
        search=search,
        recall=recall,
        recall_queries=described,
        ms_per_query=ms_per_query,
        threads=faiss.omp_get_max_threads(),
        seconds={name: round(value, 3) for name, value in seconds.items()},
        versions={
            "python": platform.python_version(),
            "faiss": faiss.__version__,
            "numpy": np.__version__,
            "pyarrow": pa.__version__,
        },
        files=files,
        vectors=plan.get("origin", "encoded") if isinstance(vectors, Vectors) else DECODED,
        type=asdict(kind),
    )
    manifest.write(folder / "manifest.json")
    return manifest


def is_cosine(encoder: EncoderInfo, vectors: Vectors | DecodedVectors) -> bool:
    """Whether inner products of these vectors are cosines: as their encoder says or, unknown, as they are."""
    if encoder.reading is not None:
        return bool(encoder.reading["normalize"])
    return encoder.weights == UNKNOWN and bool(have_unit_length(vectors))


@contextmanager
def timed(seconds: dict[str, float], name: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    seconds[name] = time.perf_counter() - start


def described_files(
    folder: Path, passages: int, vectors: Vectors | DecodedVectors
) -> dict[str, dict[str, Any]]:
    """Name → bytes and SHA-256 of what an index is made from: its passages and its true vectors."""
    names = ["passages/passages.arrow", "passages/store.json"]
    names += [f"passages/{CATALOG}"] if (folder / "passages" / CATALOG).is_file() else []
    if isinstance(vectors, Vectors):
        shards = range(-(-passages // vectors.shard_size))
        names += ["vectors/plan.json", *(f"vectors/{shard_file(Path(), number)}" for number in shards)]
    return {name: _describe(folder / name) for name in names}


def _describe(path: Path) -> dict[str, Any]:
    return {"bytes": path.stat().st_size, "sha256": hash_file(path)}


def _write_faiss(index: Any, path: Path) -> None:
    try:
        faiss.write_index(index, str(path))
    except RuntimeError as error:
        raise UserError(
            f"{path.parent / 'index.faiss'} cannot be written (FAISS: {str(error).splitlines()[0]}): "
            "choose a place that can be written and has room"
        ) from error


def perturbed(vectors: Vectors | DecodedVectors, count: int, seed: int) -> Float32[np.ndarray, "Q D"]:
    random = np.random.default_rng(seed)
    rows = random.choice(len(vectors), min(count, len(vectors)), replace=False)
    sample = vectors.gather(np.sort(rows))
    noise = random.standard_normal(sample.shape, np.float32) / vectors.dim**0.5
    return sample + 0.5 * np.linalg.norm(sample, axis=1, keepdims=True) * noise
