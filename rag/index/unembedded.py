"""Passages without vectors, for retrievers that search none: BM25, and passages that come with their questions."""

from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, Int64

from rag.errors import UserError
from rag.index.folder import Index
from rag.index.manifest import CorpusInfo, Manifest
from rag.index.passages import PassageStore
from rag.index.vectors import EncoderInfo

NO_VECTORS = "no vectors"


class UnembeddedIndex(Index):
    """A folder with passages/ and, once a generator reads them, their tokens: an index that only search by vector lacks.

    Its manifest is of this process alone; nothing but the passages says what they are.
    """

    def __init__(self, folder: Path, passages: PassageStore):
        source = (passages.source or {}).get("path", str(folder))
        manifest = Manifest(
            encoder=EncoderInfo(NO_VECTORS, NO_VECTORS, NO_VECTORS),
            corpus=CorpusInfo(source, passages.sha256, len(passages)),
            dim=0,
            shard_size=0,
            factory=NO_VECTORS,
            metric=NO_VECTORS,
            search={},
            recall={},
            recall_queries="",
            ms_per_query=0.0,
            threads=0,
            seconds={},
            versions={},
            files={},
            vectors=NO_VECTORS,
        )
        super().__init__(folder, manifest, passages, None, None)  # type: ignore[arg-type]

    @classmethod
    def open(cls, folder: Path | str) -> "UnembeddedIndex":
        """Map the passages of a folder; UserError where there are none, or they are damaged."""
        return cls(Path(folder), PassageStore.open(Path(folder) / "passages"))

    def __reduce__(self):
        return UnembeddedIndex.open, (self.folder,)

    def search(self, queries: Any, k: int, refine: int | None = None) -> Any:
        raise self._without_vectors()

    def vectors(self, rows: Int64[np.ndarray, " *shape"]) -> Float32[np.ndarray, "*shape D"]:
        raise self._without_vectors()

    def vector_blocks(self, rows: int) -> Any:
        raise self._without_vectors()

    def verify(self) -> None:
        """Read every passage; UserError where they are not those that were written."""
        self.passages.verify()

    def _without_vectors(self) -> UserError:
        return UserError(
            f"{self.folder} holds passages without vectors, which dense search needs: build an index of them with "
            "build_index.py, or use retriever=bm25"
        )
