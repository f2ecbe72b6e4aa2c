"""Passages without vectors, for retrievers that search none: BM25, and passages that come with their questions."""

from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, Int64

from rag.errors import UserError
from rag.files import one_process
from rag.fingerprints import digest
from rag.index.folder import Index
from rag.index.manifest import CorpusInfo, Manifest
from rag.index.passages import PassageStore, corpus_state
from rag.index.reading import AS_USUAL, CorpusReading
from rag.index.vectors import EncoderInfo

NO_VECTORS = "no vectors"


class UnembeddedIndex(Index):
    """A folder with passages/ and, once a generator reads them, their tokens: an index but for its vectors.

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


def open_passages(folder: Path | str) -> Index:
    """An index, or what has passages alone; UserError where a folder is neither, as `Index.open` has it."""
    folder = Path(folder)
    if not (folder / "manifest.json").exists() and (folder / "passages" / "store.json").is_file():
        return UnembeddedIndex.open(folder)
    return Index.open(folder)


def prepare_passages(
    corpus: Path | str, cache: Path | str, reading: CorpusReading = AS_USUAL
) -> UnembeddedIndex:
    """The passages of a corpus, in any form of `read_passages`, kept in a folder of `cache` until the corpus changes.

    Raises UserError for a corpus that is missing or malformed.
    """
    corpus = Path(corpus).expanduser()
    if not corpus.exists():
        raise UserError(f"{corpus} does not exist: give the path of a corpus, or of an index")
    known_by = digest([str(corpus.resolve()), corpus_state(corpus), reading.settings()])
    folder = Path(cache) / f"{corpus.resolve().name}-{known_by}"
    with one_process(folder):
        PassageStore.prepare(corpus, folder / "passages", False, reading)
    return UnembeddedIndex.open(folder)
