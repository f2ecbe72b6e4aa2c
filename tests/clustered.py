"""A corpus of any size with vectors that depend on its passages alone, so that tests know what has to be found."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from rag.index.build import build
from rag.index.embed import embed
from rag.index.faiss_types import IndexType
from rag.index.folder import Index
from rag.index.passage import Passage
from rag.index.passages import PassageStore
from rag.index.vectors import EncoderInfo

ENCODER = EncoderInfo("tiny-dpr", "w-hash", "t-hash")
D = 16


def vector_of(passage: Passage) -> np.ndarray:
    """A vector that depends on the passage alone: around one of 20 centres, chosen by its title."""
    seed = hashlib.sha256(f"{passage.id} {passage.text}".encode()).digest()
    centre = hashlib.sha256(passage.title.encode()).digest()
    normal = [np.random.default_rng(list(s)).standard_normal(D, np.float32) for s in (seed, centre)]
    return 0.5 * normal[0] + normal[1]


def encode(passages: list[Passage]) -> np.ndarray:
    return np.stack([vector_of(p) for p in passages])


def corpus(count: int) -> list[Passage]:
    return [
        Passage(str(i + 1), f"title {i % 20}", f"number {i}" + " and more" * (i * 7 % 11))
        for i in range(count)
    ]


def make(
    folder: Path, count: int = 50, kind: IndexType | str = "Flat", shard_size: int = 20, **options
) -> Index:
    store = PassageStore.write(corpus(count), folder / "passages")
    embed(store, encode, folder, ENCODER, shard_size, batch_size=7, show_progress=False)
    build(folder, kind, show_progress=False, **options)
    return Index.open(folder)


def random_queries(count: int) -> np.ndarray:
    return np.random.default_rng(5).standard_normal((count, D), np.float32)


def bytes_of(folder: Path) -> dict[str, bytes]:
    """The files of an index, but for locks and for how long the embedding took, which is never the same."""
    files = (f for f in folder.rglob("*") if f.is_file() and not f.name.startswith((".lock", "seconds-")))
    return {str(f.relative_to(folder)): f.read_bytes() for f in files}


def edit_json(path: Path, **changes) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def write_tsv(path: Path, passages) -> Path:
    rows = [f"{p.id}\t{p.text}\t{p.title}" for p in passages]
    path.write_text("\n".join(["id\ttext\ttitle", *rows]) + "\n")
    return path


def write_parquet(folder, passages, files=3, group=7, vectors=None, left_out=(), fixed=False):
    """facebook/wiki_dpr: train-00000-of-00003.parquet with id, text, title, embeddings; several row groups each."""
    folder.mkdir(parents=True, exist_ok=True)
    vectors = encode(passages) if vectors is None else vectors
    kind = pa.list_(pa.float32(), vectors.shape[1]) if fixed else pa.list_(pa.float32())
    bounds = np.linspace(0, len(passages), files + 1).astype(int)
    for number, (first, last) in enumerate(zip(bounds[:-1], bounds[1:], strict=True)):
        part = passages[first:last]
        columns = {
            "id": [p.id for p in part],
            "text": [p.text for p in part],
            "title": [p.title for p in part],
            "embeddings": pa.array(list(vectors[first:last]), kind),
        }
        table = pa.table({name: column for name, column in columns.items() if name not in left_out})
        pq.write_table(table, folder / f"train-{number:05d}-of-{files:05d}.parquet", row_group_size=group)
    return folder
