"""What an index will cost: counted against what it then takes."""

import gzip
import json
import lzma
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rag.errors import UserError
from rag.index.build import build
from rag.index.embed import embed
from rag.index.estimate import count_passages, estimate
from rag.index.faiss_types import IndexType
from rag.index.passage import Passage
from rag.index.passages import PassageStore
from rag.index.readers import read_passages
from rag.index.vectors import EncoderInfo

N, D = 6_000, 16
ROWS = [(str(i + 1), f"title {i % 50}", f"passage {i} " + "word " * (i * 7 % 60 + 1)) for i in range(N)]


def encode(passages: list[Passage]) -> np.ndarray:
    return np.stack([np.random.default_rng(int(p.id)).standard_normal(D, np.float32) for p in passages])


def write(path: Path) -> Path:
    if path.suffix == ".parquet":
        pq.write_table(
            pa.table(dict(zip(("id", "title", "text"), zip(*ROWS, strict=True), strict=True))), path
        )
        return path
    if ".tsv" in path.name:
        lines = ["id\ttext\ttitle", *(f'{id}\t"{text}"\t{title}' for id, title, text in ROWS)]
    else:
        lines = [json.dumps({"id": id, "title": title, "text": text}) for id, title, text in ROWS]
    opened = {".gz": gzip.open, ".xz": lzma.open}.get(path.suffix, open)
    with opened(path, "wt") as file:
        file.write("\n".join(lines) + "\n")
    return path


@pytest.mark.parametrize("name", ["c.tsv", "c.tsv.gz", "c.tsv.xz", "c.jsonl", "c.jsonl.gz", "c.parquet"])
def test_passages_are_counted_or_estimated_from_the_first(tmp_path, name):
    costs = estimate(write(tmp_path / name), IndexType(), D, encode, passages_per_second=100)
    assert costs.counted is (name == "c.parquet")
    assert costs.passages == (N if costs.counted else pytest.approx(N, rel=0.03))
    assert costs.seconds_embedding == pytest.approx(costs.passages / 100)


def test_few_passages_are_counted():
    sample = [Passage("1", "", "x")] * 3
    assert count_passages(Path("c.tsv"), sample, 2.0) == (3, True)


@pytest.mark.parametrize("factory", ["Flat", "SQ8", "IVF{nlist},RaBitQ", "HNSW16"])
def test_the_sizes_are_those_of_the_index_that_is_built(tmp_path, factory):
    corpus, folder, kind = write(tmp_path / "c.parquet"), tmp_path / "index", IndexType(factory)
    costs = estimate(corpus, kind, D, encode)
    store = PassageStore.write(read_passages(corpus), folder / "passages")
    embed(store, encode, folder, EncoderInfo("made", "w", "t"), batch_size=1_000, show_progress=False)
    manifest = build(folder, kind, show_progress=False)
    sizes = {name: each["bytes"] for name, each in manifest.files.items()}
    assert costs.factory == manifest.factory
    assert costs.disk_index == pytest.approx(sizes["index.faiss"], rel=0.03)
    assert costs.disk_vectors == pytest.approx(sizes["vectors/00000.npy"], rel=0.01)
    assert costs.disk_passages == pytest.approx(sizes["passages/passages.arrow"], rel=0.1)
    whole = factory in ("Flat", "HNSW16")
    assert costs.memory_all - costs.memory_least == (0 if whole else costs.disk_vectors)
    assert costs.seconds_embedding > 0 and costs.seconds_index > 0


def test_processes_share_the_embedding(tmp_path):
    corpus = write(tmp_path / "c.parquet")
    costs = estimate(corpus, IndexType(), D, encode, processes=4, passages_per_second=50)
    assert costs.seconds_embedding == pytest.approx(N / 50 / 4)


def test_a_type_that_cannot_work_is_refused_before_anything_is_done(tmp_path):
    corpus = write(tmp_path / "c.parquet")
    with pytest.raises(UserError, match="an index of 1,000 cells needs 39,000 passages"):
        estimate(corpus, IndexType("IVF1000,SQ8"), D, encode)
