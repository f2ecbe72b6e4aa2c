"""Sections 2.2 and 3: the non-parametric memory, from a corpus to a folder that can be searched."""

from typing import TYPE_CHECKING

from rag.lazy import face

if TYPE_CHECKING:
    from rag.index.faiss_types import IndexType as IndexType
    from rag.index.folder import Index as Index
    from rag.index.manifest import Manifest as Manifest
    from rag.index.milvus_type import MilvusType as MilvusType
    from rag.index.passage import Passage as Passage
    from rag.index.passages import PassageStore as PassageStore
    from rag.index.readers import read_passages as read_passages
    from rag.index.reading import CorpusReading as CorpusReading
    from rag.index.ready_index import ReadyIndex as ReadyIndex

__getattr__, __dir__ = face(
    __name__,
    {
        "Passage": "passage",
        "PassageStore": "passages",
        "read_passages": "readers",
        "Index": "folder",
        "Manifest": "manifest",
        "CorpusReading": "reading",
        "IndexType": "faiss_types",
        "ReadyIndex": "ready_index",
        "MilvusType": "milvus_type",
    },
)
