"""Documents as a memory: a folder of files that people write, indexed once and kept up to date beside it.

    FOLDER ──read_documents──▶ passages ──embed──▶ .FOLDER.rag/index

The index is used as it is while every file's content is what it was (SHA-256); otherwise it is brought up to date by
what changed (sync.py). A killed build goes on where it was, and a half-written one is never opened.
"""

import shutil
from collections.abc import Iterator
from pathlib import Path

from rag.errors import UserError
from rag.files import hidden_beside, one_process, replace_folder
from rag.index.build import build
from rag.index.corpus_files import existing
from rag.index.editions import next_edition, put_back
from rag.index.embed import Encode, embed
from rag.index.folder import Index
from rag.index.manifest import Manifest
from rag.index.passage import Passage
from rag.index.passages import PassageStore, describe_corpus
from rag.index.readers import read_passages
from rag.index.reading import AS_USUAL, CorpusReading
from rag.index.sync import synchronise
from rag.index.vectors import EncoderInfo

_SHARD = 1_000  # passages that a killed build has to embed again at most


def cache_of(documents: Path | str) -> Path:
    """Where the index of a folder of documents is kept: hidden, beside it."""
    return hidden_beside(documents, "rag") / "index"


def read_documents(documents: Path | str, reading: CorpusReading = AS_USUAL) -> Iterator[Passage]:
    """The passages of a folder of documents, or of one, as `read_passages` does, but split by headings as usual.

    Raises UserError where there is nothing to read.
    """
    return read_passages(_existing(documents), reading.by("headings"))


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
    reading: CorpusReading = AS_USUAL,
    batch_size: int = 32,
    show_progress: bool = True,
) -> tuple[Index, int]:
    """The index of a folder of documents as they are now, and how many passages had to be embedded for it.

    encode, encoder: the passage encoder and what a manifest says of it; an index of another one, or of another
    precision, is made anew. folder: where the index is kept (None: `cache_of`). reading: how; by headings where it does
    not say. Processes that ask at the same time wait for the one that builds.

    Raises UserError where there is nothing to read or the folder cannot be written.
    """
    documents = _existing(documents)
    folder = cache_of(documents) if folder is None else Path(folder)
    reading = reading.by("headings")
    with one_process(folder):
        put_back(folder)
        if _usable(folder, encoder):
            done = synchronise(
                folder, documents, encode, encoder, reading, None, batch_size, show_progress, replace_all=True
            )
            return Index.open(folder), done.embedded
        work = next_edition(folder)
        store = _store(work, documents, reading)
        embed(store, encode, work, encoder, _SHARD, batch_size, show_progress=show_progress)
        build(work, "Flat", show_progress=False)
        replace_folder(work, folder)
    return Index.open(folder), len(store)


def _existing(documents: Path | str) -> Path:
    documents = Path(documents).expanduser()
    return existing(documents, "give documents=FOLDER, a folder of documents").resolve()


def _usable(folder: Path, encoder: EncoderInfo) -> bool:
    """Whether a finished index of this encoder is kept there."""
    try:
        index = Index.open(folder)
        index.passages.documents()
    except UserError:  # there is none, or one that was damaged: it is made anew
        return False
    mine = index.manifest.encoder
    return mine.may_be(encoder) and (mine.reading, mine.precision) == (encoder.reading, encoder.precision)


def _store(work: Path, documents: Path, reading: CorpusReading) -> PassageStore:
    """The passages of a new index; what a killed build left is used if it was of the same files."""
    try:
        store = PassageStore.open(work / "passages")
        was, now = store.source or {}, describe_corpus(documents, reading)
        if "of" not in was and all(was.get(key) == now.get(key) for key in ("sha256", "reading", "cut")):
            return store
    except UserError:
        pass
    shutil.rmtree(work, ignore_errors=True)
    return PassageStore.read(documents, work / "passages", False, reading)
