"""What an index will cost: counted against what it then takes."""

import gzip
import json
import lzma
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from rag.compose import CONFIGS
from rag.errors import UserError
from rag.index.build import build
from rag.index.embed import embed
from rag.index.estimate import count_passages, estimate
from rag.index.faiss_types import IndexType, cell_sample, code_sample, file_bytes, new_index, train
from rag.index.milvus_estimate import vector_bytes
from rag.index.milvus_type import MilvusType
from rag.index.passage import Passage
from rag.index.passages import PassageStore
from rag.index.readers import read_passages
from rag.index.vectors import EncoderInfo, Vectors, open_vectors

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


PROJECT = CONFIGS.parent
WIKIPEDIA = 21_015_324


def table(path: str, first_column: str) -> list[list[str]]:
    """The cells of the Markdown tables whose head begins so."""
    rows: list[list[str]] = []
    inside = False
    for line in (PROJECT / path).read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        inside = line.startswith("|") and (inside or cells[0] == first_column)
        if inside and not set(line) <= set("|- ") and cells[0] != first_column:
            rows.append(cells)
    return rows


def gigabytes(cell: str, unit: str) -> float:
    return float(re.findall(rf"([\d.]+) {unit}", cell)[0])


def size_of(name: str, passages: int) -> float:
    node = yaml.safe_load((CONFIGS / "index" / f"{name}.yaml").read_text())["type"]
    kind = IndexType(**{key: value for key, value in node.items() if key != "_target_"})
    return file_bytes(new_index(kind, passages, 768)[1], passages)


def test_the_sizes_of_the_documentation_are_the_estimates():
    rows = [
        row
        for row in table("docs/scale.md", "type")
        if (CONFIGS / "index" / f"{row[0].split()[0]}.yaml").exists()
    ]
    disk = [row for row in rows if len(row) == 4 and "GB" in row[2]]
    assert len(disk) == 8
    for name, each, total, _ in disk:
        size = size_of(name.split()[0], WIKIPEDIA)
        assert gigabytes(total, "GB") == pytest.approx(size / 1e9, rel=0.005), name
        assert gigabytes(total, "GiB") == pytest.approx(size / 2**30, abs=0.051), name
        if "=" in each:
            stated = each.split("=")[-1].replace(",", "")
            assert float(stated) == pytest.approx(size / WIKIPEDIA, abs=0.6), name


def test_the_engines_sizes_of_the_documentation_are_the_estimates():
    kinds = {"FLAT, IVF_FLAT": "FLAT", "HNSW, M = 16": "HNSW", "IVF_SQ8": "IVF_SQ8", "DISKANN": "DISKANN"}
    rows = [row for row in table("docs/scale.md", "type") if row[0] in kinds]
    assert len(rows) == len(kinds)
    for name, stated, *_ in rows:
        memory, disk = (int(number.replace(",", "")) for number in stated.split(", "))
        assert (disk, memory) == pytest.approx(vector_bytes(MilvusType(kind=kinds[name]), 768), abs=4), name


def test_the_files_that_the_benchmark_built_have_the_estimated_sizes():
    rows = [row for row in table("benchmarks/RESULTS.md", "type") if len(row) == 15]
    assert len(rows) == 8
    for name, passages, factory, *values in rows:
        count = int(passages.replace(",", ""))
        size = file_bytes(new_index(IndexType(factory), count, 768)[1], count)
        assert float(values[3].replace(",", "")) == pytest.approx(size / 1e6, rel=0.005), name


class Counting(Vectors):
    """Vectors that count how many of them were gathered."""

    gathered = 0

    def gather(self, rows):
        self.gathered += np.size(rows)
        return super().gather(rows)


def test_training_reads_what_the_estimate_counts(tmp_path):
    random = np.random.default_rng(0)
    store = PassageStore.write((Passage(str(i), "", "x") for i in range(20_000)), tmp_path / "passages")
    embed(
        store,
        lambda passages: random.standard_normal((len(passages), D), np.float32),
        tmp_path,
        EncoderInfo("made", "w", "t"),
        batch_size=20_000,
        show_progress=False,
    )
    opened = open_vectors(tmp_path, store)[1]
    vectors = Counting(opened.folder, len(opened), opened.dim, opened.shard_size)
    kind = IndexType("IVF16,SQ8", train_sample=3_000)
    train(new_index(kind, len(vectors), D)[1], kind, vectors)
    assert cell_sample(kind, 16, len(vectors)) == 3_000 and code_sample(len(vectors)) == 16_384
    assert vectors.gathered == 3_000 + 16_384
