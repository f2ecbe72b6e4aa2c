"""Documents as a memory: a folder of text and Markdown, indexed once and kept up to date beside it.

    FOLDER ──read_documents──▶ passages ──embed──▶ .FOLDER.rag/index

The index is used as it is while every file's content is what it was (SHA-256). Otherwise a new one is made beside it,
which takes over the vector of each passage that is still there word for word; it takes the old one's place when it is
complete. A killed build goes on where it was, and a half-written one is never opened.
"""

import hashlib
import logging
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float32

from rag.errors import UserError
from rag.files import hidden_beside, one_process, replace_folder
from rag.index.build import build
from rag.index.editions import next_edition, put_back, tidy
from rag.index.embed import Encode, embed
from rag.index.folder import Index
from rag.index.manifest import Manifest
from rag.index.passage import Passage, counted, has_half_pair, piece_id, without_half_pairs
from rag.index.passages import PassageStore, describe_corpus
from rag.index.readers import corpus_files, existing, read_passages
from rag.index.sections import read_sections
from rag.index.splitting import WORDS_PER_PASSAGE
from rag.index.text_folders import is_text, kinds_of
from rag.index.vectors import EncoderInfo
from rag.text_files import plain_name

log = logging.getLogger(__name__)

_CUT = 1  # how documents are cut into passages; another number, another cut
_SHARD = 1_000  # passages that a killed build has to embed again at most


def cache_of(documents: Path | str) -> Path:
    """Where the index of a folder of documents is kept: hidden, beside it."""
    return hidden_beside(documents, "rag") / "index"


def read_documents(
    documents: Path | str, encoding: str | None = None, words: int | None = None
) -> Iterator[Passage]:
    """The passages of all text and Markdown files in a folder and its folders, or of one file; other files are named.

    Ids are "sub/name.md#3", the third passage of that file. A folder of tables alone is read as any corpus. Raises
    UserError where there is nothing to read.
    """
    documents = _existing(documents)
    files, left_out = corpus_files(documents)
    if left_out:
        log.warning("%s: %s left out: %s", documents, counted(len(left_out), "file"), kinds_of(left_out))
    if not all(is_text(Path(plain_name(file))) for file in files):
        yield from read_passages(documents, encoding, words or WORDS_PER_PASSAGE)
        return
    has_text = False
    for file in files:
        name = file.relative_to(documents).as_posix() if documents.is_dir() else file.name
        name = without_half_pairs(name) if has_half_pair(name) else name
        for number, (title, text) in enumerate(read_sections(file, encoding, words), start=1):
            has_text = True
            title = (
                without_half_pairs(title) if has_half_pair(title) else title
            )  # a file's name that is no UTF-8
            yield Passage(piece_id(name, number), title, text)
    if not has_text:
        raise UserError(f"{documents} holds no text: all of its {counted(len(files), 'file')} are empty")


def precision_kept(folder: Path | str) -> tuple[bool, str | None]:
    """Whether an index of documents is kept in `folder`, and the precision of its vectors (`EncoderInfo`)."""
    put_back(folder)
    try:
        return True, Manifest.read(Path(folder) / "manifest.json").encoder.precision
    except UserError:
        return False, None


def index_documents(
    documents: Path | str,
    encode: Encode,
    encoder: EncoderInfo,
    folder: Path | str | None = None,
    encoding: str | None = None,
    words: int | None = None,
    batch_size: int = 32,
    show_progress: bool = True,
) -> tuple[Index, int]:
    """The index of a folder of documents as they are now, and how many passages had to be embedded for it.

    encode, encoder: the passage encoder and what a manifest says of it; an index of another one, or of another
    precision, is made anew. folder:
    where the index is kept (None: `cache_of`). encoding: of the files; None is UTF-8. words: of a passage at most; None
    is 100. Processes that ask at the same time wait for the one that builds.

    Raises UserError where there is nothing to read or the folder cannot be written.
    """
    documents = _existing(documents)
    folder = cache_of(documents) if folder is None else Path(folder)
    with one_process(folder):
        put_back(folder)
        now = describe_corpus(documents, encoding, words) | {"cut": _CUT}
        old = _usable(folder, encoder)
        if old is not None and _same_content(old.passages, now):
            tidy(folder)
            return old, 0
        work = next_edition(folder)
        store = _store(work, documents, now)
        known = None if old is None else _StillThere(old, store)
        embed(store, encode, work, encoder, _SHARD, batch_size, show_progress=show_progress, known=known)
        build(work, "Flat", show_progress=False)
        replace_folder(work, folder)
    return Index.open(folder), len(store) - (0 if known is None else known.count)


def _existing(documents: Path | str) -> Path:
    documents = Path(documents).expanduser()
    return existing(documents, "give documents=FOLDER, a folder of .txt and .md files").resolve()


def _usable(folder: Path, encoder: EncoderInfo) -> Index | None:
    """The finished index of this encoder that is kept there."""
    try:
        index = Index.open(folder)
    except UserError:  # there is none, or one that was damaged: it is made anew
        return None
    mine = index.manifest.encoder
    same = mine.may_be(encoder) and (mine.reading, mine.precision) == (encoder.reading, encoder.precision)
    return index if same else None


def _same_content(store: PassageStore, now: dict[str, Any]) -> bool:
    was = store.source or {}
    return all(was.get(key) == now.get(key) for key in ("sha256", "encoding", "words", "cut"))


def _store(work: Path, documents: Path, now: dict[str, Any]) -> PassageStore:
    """The passages of the new index; what a killed build left is used if it was of the same files."""
    try:
        store = PassageStore.open(work / "passages")
        if _same_content(store, now):
            return store
    except UserError:
        pass
    shutil.rmtree(work, ignore_errors=True)
    passages = read_documents(documents, now.get("encoding"), now.get("words"))
    return PassageStore.write(passages, work / "passages", now)


class _StillThere:
    """Vectors of the passages that an earlier index has word for word (`embed.Known`)."""

    def __init__(self, old: Index, store: PassageStore):
        at = {_words_of(passage): row for row, passage in enumerate(old.passages)}
        self.rows = np.array([at.get(_words_of(passage), -1) for passage in store])
        self.vectors = old.true_vectors
        self.dim = old.dim
        self.origin = "encoded"
        self.count = int((self.rows >= 0).sum())

    def fill(self, start: int, vectors: Float32[np.ndarray, "rows D"]) -> Bool[np.ndarray, " rows"]:
        rows = self.rows[start : start + len(vectors)]
        vectors[rows >= 0] = self.vectors.gather(rows[rows >= 0])
        return rows >= 0


def _words_of(passage: Passage) -> bytes:
    return hashlib.sha256(f"{len(passage.title)} {passage.title}{passage.text}".encode()).digest()
