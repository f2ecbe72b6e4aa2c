"""FAISS, imported when something of it is first used: `from rag import lazy_faiss as faiss`.

Exact search with torch (rag/retrievers/exact.py), training and decoding do without it, and so does a machine with a
GPU and a bare PyTorch installation.
"""

from importlib.util import find_spec
from typing import Any

from rag.errors import UserError


def installed() -> bool:
    return find_spec("faiss") is not None


def __getattr__(name: str) -> Any:
    if name.startswith("__") and name != "__version__":  # what Python itself looks for in modules
        raise AttributeError(name)
    try:
        import faiss
    except ModuleNotFoundError as error:
        raise UserError(
            "FAISS is not installed: install faiss-cpu, or search the vectors without it, by retriever=exact"
        ) from error
    return getattr(faiss, name)
