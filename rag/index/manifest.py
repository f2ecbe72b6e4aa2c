"""What an index folder says of itself: manifest.json, written last, with a checksum of its own."""

import hashlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rag.errors import UserError
from rag.files import read_json, write_json
from rag.index.vectors import EncoderInfo

FORMAT = 1
DECODED = "decoded from index.faiss"
DPR_READING = {"pooling": "cls", "normalize": False, "prompt": ""}  # of indexes that do not say


@dataclass(frozen=True)
class CorpusInfo:
    """Which passages: the file they were read from, their hash (`PassageStore.sha256`), how many."""

    path: str
    sha256: str
    passages: int


@dataclass(frozen=True)
class Manifest:
    """What is in an index folder, and how good it is.

    metric: what p(z|x) is a softmax of, times the retriever's scale: the "inner product" q(x)ᵀd(z), or the "cosine",
    which is the same of vectors of unit length. search: the parameters in force (nprobe, ef_search, refine). recall:
    "1" … "100" → the share of the K best passages by exact search that this index finds, over the queries that
    `recall_queries` describes.
    ms_per_query: one query at a time, K = 50, with `threads` threads. seconds: of embedding, all processes
    together, and of each step of `build`.
    files: name → bytes and SHA-256. vectors: how the true vectors came here: "encoded", or where they were taken
    from and how that was checked, or DECODED where there are none. type: the IndexType as it was asked for. engine:
    where the vectors are searched, if that is a collection and no FAISS file (rag/index/milvus_type.py).

    Where there are no true vectors, recall is empty: nobody knows it.
    """

    encoder: EncoderInfo
    corpus: CorpusInfo
    dim: int
    shard_size: int
    factory: str
    metric: str
    search: dict[str, int]
    recall: dict[str, float]
    recall_queries: str
    ms_per_query: float
    threads: int
    seconds: dict[str, float]
    versions: dict[str, str]
    files: dict[str, dict[str, Any]]
    vectors: str = "encoded"
    type: dict[str, Any] = field(default_factory=dict)
    engine: dict[str, Any] = field(default_factory=dict)
    format: int = FORMAT

    def write(self, path: Path) -> None:
        record = asdict(self)
        write_json(path, record | {"checksum": _checksum(record)})

    @classmethod
    def read(cls, path: Path) -> "Manifest":
        """Raises UserError if the file is missing, of another format, or was edited."""
        folder = path.parent
        if not path.is_file():
            raise UserError(
                f"{folder} is not a finished index (manifest.json is missing): run build_index.py with this "
                "index.path, which resumes an interrupted build"
            )
        record = read_json(path)
        again = f"restore it, or run build_index.py with index.path={folder} again"
        if not isinstance(record, dict) or record.get("format") != FORMAT:
            written = record.get("format") if isinstance(record, dict) else type(record).__name__
            raise UserError(f"{path} is of format {written}, not {FORMAT}: {again}")
        if record.pop("checksum", None) != _checksum(record):
            raise UserError(f"{path} was edited since it was written (its checksum does not fit): {again}")
        record["encoder"] = EncoderInfo(**record["encoder"])
        record["corpus"] = CorpusInfo(**record["corpus"])
        return cls(**record)


def _checksum(record: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()[:16]
