"""What a collection will take of its engine: disk and memory over all its nodes, and the time to fill it.

Bytes a vector of D dimensions, by the engine's type of index:

    FLAT, IVF_FLAT    4·D
    HNSW, AUTOINDEX   4·D + 4·(2·M + 1), M links a layer and twice as many in the lowest
    IVF_SQ8           D
    IVF_RABITQ        D/8
    DISKANN           on disk 4·D and R = 56 links of 4 bytes; in memory an eighth of 4·D, as servers keep its PQ codes

The rows themselves (key, vector, id, title, text) lie in the engine's storage besides, and what is not a vector in its
memory too, unless mmap is on. The rate is measured within seconds, by filling a collection that is dropped again.
"""

import tempfile
import time
import uuid
from pathlib import Path

import numpy as np

from rag.index.milvus_collection import MESSAGE, Collection
from rag.index.milvus_connection import Connection
from rag.index.milvus_type import MilvusType
from rag.index.passage import Passage

DEGREE = 56  # of DISKANN's graph, as servers build it
PQ_SHARE = 1 / 8  # of a vector's bytes that its codes keep in memory
_PROBE = 2_000  # rows


def vector_bytes(type: MilvusType, dim: int) -> tuple[float, float]:
    """Bytes of a vector in the engine's index: on disk, and in memory while it is searched."""
    if type.kind == "DISKANN":
        return 4 * dim + 4 * DEGREE, 4 * dim * PQ_SHARE
    size = {"IVF_SQ8": dim, "HNSW_SQ": dim, "IVF_RABITQ": dim / 8}.get(type.kind, 4 * dim)
    if type.kind in ("HNSW", "HNSW_SQ", "AUTOINDEX"):
        size += 4 * (2 * int(type.params.get("M", 16)) + 1)
    return size, size


def engine_bytes(type: MilvusType, passages: int, dim: int, text_bytes: float) -> tuple[float, float, float]:
    """Disk, memory with everything in it, and memory with mmap, of the engine's nodes together."""
    disk, memory = vector_bytes(type, dim)
    row = 8 + (text_bytes if type.texts else 0)
    return passages * (disk + row + 4 * dim), passages * (memory + row), passages * memory


def rows_per_second(type: MilvusType, dim: int, text_bytes: float) -> float:
    """How fast this engine takes rows, its index left aside. Raises UserError where it does not answer."""
    with tempfile.TemporaryDirectory(prefix="rag-milvus-") as place:
        connection = Connection(type.place(Path(place) / "probe"))
        collection = Collection(
            connection, f"rag_probe_{uuid.uuid4().hex[:8]}", _PROBE, dim, type.kind, {}, type.texts
        )
        vectors = np.random.default_rng(0).standard_normal((_PROBE, dim), np.float32)
        passages = [Passage(str(row), "", "x" * int(text_bytes)) for row in range(_PROBE)]
        step = max(1, MESSAGE // int(4 * dim + text_bytes))
        collection.create(type)
        try:
            began = time.perf_counter()
            for start in range(0, _PROBE, step):
                part = slice(start, start + step)
                collection.put(start, vectors[part], passages[part] if type.texts else None, False)
            return _PROBE / (time.perf_counter() - began)
        finally:
            collection.drop()
            connection.close()
