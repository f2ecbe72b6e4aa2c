"""Reading a corpus: any of the usual file forms as a stream of passages, in constant memory (section 3)."""

import logging
from collections.abc import Callable, Collection, Iterator
from itertools import count
from pathlib import Path

from rag.errors import UserError, listed, shortened
from rag.index.corpus_files import (
    FORMATS,
    corpus_files,
    document_name,
    existing,
    is_document,
    is_mixture,
    tell_left_out,
)
from rag.index.fields import Row
from rag.index.json_reader import read_json_passages
from rag.index.passage import Passage, SeenIds, counted, has_half_pair, piece_id, without_half_pairs
from rag.index.reading import AS_USUAL, CorpusReading
from rag.index.rich_text import is_rich, rich_document
from rag.index.sections import Document, markdown_sections, name_of, passages_of, read_sections
from rag.index.splitting import cut
from rag.index.tables import is_table, read_arrow, read_parquet, read_table
from rag.index.text_folders import is_text, read_text
from rag.text_files import ARCHIVES, EncodingError, open_bytes, plain_name

log = logging.getLogger(__name__)

_Read = Callable[[Path, CorpusReading], Iterator[Row]]


def read_passages(
    path: Path | str, reading: CorpusReading = AS_USUAL, first_id: int = 1
) -> Iterator[Passage]:
    """Stream the passages of a corpus in their order, in constant memory.

    Reads tables (.tsv as DPR's psgs_w100, .csv; with a header that names id, text and title in any order, or
    without), .jsonl and .json (objects with the same fields, an array of them, or SQuAD's paragraphs), all also
    compressed (.gz, .xz); .parquet; what `datasets` saved; and documents: .txt, .md, .html, .pdf and .docx; or a folder
    of such files. Other names that are read are `_id`, `contents` and their like (fields.py); further fields are left
    unread.

    reading: how; as usual, documents are split into disjoint 100-word passages, named "sub/name.md#1" and so on, and
    other passages stay whole; pieces of those that are split are "7#1", "7#2", … first_id: passages of tables without
    ids are numbered from here; beside documents they are named by their file, too. Half a surrogate pair in a title or
    text becomes U+FFFD; such passages are counted.

    Raises UserError, naming the file and the line, for a missing, empty or damaged file, a missing column, a row with
    too few or too many columns, an empty text, bytes that are not of the encoding, and an id that comes twice (found
    at once for ids that are small whole numbers, otherwise when the whole file has been read). In a folder, a document
    that is damaged and a table without passages beside documents are left out, counted and named.
    """
    return CorpusReader(path, reading, first_id).passages()


class CorpusReader:
    """One pass over a corpus, and what is to be said of it at the end.

    counts: how many passages each document has, by its name, in their order; known when all were read.
    """

    def __init__(
        self,
        path: Path | str,
        reading: CorpusReading = AS_USUAL,
        first_id: int = 1,
        only: Collection[str] | None = None,
    ):
        """only: the names of those documents that are read; None: all."""
        self.corpus = existing(path, f"give the path of a corpus ({FORMATS})")
        self.reading = reading.checked()
        files, left_out = corpus_files(self.corpus)
        self.mixture = self.corpus.is_dir() and is_mixture(files)
        self.files = [file for file in files if only is None or document_name(self.corpus, file) in only]
        self.first_id = first_id
        self.counts: dict[str, int] = {}
        self._begin()
        tell_left_out(self.corpus, left_out)

    def _begin(self) -> None:
        self.replaced = self.split = self.pieces = 0
        self.unread: dict[str, str] = {}  # name → why
        self.counts = {}
        self._made: bool | None = None  # whether the first passage had no id

    def passages(self) -> Iterator[Passage]:
        """Raises UserError where there are none."""
        yield from self.any_passages()
        if not any(self.counts.values()):
            if self.unread:
                raise UserError(
                    f"{self.corpus} holds no text that can be read: {next(iter(self.unread.values()))}"
                )
            if self.corpus.is_dir():
                raise UserError(f"{self.corpus} holds no text: all of its {len(self.files)} files are empty")
            raise UserError(f"{self.corpus} holds no {'text' if is_document(self.files[0]) else 'passages'}")

    def any_passages(self) -> Iterator[Passage]:
        """The same, also where there are none."""
        seen = SeenIds()
        for location, passage in self._located():
            if not seen.add(passage.id):
                raise _twice(location, passage.id)
            yield passage
        self._report()
        if suspects := seen.repeated():
            met: set[str] = set()
            for location, passage in self._located():
                if hash(passage.id) in suspects:
                    if passage.id in met:
                        raise _twice(location, passage.id)
                    met.add(passage.id)

    def _located(self) -> Iterator[tuple[str, Passage]]:
        """Every passage, and where it stands."""
        self._begin()
        numbers = count(self.first_id)
        for file in self.files:
            name = document_name(self.corpus, file)
            self.counts[name] = 0
            if self.mixture:
                self._made = None
            try:
                for found in self._of_file(file, name, numbers):
                    self.counts[name] += 1
                    yield found
            except UserError as error:
                # one bad file is no reason to refuse a folder; what is written in another encoding is
                optional = self.corpus.is_dir() and (is_rich(file) or self.mixture and not is_document(file))
                if not optional or self.counts[name] or isinstance(error, EncodingError):
                    raise
                self.unread[name] = str(error)

    def _of_file(self, file: Path, name: str, numbers: Iterator[int]) -> Iterator[tuple[str, Passage]]:
        kind = _kind(file, self.reading)
        if kind is None:
            for number, (title, text) in enumerate(_read_document(file, self.reading), start=1):
                yield str(file), Passage(piece_id(name, number), _whole(title), _whole(text))
            return
        read, unit = kind
        for row, (line, id, title, text) in enumerate(read(file, self.reading), start=1):
            location = f"{file}, {unit} {line}"
            if self._made is None:
                self._made = id is None
                if self._made and not self.mixture:
                    log.warning("%s: passages have no ids, and are numbered from %d", file, self.first_id)
            if (id is None) is not self._made:
                raise UserError(
                    f"{location}: {'no id' if id is None else 'an id'}: give all passages one, or none"
                )
            if id is None:
                id = piece_id(name, row) if self.mixture else str(next(numbers))
            _check(location, id, text)
            if has_half_pair(title) or has_half_pair(text):
                self.replaced += 1
                title, text = without_half_pairs(title), without_half_pairs(text)
            parts = [(title, text)] if self.reading.split is None else list(self._parts(title, text))
            if len(parts) < 2:
                yield location, Passage(id, title, text)
                continue
            self.split += 1
            self.pieces += len(parts)
            for number, part in enumerate(parts, start=1):
                yield location, Passage(piece_id(id, number), *part)

    def _parts(self, title: str, text: str) -> Iterator[tuple[str, str]]:
        """What a passage of a table is split into."""
        if self.reading.split == "headings":
            yield from passages_of(Document(title, markdown_sections(text)), title, self.reading)
        else:
            yield from ((title, part) for part in cut(text.split("\n"), self.reading))

    def _report(self) -> None:
        if self.replaced:
            log.warning(
                "%s: half a surrogate pair (a character that was cut) becomes U+FFFD in %s",
                self.corpus,
                counted(self.replaced, "passage"),
            )
        if self.split:
            log.warning(
                "%s: %s of more than %d %s split into %s",
                self.corpus,
                counted(self.split, "passage"),
                self.reading.length,
                "tokens" if self.reading.split == "tokens" else "words",
                counted(self.pieces, "piece"),
            )
        if self.unread:
            log.warning(
                "%s: %s left out: %s",
                self.corpus,
                counted(len(self.unread), "unreadable file"),
                "; ".join(shortened(each, 300) for each in [*self.unread.values()][:5])
                + "; …" * (len(self.unread) > 5),
            )
        empty = [name for name, count in self.counts.items() if not count and name not in self.unread]
        if empty and self.corpus.is_dir():
            log.warning("%s: %s without text: %s", self.corpus, counted(len(empty), "file"), listed(empty, 5))


def _read_document(file: Path, reading: CorpusReading) -> Iterator[tuple[str, str]]:
    """(title, text) of the passages of a file of running text."""
    reading = reading.by("words")
    if is_rich(file):
        return passages_of(rich_document(file, reading.encoding), name_of(file), reading)
    return read_text(file, reading) if reading.split == "words" else read_sections(file, reading)


def _kind(file: Path, reading: CorpusReading) -> tuple[_Read, str] | None:
    """What reads a file and what it counts; None for text without columns."""
    name = plain_name(file)
    if name.endswith((".jsonl", ".json")):
        return read_json_passages, "line"
    if name.endswith(".parquet"):
        return read_parquet, "row"
    if name.endswith(".arrow"):
        return read_arrow, "row"
    if name.endswith((".tsv", ".csv")) or is_text(Path(name)) and is_table(file, reading):
        return read_table, "line"
    if is_document(file):
        return None
    if name.endswith(ARCHIVES):
        open_bytes(file)  # says to unpack it
    raise UserError(f"{file} is not in a supported format; a corpus is {FORMATS}")


def _check(location: str, id: str, text: str) -> None:
    if not text or text.isspace():
        raise UserError(f"{location}: the text of passage {shortened(id)!r} is empty: give it one or drop it")
    if not id or has_half_pair(id):
        what = "holds half a surrogate pair (a character that was cut)" if id else "is empty"
        raise UserError(f"{location}: the id {shortened(id)!r} {what}: give the passage another")


def _whole(text: str) -> str:
    return without_half_pairs(text) if has_half_pair(text) else text


def _twice(location: str, id: str) -> UserError:
    return UserError(f"{location}: the id {shortened(id)!r} occurs twice: ids must be unique")
