"""The documents of an index (documents.json): which files its passages are of, in their order, and what those were.

An index is brought up to date by them (update.py, sync.py): the passages of a file are a run of rows.
"""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from jaxtyping import Bool

from rag.errors import UserError
from rag.files import hash_file, read_json, write_json
from rag.index.corpus_files import corpus_files, document_name
from rag.text_files import unreadable

FILE = "documents.json"


@dataclass(frozen=True)
class DocumentInfo:
    """A file of a corpus. name: its path in the folder. sha256: of its bytes; "" where some of its passages were
    removed. changed_ns: when it was changed."""

    name: str
    sha256: str
    bytes: int
    changed_ns: int
    passages: int = 0


def documents_of(corpus: Path) -> dict[str, DocumentInfo]:
    """The documents of a corpus as they are now, by their names, in their order; no passages are counted."""
    found = {}
    for file in corpus_files(corpus)[0]:
        name = document_name(corpus, file)
        try:
            stat = file.stat()
            found[name] = DocumentInfo(name, hash_file(file), stat.st_size, stat.st_mtime_ns)
        except OSError as error:
            raise unreadable(file, error) from error
    return found


def digest_of(corpus: Path, documents: Iterable[DocumentInfo]) -> str:
    """One hash of all files' contents, and of their names in a folder."""
    digest = hashlib.sha256()
    for each in documents:
        digest.update(f"{each.name if corpus.is_dir() else '.'}\n{each.sha256}\n".encode())
    return digest.hexdigest()


def counted_in(documents: Mapping[str, DocumentInfo], counts: Mapping[str, int]) -> list[DocumentInfo]:
    """Those documents that were read, with their passages."""
    return [replace(documents[name], passages=count) for name, count in counts.items()]


def write_catalog(folder: Path, documents: Iterable[DocumentInfo]) -> None:
    write_json(folder / FILE, [asdict(each) for each in documents])


def read_catalog(folder: Path, passages: int) -> list[DocumentInfo] | None:
    """The documents of a store of so many passages; None where it does not say, as of earlier versions.

    Raises UserError where it is damaged.
    """
    if not (folder / FILE).is_file():
        return None
    try:
        documents = [DocumentInfo(**each) for each in read_json(folder / FILE, list)]
        complete = sum(each.passages for each in documents) == passages
    except TypeError:
        complete = False
    if not complete:
        raise UserError(f"{folder / FILE} was altered: build the index again with overwrite=true")
    return documents


def without_rows(documents: Iterable[DocumentInfo], kept: Bool[np.ndarray, " N"]) -> list[DocumentInfo]:
    """The documents of which passages stay, and how many; of which only some do is another than its file."""
    left, row = [], 0
    for each in documents:
        stay = int(kept[row : row + each.passages].sum())
        row += each.passages
        if stay or not each.passages:
            whole = stay == each.passages
            left.append(replace(each, passages=stay, sha256=each.sha256 if whole else ""))
    return left
