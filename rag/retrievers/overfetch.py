"""How many passages are taken from the index to choose K among, checked before torch is imported too."""

from typing import Any

from rag.errors import UserError


def check_overfetch(overfetch: Any, n_docs: int = 1, setting: str = "n_docs") -> None:
    """UserError unless it is None or a whole number of at least K = `n_docs`. setting: what sets K."""
    if overfetch is None:
        return
    if type(overfetch) is not int or overfetch < 1:
        raise UserError(
            f"retriever.overfetch={overfetch}: a whole number from {setting} on is expected, or null for no more than "
            "that"
        )
    if overfetch < n_docs:
        raise UserError(
            f"retriever.overfetch={overfetch} takes fewer passages from the index than {setting}={n_docs} reads: give "
            f"retriever.overfetch={n_docs} or more, or null"
        )
