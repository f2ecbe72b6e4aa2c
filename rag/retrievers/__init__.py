"""Sections 2.2 and 4.5: p_η(z|x), the top K passages of a question and their scores."""

from typing import TYPE_CHECKING

from rag.lazy import face

if TYPE_CHECKING:
    from rag.retrievers.dense import DenseRetriever as DenseRetriever
    from rag.retrievers.exact import ExactRetriever as ExactRetriever
    from rag.retrievers.exact import ExactSearch as ExactSearch
    from rag.retrievers.fresh import FreshPassages as FreshPassages
    from rag.retrievers.given import GivenPassages as GivenPassages
    from rag.retrievers.given import GoldRetriever as GoldRetriever
    from rag.retrievers.hybrid import HybridRetriever as HybridRetriever
    from rag.retrievers.lexical import BM25 as BM25
    from rag.retrievers.lexical import Jaccard as Jaccard
    from rag.retrievers.lexical import TfIdf as TfIdf
    from rag.retrievers.lexical_retriever import LexicalRetriever as LexicalRetriever
    from rag.retrievers.milvus import MilvusRetriever as MilvusRetriever
    from rag.retrievers.null_document import NullBias as NullBias
    from rag.retrievers.null_document import NullDocument as NullDocument
    from rag.retrievers.null_document import NullEmbedding as NullEmbedding
    from rag.retrievers.null_document import NullNetwork as NullNetwork
    from rag.retrievers.protocol import Questions as Questions
    from rag.retrievers.protocol import Retrieved as Retrieved
    from rag.retrievers.protocol import Retriever as Retriever
    from rag.retrievers.scale import LearnedScale as LearnedScale

__getattr__, __dir__ = face(
    __name__,
    {
        "Questions": "protocol",
        "Retrieved": "protocol",
        "Retriever": "protocol",
        "DenseRetriever": "dense",
        "ExactRetriever": "exact",
        "ExactSearch": "exact",
        "FreshPassages": "fresh",
        "GivenPassages": "given",
        "GoldRetriever": "given",
        "HybridRetriever": "hybrid",
        "LearnedScale": "scale",
        "BM25": "lexical",
        "TfIdf": "lexical",
        "Jaccard": "lexical",
        "LexicalRetriever": "lexical_retriever",
        "MilvusRetriever": "milvus",
        "NullDocument": "null_document",
        "NullEmbedding": "null_document",
        "NullBias": "null_document",
        "NullNetwork": "null_document",
    },
)
