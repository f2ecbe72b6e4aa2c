"""What a command asks: a run, checkpoint=RUN, or a folder, documents=FOLDER; without waiting for torch."""

from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig

from rag.compose import key_of
from rag.errors import UserError
from rag.files import hidden_beside


def about_documents(overrides: Sequence[str]) -> bool:
    """Whether a command asks about documents=FOLDER (configs/documents.yaml), not a run alone (configs/ask.yaml)."""
    return any(key_of(each) == "documents" for each in overrides)


def check_documents(folder: str) -> None:
    """UserError for documents that are not there."""
    if not Path(folder).expanduser().exists():
        raise UserError(f"{folder} does not exist: give documents=FOLDER, a folder of documents")


def opening(cfg: DictConfig) -> str:
    """The first line about documents: where the cache is."""
    place = cfg.index.path or hidden_beside(cfg.documents, "rag") / "index"
    return f"reading {cfg.documents}; its index is kept in {place}"


def quoted(path: str | Path) -> str:
    """A path as a value of Hydra's grammar, whatever is in it."""
    text = str(path).replace("\\", "\\\\").replace("'", "\\'")
    return f"'{text}'"


def with_folder_quoted(overrides: Sequence[str]) -> list[str]:
    """The same, where a folder's name has spaces or commas in it, as a shell gives documents="my notes"."""
    given = []
    for each in overrides:
        key, _, value = each.partition("=")
        bare = key == "documents" and value[:1] not in ("'", '"')
        given.append(f"{key}={quoted(value)}" if bare else each)
    return given
