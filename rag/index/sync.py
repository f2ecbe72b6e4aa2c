"""An index brought up to date with the files that it is of: what changed is read again, and only new text is embedded.

    files ──sha256──▶ new, changed, gone, unchanged ──▶ the next edition (update.py) takes the old one's place

A file is the same where its name and its bytes are. The passages of files that stay are not read again; those of new
and changed files come after them, and take over the vector of a passage that is in the index word for word, such as
one of a file that was renamed.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float32

from rag.errors import UserError
from rag.index.catalog import DocumentInfo, documents_of
from rag.index.corpus_files import FORMATS, existing
from rag.index.editions import put_back, tidy
from rag.index.embed import Encode
from rag.index.opening import open_files
from rag.index.passage import counted
from rag.index.passages import CUT, describe_corpus
from rag.index.readers import CorpusReader
from rag.index.reading import AS_USUAL, CorpusReading
from rag.index.update import Edition, check_changeable, check_encoder, largest_number
from rag.index.vectors import EncoderInfo


@dataclass(frozen=True)
class Synchronised:
    """What became of an index's documents, and how many passages were embedded for it."""

    new: int
    changed: int
    gone: int
    unchanged: int
    embedded: int

    @property
    def nothing(self) -> bool:
        """Whether the index was one of these documents already."""
        return not (self.new or self.changed or self.gone)

    def __str__(self) -> str:
        files = (
            f"{self.new:,} new, {self.changed:,} changed, {self.gone:,} gone, {self.unchanged:,} unchanged"
        )
        return f"documents: {files}; {counted(self.embedded, 'passage')} embedded"


def synchronise(
    folder: Path | str,
    corpus: Path | str,
    encode: Encode | None = None,
    encoder: EncoderInfo | None = None,
    reading: CorpusReading = AS_USUAL,
    queries: Float32[np.ndarray, "Q D"] | None = None,
    batch_size: int = 64,
    show_progress: bool = True,
    replace_all: bool = False,
) -> Synchronised:
    """Make the index in `folder` one of `corpus` as it is now, read in the way of `reading`.

    encode, encoder: the passage encoder of the index, needed where a file is new or changed. queries: as in `build`.
    replace_all: also where no file stays and the index is of another folder. A killed call resumes when it is made
    again; an index that is up to date is left alone.

    Raises UserError, and leaves the index as it was, for another encoder than the index's, an id that would come
    twice, a malformed corpus, or one without passages.
    """
    folder, corpus = Path(folder), existing(corpus, f"give the path of a corpus ({FORMATS})")
    put_back(folder)
    old = open_files(folder)
    source = old.passages.source or {}
    documents = old.passages.documents()
    before = {each.name: each for each in documents or []}
    now = documents_of(corpus)
    same_way = old.passages.reading == reading.checked() and source.get("cut") == CUT
    stays = {name: same_way and name in before and before[name].sha256 == now[name].sha256 for name in now}
    fresh = [name for name in now if not stays[name]]
    gone = [name for name in before if name not in now]
    result = Synchronised(
        new=sum(name not in before for name in fresh),
        changed=sum(name in before for name in fresh),
        gone=len(gone),
        unchanged=len(now) - len(fresh),
        embedded=0,
    )
    if documents is not None and not fresh and not gone:
        tidy(folder)
        return result
    check_changeable(old)
    if not any(stays.values()) and before.keys().isdisjoint(now) and not replace_all:
        _check_place(folder, corpus, str(source.get("path", "")))
    kept = np.zeros(len(old.passages), bool)
    row = 0
    for each in documents or []:
        kept[row : row + each.passages] = stays.get(each.name, False)
        row += each.passages
    described = describe_corpus(corpus, reading, now.values())
    request = [old.passages.sha256, described["sha256"], reading.settings(), CUT]
    change = {"removed": int((~kept).sum()), "added": str(corpus)}
    edition = Edition(
        kept,
        described
        | {
            "request": hashlib.sha256(json.dumps(request).encode()).hexdigest(),
            "of": old.passages.sha256,
            "changes": [*source.get("changes", []), change],
        },
        gone=[*gone, *fresh],
        alike=True,
    )
    if fresh:
        check_encoder(old, encode, encoder)
        first_id = largest_number(old.passages) + 1 if kept.any() else 1
        edition.reader = CorpusReader(corpus, reading, first_id, only=fresh)
        edition.files = {name: now[name] for name in fresh}
    elif not kept.any():
        raise UserError(
            f"{corpus} holds no text that {folder} could be an index of: delete that folder instead"
        )
    embedded = edition.make(old, encode, queries, batch_size, show_progress)
    return Synchronised(result.new, result.changed, result.gone, result.unchanged, embedded)


def _check_place(folder: Path, corpus: Path, path: str) -> None:
    """UserError where nothing says that an index of other files is to become one of this corpus."""
    if not path or Path(path).resolve() != corpus.resolve():
        raise UserError(
            f"{folder} holds the passages of {path or 'another source'}, of which {corpus} has no file: give "
            "corpus.path=… the folder that it is of, or overwrite=true to replace them all"
        )


def listed_documents(folder: Path | str) -> list[DocumentInfo]:
    """The documents of an index. UserError where it does not say."""
    documents = open_files(folder).passages.documents()
    if documents is None:
        raise UserError(
            f"{folder} does not say which documents its passages are of: corpus.path=… sync=true writes it down"
        )
    return documents
