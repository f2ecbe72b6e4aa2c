"""Asking a model: the terminal (python -m rag.ask), the page, and a folder of documents from Python."""

from typing import TYPE_CHECKING

from rag.lazy import face

if TYPE_CHECKING:
    from rag.ask.documents import open_documents as open_documents
    from rag.ask.doubt import Doubt as Doubt

__getattr__, __dir__ = face(__name__, {"Doubt": "doubt", "open_documents": "documents"})
