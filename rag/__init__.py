"""Retrieval-Augmented Generation (Lewis et al. 2020), reproduced: RAG-Sequence and RAG-Token."""

from typing import TYPE_CHECKING

from rag.lazy import face

if TYPE_CHECKING:
    from rag.decoding.generation import generate as generate
    from rag.decoding.settings import Decoding as Decoding
    from rag.generators.seq2seq import Generator as Generator
    from rag.index.folder import Index as Index
    from rag.model import ClosedBook as ClosedBook
    from rag.model import RagSequence as RagSequence
    from rag.model import RagToken as RagToken
    from rag.retrievers.dense import DenseRetriever as DenseRetriever

__getattr__, __dir__ = face(
    __name__,
    {
        "RagSequence": "model",
        "RagToken": "model",
        "ClosedBook": "model",
        "Generator": "generators.seq2seq",
        "DenseRetriever": "retrievers.dense",
        "Index": "index.folder",
        "Decoding": "decoding.settings",
        "generate": "decoding.generation",
    },
)
