"""Section 4.5: another edition of a memory, by adding passages to an index and removing some.

What is known is not made again: the vectors of the passages that stay are taken over, and only new passages are
encoded. The new edition is built beside the old one, which stays as it is until the new one is complete; rows are
numbered anew, so that the tokens of "title / text" are dropped, to be written again when a generator asks for them.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from jaxtyping import Bool, Float32, Int64

from rag.errors import UserError
from rag.files import replace_folder
from rag.index.build import build
from rag.index.catalog import DocumentInfo, counted_in, documents_of, without_rows
from rag.index.corpus_files import FORMATS
from rag.index.editions import drop_replaced, next_edition, put_back, tidy
from rag.index.embed import Encode, embed, lock_folder
from rag.index.faiss_types import IndexType
from rag.index.milvus_fill import fill
from rag.index.milvus_stores import EnginePassages, EngineVectors
from rag.index.milvus_type import MilvusType
from rag.index.opening import IndexFiles, open_files
from rag.index.passage import Passage, whole_id
from rag.index.passages import PassageStore, describe_corpus
from rag.index.readers import CorpusReader
from rag.index.reading import AS_USUAL, CorpusReading
from rag.index.vectors import UNKNOWN, EncoderInfo, Vectors, shard_file

LARGEST_EDIT = 0.2  # share of the passages; with more, a trained index is trained anew on the new edition
LEAST_COSINE = 0.99
_SAMPLED = 64


def update(
    folder: Path | str,
    added: Path | str | None = None,
    removed: Sequence[str] = (),
    encode: Encode | None = None,
    encoder: EncoderInfo | None = None,
    queries: Float32[np.ndarray, "Q D"] | None = None,
    batch_size: int = 64,
    show_progress: bool = True,
    reading: CorpusReading = AS_USUAL,
) -> bool:
    """Add the passages of a corpus to the index in `folder`, and remove those that `removed` names: ids of passages,
    ids of what was split into pieces, or names of documents.

    False where the index is what this very update made of it, and nothing is left to do.

    An id in both is a passage that is replaced. New passages come after the old ones. encode, encoder: the passage
    encoder of the index, needed to add. FAISS's index is edited where its type allows that and a fifth of the
    passages at most change, otherwise it is built anew from the vectors; its recall is measured again. queries: as in
    `build`. reading: how `added` is read; passages without ids are numbered after those that are there. A killed update
    resumes when it is asked for again.

    Raises UserError, and leaves the index as it was, for an id that is not there, one that would come twice, a
    malformed corpus, another encoder than the index's, or where nothing would be left.
    """
    folder = Path(folder)
    put_back(folder)
    old = open_files(folder)
    if is_made(old.passages, added, removed, reading):
        tidy(folder)
        return False
    check_changeable(old)
    kept = _kept(old, removed)
    if added is not None:
        check_encoder(old, encode, encoder)
    if not kept.any() and added is None:
        raise UserError(f"no passage of {folder} would be left: delete the folder instead")
    was = old.passages.source or {}
    change = {"removed": int((~kept).sum()), "added": None if added is None else str(added)}
    source = {key: was[key] for key in ("path", "reading", "encoding", "words", "cut") if key in was} | {
        "request": _request(old.passages.sha256, added, removed, reading),
        "of": old.passages.sha256,
        "changes": [*was.get("changes", []), change],
    }
    next = Edition(kept, source)
    if added is not None:
        next.reader = CorpusReader(added, reading, first_id=largest_number(old.passages) + 1)
        next.files = documents_of(next.reader.corpus)
    next.make(old, encode, queries, batch_size, show_progress)
    return True


@dataclass
class Edition:
    """The next edition of an index: which passages stay, and what is read besides.

    kept: which of the old passages stay. source: what is kept of where the passages are from; `request` says which
    change this is. reader: of the new passages. files: what it reads. gone: documents that do not stay. alike: a new
    passage that stands in the old edition word for word, under whatever id, takes over its vector.
    """

    kept: Bool[np.ndarray, " N"]
    source: dict[str, Any]
    reader: CorpusReader | None = None
    files: dict[str, DocumentInfo] = field(default_factory=dict)
    gone: Collection[str] = ()
    alike: bool = False

    def make(
        self,
        old: IndexFiles,
        encode: Encode | None,
        queries: Float32[np.ndarray, "Q D"] | None,
        batch_size: int,
        show_progress: bool,
    ) -> int:
        """Build it beside the old one and put it in its place; how many passages had to be embedded."""
        folder = old.folder
        work = next_edition(folder)
        with lock_folder(folder):
            store = self._store(old, work, show_progress)
            rows = np.full(len(store), -1)
            staying = int(self.kept.sum())
            rows[:staying] = np.flatnonzero(self.kept)
            if self.alike and len(store) > staying:
                rows[staying:] = rows_alike(old.passages, store, staying)
            assert isinstance(old.vectors, Vectors)
            known = _Kept(old.vectors, rows, old.manifest.vectors)
            _link_shards(known, work)
            size = old.manifest.shard_size
            info = old.manifest.encoder
            embed(store, encode, work, info, size, batch_size, show_progress=show_progress, known=known)
            if old.manifest.engine:
                fill(
                    work, MilvusType(**old.manifest.type), queries, show_progress=show_progress, replaces=old
                )
                replace_folder(work, folder)
                drop_replaced(folder)
                return int((rows < 0).sum())
            kind = IndexType(**old.manifest.type) if old.manifest.type else IndexType(old.manifest.factory)
            begun = None
            if (~self.kept).sum() + (len(store) - staying) <= LARGEST_EDIT * len(old.passages):
                begun = _edited(folder / "index.faiss", self.kept)
                kind = kind if begun is None else replace(kind, factory=old.manifest.factory)
            build(work, kind, queries, show_progress=show_progress, begun=begun)
            replace_folder(work, folder)
        return int((rows < 0).sum())

    def _store(self, old: IndexFiles, work: Path, show_progress: bool) -> PassageStore:
        """Its passages in `work`; what an earlier try left there is used if it was of the same change."""
        try:
            store = PassageStore.open(work / "passages")
            if (store.source or {}).get("request") == self.source["request"]:
                return store
        except UserError:
            pass
        shutil.rmtree(work, ignore_errors=True)
        before = old.passages.documents()
        staying: Iterator[Passage] = (p for row, p in enumerate(old.passages) if self.kept[row])

        def documents() -> list[DocumentInfo]:
            counts = {} if self.reader is None else self.reader.counts
            staying = without_rows(before or [], self.kept)
            return [
                *(each for each in staying if each.name not in self.gone),
                *counted_in(self.files, counts),
            ]

        return PassageStore.write(
            chain(staying, self._new(old)),
            work / "passages",
            self.source,
            show_progress,
            documents=None if before is None and self.kept.any() else documents,
        )

    def _new(self, old: IndexFiles) -> Iterator[Passage]:
        if self.reader is None:
            return
        for passage in (
            self.reader.any_passages() if self.alike and self.kept.any() else self.reader.passages()
        ):
            row = _row_of(old.passages, passage.id)
            if row is not None and self.kept[row]:
                raise UserError(
                    f"{self.reader.corpus} holds the passage {passage.id!r}, which is in {old.folder} already: give it "
                    "another id, or name it under remove= as well to replace it"
                )
            yield passage


def check_changeable(old: IndexFiles) -> None:
    """UserError for an index without vectors that could be taken over."""
    if isinstance(old.vectors, EngineVectors) or isinstance(old.passages, EnginePassages):
        raise UserError(
            f"{old.folder} has its passages or vectors in the engine alone: change the index in the folder that it was "
            "built in"
        )
    if not isinstance(old.vectors, Vectors):
        raise UserError(
            f"{old.folder} holds no true vectors, only what {old.manifest.factory} left of them: build an index with "
            "vectors (corpus.vectors=…) to add passages or remove some"
        )


def _row_of(store: PassageStore, id: str) -> int | None:
    try:
        return store.row_of(id)
    except KeyError:
        return None


def is_made(
    store: PassageStore,
    added: Path | str | None,
    removed: Sequence[str],
    reading: CorpusReading = AS_USUAL,
) -> bool:
    """Whether these passages are what this update made of the ones before: it had finished, and is asked for again.

    Raises UserError where what was to be added is not there.
    """
    if added is not None and not Path(added).exists():
        raise UserError(f"{added} does not exist: give the path of a corpus ({FORMATS})")
    was = store.source or {}
    if "of" not in was or "request" not in was:
        return False
    return was["request"] == _request(was["of"], added, removed, reading)


def _request(
    corpus_sha256: str,
    added: Path | str | None,
    removed: Sequence[str],
    reading: CorpusReading,
) -> str:
    """What an update is known by: a hash of the passages it changes, and how."""
    corpus = None if added is None else describe_corpus(added, reading)
    asked = [corpus_sha256, sorted(removed), corpus and corpus["sha256"], *reading.settings().items()]
    return hashlib.sha256(json.dumps(asked).encode()).hexdigest()


def read_ids(path: Path | str) -> list[str]:
    """The ids in a text file, one a line. Raises UserError if it is missing, empty or not UTF-8."""
    try:
        ids = [line.strip() for line in Path(path).read_text(encoding="utf-8-sig").splitlines()]
    except OSError as error:
        raise UserError(
            f"{path} cannot be read ({error.strerror}): give a file with one id per line"
        ) from error
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path} is not UTF-8 ({error.reason}): give a text file with one id per line"
        ) from error
    if not any(ids):
        raise UserError(f"{path} holds no ids: give one per line")
    return [id for id in ids if id]


def _kept(old: IndexFiles, removed: Sequence[str]) -> Bool[np.ndarray, " N"]:
    kept = np.ones(len(old.passages), bool)
    absent = []
    for id in removed:
        if (row := _row_of(old.passages, id)) is None:
            absent.append(id)
        else:
            kept[row] = False
    groups = _rows_of_groups(old.passages, set(absent))
    for rows in groups.values():
        kept[rows] = False
    if unknown := [id for id in absent if id not in groups]:
        raise UserError(
            f"{old.folder} holds no passage {' or '.join(map(repr, unknown[:3]))}{', …' if unknown[3:] else ''} "
            f"({len(unknown)} of the {len(removed)} ids to remove are not there), and no document of that name: give "
            "ids that it holds, a name that list=true shows, or a file of them"
        )
    return kept


def _rows_of_groups(store: PassageStore, names: set[str]) -> dict[str, Int64[np.ndarray, " rows"]]:
    """The rows of documents by their names, and of passages that were split into pieces by the id of the whole."""
    if not names:
        return {}
    found: dict[str, list[int]] = {}
    row = 0
    for document in store.documents() or []:
        if document.name in names and document.passages:
            found[document.name] = list(range(row, row + document.passages))
        row += document.passages
    if left := names - set(found):
        for start in range(0, len(store), 4096):
            for row, id in enumerate(store.ids_from(start, 4096), start):
                if (whole := whole_id(id)) in left and whole != id:
                    found.setdefault(whole, []).append(row)
    return {name: np.array(rows) for name, rows in found.items()}


def check_encoder(old: IndexFiles, encode: Encode | None, encoder: EncoderInfo | None) -> None:
    """UserError unless there is an encoder, and it is the one that made the others' vectors."""
    if encode is None or encoder is None:
        raise UserError("passages cannot be added without the passage encoder that made the others' vectors")
    mine = old.manifest.encoder
    if mine.weights == encoder.weights:
        return
    same = False
    if mine.weights == UNKNOWN:  # taken over from elsewhere: encode some passages again
        rows = np.random.default_rng(0).choice(
            len(old.passages), min(_SAMPLED, len(old.passages)), replace=False
        )
        ours, theirs = np.asarray(encode([old.passages[row] for row in rows])), old.vectors.gather(rows)
        if ours.shape == theirs.shape:
            norms = np.linalg.norm(ours, axis=1) * np.linalg.norm(theirs, axis=1)
            same = bool(np.median((ours * theirs).sum(axis=1) / np.maximum(norms, 1e-12)) >= LEAST_COSINE)
    if not same:
        raise UserError(
            f"{old.folder} was embedded by {mine.name} (weights {mine.weights}), not by {encoder.name} (weights "
            f"{encoder.weights}): give passage_encoder=… the encoder that made the others' vectors"
        )


def largest_number(store: PassageStore) -> int:
    """The largest id that is a whole number, or 0."""
    blocks = (store.ids_from(row, 4096) for row in range(0, len(store), 4096))
    numbers = (int(whole_id(id)) for block in blocks for id in block if whole_id(id).isdecimal())
    return max(numbers, default=0)


def rows_alike(old: PassageStore, new: PassageStore, start: int) -> Int64[np.ndarray, " rows"]:
    """For each passage of `new` from row `start` on, the row of one in `old` with the same title and text, or −1."""
    order = np.argsort(hashes := _content_hashes(old, 0), kind="stable")
    wanted = _content_hashes(new, start)
    at = order[np.minimum(np.searchsorted(hashes[order], wanted), len(order) - 1)]
    rows = np.where(hashes[at] == wanted, at, -1)
    for number in np.flatnonzero(rows >= 0):  # two texts may share a hash
        one, other = new[start + int(number)], old[int(rows[number])]
        if (one.title, one.text) != (other.title, other.text):
            rows[number] = -1
    return rows


def _content_hashes(store: PassageStore, start: int) -> np.ndarray:
    """A hash of 64 bits of the title and text of every passage from row `start` on."""
    made = bytearray()
    for begin in range(start, len(store), 4096):
        for passage in store.slice(begin, begin + 4096):
            content = f"{len(passage.title)} {passage.title}{passage.text}".encode()
            made += hashlib.blake2b(content, digest_size=8).digest()
    return np.frombuffer(bytes(made), np.uint64)


class _Kept:
    """The vectors of the passages that stay, by their rows in the new edition; −1 for a new passage."""

    def __init__(self, vectors: Vectors, rows: Int64[np.ndarray, " N"], origin: str):
        self.vectors = vectors
        self.rows = rows
        self.dim = vectors.dim
        self.origin = origin

    def fill(self, start: int, vectors: Float32[np.ndarray, "rows D"]) -> Bool[np.ndarray, " rows"]:
        rows = self.rows[start : start + len(vectors)]
        vectors[:] = self.vectors.gather(rows)
        return rows >= 0


def _link_shards(known: _Kept, work: Path) -> None:
    """Shards that stay as they are become links, which take no room: those before the first change."""
    size, folder = known.vectors.shard_size, work / "vectors"
    folder.mkdir(parents=True, exist_ok=True)
    for first in range(0, len(known.rows), size):
        number = first // size
        rows_of_shard = known.rows[first : first + size]
        whole = len(rows_of_shard) == min(size, len(known.vectors) - first)
        if not whole or not np.array_equal(rows_of_shard, np.arange(first, first + len(rows_of_shard))):
            return
        if not (new := shard_file(folder, number)).exists():
            try:
                os.link(shard_file(known.vectors.folder, number), new)
            except OSError:  # another file system, or one without links: they are copied
                return


def _edited(file: Path, kept: Bool[np.ndarray, " N"]) -> Any:
    """FAISS's index without what was removed, its rows numbered anew; None where its type cannot do that."""
    index: Any = faiss.read_index(str(file))
    if kept.all():
        return index
    try:
        index.remove_ids(np.flatnonzero(~kept))
    except RuntimeError:
        return None
    ivf: Any = faiss.try_extract_index_ivf(index)
    if ivf is not None:  # which leaves the others' numbers as they were
        numbers = np.cumsum(kept) - 1
        for cell in range(ivf.nlist):
            if count := ivf.invlists.list_size(cell):
                ids = faiss.rev_swig_ptr(ivf.invlists.get_ids(cell), count)
                ids[:] = numbers[ids]
    return index
