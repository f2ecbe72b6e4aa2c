"""What an index will cost, before anything is done: disk, memory and hours (build_index.py estimate=true).

Sizes follow from the number of passages, their length and the type's bytes a vector; docs/scale.md shows the
arithmetic for Wikipedia's 21 million. The number of passages is read from Parquet, and elsewhere estimated from
the file's size and the first passages. The rates are measured here, within seconds: the encoder's on a few batches
of the corpus, the processor's in finding cells, and a small graph's where the type is one.
"""

import gzip
import lzma
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pyarrow.parquet as pq
from jaxtyping import Float32

from rag.index.corpus_files import corpus_files
from rag.index.faiss_types import (
    IndexType,
    cell_sample,
    code_sample,
    file_bytes,
    graph_of,
    inner_index,
    keeps_vectors,
    new_index,
)
from rag.index.milvus_estimate import engine_bytes, rows_per_second
from rag.index.milvus_type import MilvusType
from rag.index.passage import Passage
from rag.index.readers import read_passages
from rag.index.reading import AS_USUAL, CorpusReading
from rag.text_files import plain_name

_SAMPLE = 2_000  # passages that are looked at
_PROBE = 16 << 20  # bytes that are unpacked of a compressed file
_LIBRARIES = 500e6  # bytes of a process that has PyTorch and FAISS loaded


@dataclass(frozen=True)
class Estimate:
    """Sizes in bytes, times in seconds.

    counted: the number of passages is known; otherwise it is estimated. memory_all: everything a search touches
    stays in memory; memory_least: the index does, and true vectors and passages are read from disk. Of an index in an
    engine, these and disk_index are the engine's, and memory_build is that of the process which fills it.
    elsewhere: its disk is no part of this machine's.
    """

    passages: int
    counted: bool
    factory: str
    disk_passages: float
    disk_vectors: float
    disk_index: float
    memory_build: float
    memory_all: float
    memory_least: float
    seconds_embedding: float
    seconds_index: float
    elsewhere: bool = False

    @property
    def disk(self) -> float:
        return self.disk_passages + self.disk_vectors + self.disk_index


def estimate(
    corpus: Path | str,
    kind: IndexType | MilvusType,
    dim: int,
    encode: Callable[[list[Passage]], Float32[np.ndarray, "N D"]],
    batch_size: int = 64,
    processes: int = 1,
    passages_per_second: float | None = None,
    reading: CorpusReading = AS_USUAL,
) -> Estimate:
    """Estimate the index of a corpus. Raises UserError for a corpus that cannot be read and a type that cannot
    work for its size.

    passages_per_second: of one process; None measures it with `encode` on two batches. processes: that share
        the embedding.
    """
    corpus = Path(corpus)
    sample = list(islice(read_passages(corpus, reading), _SAMPLE))
    mean = sum(len(f"{p.id}{p.title}{p.text}".encode()) for p in sample) / len(sample)
    passages, counted = count_passages(corpus, sample, mean, reading.split is not None)
    vectors = 4.0 * passages * dim
    if isinstance(kind, MilvusType):
        factory = kind.factory
        size, memory_all, memory_least = engine_bytes(kind, passages, dim, mean)
        memory_build, seconds = _LIBRARIES, passages / rows_per_second(kind, dim, mean)
    else:
        factory, index = new_index(kind, passages, dim)
        size = file_bytes(index, passages)
        memory_build = memory_least = size + _LIBRARIES
        memory_all = size + (0 if keeps_vectors(index) else vectors) + _LIBRARIES
        seconds = index_seconds(index, kind, passages, dim)
    rate = passages_per_second or embedding_rate(encode, sample, batch_size)
    return Estimate(
        passages=passages,
        counted=counted,
        factory=factory,
        disk_passages=passages * (mean + 12),  # three offsets of four bytes
        disk_vectors=vectors,
        disk_index=size,
        memory_build=memory_build,
        memory_all=memory_all,
        memory_least=memory_least,
        seconds_embedding=passages / rate / processes,
        seconds_index=seconds,
        elsewhere=isinstance(kind, MilvusType) and kind.uri is not None,
    )


def count_passages(corpus: Path, sample: list[Passage], mean: float, split: bool = False) -> tuple[int, bool]:
    """How many passages a corpus holds, and whether that is known or estimated from a sample of them.

    split: its passages are cut into pieces.
    """
    files, _ = corpus_files(corpus)
    if files[0].suffix == ".parquet" and not split:
        return sum(pq.read_metadata(file).num_rows for file in files), True
    if len(sample) < _SAMPLE:
        return len(sample), True
    name = plain_name(files[0])
    if name.endswith((".tsv", ".csv")):
        mean += 5  # two tabs, quotes, the end of the line
    elif name.endswith((".jsonl", ".json")):
        mean += 35  # names of the fields, quotes and braces of JSON
    return round(sum(map(_unpacked_bytes, files)) / mean), False


def _unpacked_bytes(file: Path) -> float:
    size = file.stat().st_size
    if file.suffix not in (".gz", ".xz"):
        return size
    with open(file, "rb") as packed, (gzip if file.suffix == ".gz" else lzma).open(packed, "rb") as plain:
        unpacked = len(plain.read(_PROBE))
        return size * unpacked / packed.tell() if unpacked == _PROBE else unpacked


def embedding_rate(encode: Callable[[list[Passage]], Any], sample: list[Passage], batch_size: int) -> float:
    """Passages a second of one process, by two batches of the sample, each of passages of like length."""
    by_length = sorted(sample, key=lambda passage: len(passage.text))
    encode(by_length[:2])  # what is only done once
    third = len(by_length) // 3
    batches = [by_length[start : start + batch_size] for start in (third, 2 * third)]
    start = time.perf_counter()
    for batch in batches:
        encode(batch)
    return sum(map(len, batches)) / (time.perf_counter() - start)


def index_seconds(index: Any, kind: IndexType, passages: int, dim: int) -> float:
    """About how long training and filling take on this machine."""
    random = np.random.default_rng(0)
    reading = 8.0 * passages * dim / 1e9  # twice, a gigabyte a second: vectors, hashes
    ivf = faiss.try_extract_index_ivf(index)
    if ivf is not None:
        few = random.standard_normal((4_096, dim), np.float32)
        start = time.perf_counter()
        faiss.knn(few, few, 1, metric=faiss.METRIC_INNER_PRODUCT)
        rate = len(few) ** 2 / (time.perf_counter() - start)  # comparisons of two vectors a second
        work = (passages + ivf.cp.niter * cell_sample(kind, ivf.nlist, passages)) * ivf.nlist
        chain, inner = inner_index(index)
        work += passages * dim * len(chain)  # a rotation is as many products
        if isinstance(inner, faiss.IndexIVFPQ):  # each part of a vector with each of its centroids
            work += (passages + inner.pq.cp.niter * code_sample(passages)) * inner.pq.ksub
        return reading + work / rate
    if (hnsw := graph_of(index)) is not None:
        few = random.standard_normal((min(passages, 2_000), dim), np.float32)
        small = faiss.index_factory(dim, "HNSW32", faiss.METRIC_L2)
        like: Any = faiss.downcast_index(small)
        like.hnsw.efConstruction = hnsw.efConstruction
        start = time.perf_counter()
        small.add(few)
        each = (time.perf_counter() - start) / len(few) * hnsw.nb_neighbors(0) / 64
        return reading + passages * each * np.log(passages) / np.log(len(few))
    return reading
