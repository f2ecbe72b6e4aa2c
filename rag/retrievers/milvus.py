"""Section 2.2: dense retrieval whose vectors a Milvus engine searches: retriever=milvus.

    q(x) ──▶ engine ──rows──▶ d(z) from the shards on this machine, or from the engine ──▶ q(x)ᵀd(z)

The index folder stays what an index is (rag/index/folder.py); this retriever says where its engine is and how long it
is waited for. Everything else is `DenseRetriever`.
"""

from pathlib import Path
from typing import Any, Self

from rag.encoders.opening import open_question_encoder
from rag.encoders.protocol import AnyQuestionEncoder
from rag.encoders.settings import EncoderSettings
from rag.errors import UserError
from rag.index.folder import Index
from rag.index.milvus_connection import PATIENCE, TIMEOUT, checked_uri
from rag.retrievers.dense import DenseRetriever, beside
from rag.retrievers.fresh import FreshPassages, Side
from rag.retrievers.null_document import NullDocument
from rag.retrievers.scale import Scale


class MilvusRetriever(DenseRetriever):
    """DenseRetriever over an index of build_index.py index=milvus.

    uri: the engine, where it is another than the index says; an index that is swapped in is looked for there too.
    timeout, patience: seconds that a call may take, and that an engine is waited for which went away.
    """

    def __init__(
        self,
        question_encoder: AnyQuestionEncoder | Any,
        index: Index,
        trainable: bool | Side = True,
        null_document: NullDocument | None = None,
        uri: str | None = None,
        timeout: float = TIMEOUT,
        patience: float = PATIENCE,
        scale: Scale | None = None,
        passage_encoder: FreshPassages | None = None,
        overfetch: int | None = None,
    ):
        if timeout <= 0 or patience < 0:
            raise UserError(f"retriever.timeout={timeout} and retriever.patience={patience}: give seconds")
        self.uri = None if uri is None else checked_uri(uri)
        self.timeout, self.patience = timeout, patience
        index = self._at_engine(index)
        super().__init__(question_encoder, index, trainable, null_document, scale, passage_encoder, overfetch)

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls,
        question_encoder: str | Path,
        index: str | Path,
        trainable: bool | Side = True,
        null_document: NullDocument | None = None,
        uri: str | None = None,
        timeout: float = TIMEOUT,
        patience: float = PATIENCE,
        scale: Scale | None = None,
        encoder: EncoderSettings | None = None,
        passage_encoder: FreshPassages | None = None,
        overfetch: int | None = None,
    ) -> Self:
        opened = open_question_encoder(question_encoder, encoder)
        over = Index.open(Path(index), uri)
        made = cls(
            opened,
            over,
            trainable,
            null_document,
            uri,
            timeout,
            patience,
            scale,
            passage_encoder,
            overfetch,
        )
        made.saved_beside = beside(question_encoder)
        return made

    def swap(self, index: Index) -> None:
        """Also by an index that FAISS searches, as the editions of an experiment's hot-swap may be."""
        super().swap(self._at_engine(index) if index.manifest.engine else index)

    def take_edition(self, index: Index) -> None:
        super().take_edition(self._at_engine(index))

    def _at_engine(self, index: Index) -> Index:
        """The index, searched where this retriever is told to. Raises UserError for one that no engine searches."""
        if not index.manifest.engine:
            raise UserError(
                f"{index.folder} is searched with FAISS ({index.manifest.factory}): take retriever=dense, or build an "
                "index with build_index.py index=milvus"
            )
        collection = index.collection
        if self.uri is not None and collection.connection.uri != self.uri:
            index = Index.open(index.folder, self.uri)
            collection = index.collection
        collection.connection.timeout, collection.connection.patience = self.timeout, self.patience
        return index

    def description(self) -> dict[str, Any]:
        return super().description() | {"uri": self.uri, "timeout": self.timeout, "patience": self.patience}
