"""Reading a corpus: any of the usual file forms as a stream of passages, in constant memory (section 3)."""

import logging
import re
from array import array
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path

import numpy as np

from rag.errors import UserError, shortened
from rag.index.fields import Row
from rag.index.json_reader import read_json_passages
from rag.index.passage import Passage, counted, has_half_pair, piece_id, without_half_pairs
from rag.index.splitting import split_words
from rag.index.tables import is_table, read_parquet, read_table
from rag.index.text_folders import files_below, is_text, kinds_of, read_text
from rag.text_files import ARCHIVES, open_bytes, plain_name, unreadable

log = logging.getLogger(__name__)

_SHARD = re.compile(r"(.+)-(\d+)-of-(\d+)\.parquet")
FORMATS = (
    ".tsv, .csv, .jsonl, .json, .txt or .md (each also .gz or .xz), .parquet, or a folder of .parquet, of .txt and "
    ".md, or of such tables"
)
_TABLES = (".tsv", ".csv", ".jsonl", ".json")
_Read = Callable[[Path, str | None], Iterator[Row]]


def read_passages(
    path: Path | str, encoding: str | None = None, words: int | None = None, first_id: int = 1
) -> Iterator[Passage]:
    """Stream the passages of a corpus in their order, in constant memory.

    Reads tables (.tsv as DPR's psgs_w100, .csv; with a header that names id, text and title in any order, or
    without), .jsonl and .json (objects with the same fields, an array of them, or SQuAD's paragraphs), all also
    compressed (.gz, .xz); .parquet; a folder of such files; and .txt and .md files, or a folder of them, which are
    split into disjoint 100-word passages titled by their first heading or else their file's name. Other names that
    are read are `_id`, `contents` and their like (passage_fields.py); further fields are left unread.

    encoding: of text files; None is UTF-8. words: split every passage into pieces of so many words, whose ids are
    "7#1", "7#2", …; None leaves passages as they are, but for text files. first_id: passages without ids are numbered
    from here. Half a surrogate pair in a title or text becomes U+FFFD; such passages are counted.

    Raises UserError, naming the file and the line, for a missing, empty or damaged file, a missing column, a row with
    too few or too many columns, an empty text, bytes that are not of the encoding, and an id that comes twice (found
    at once for ids that are small whole numbers, otherwise when the whole file has been read).
    """
    path = existing(path, f"give the path of a corpus ({FORMATS})")
    if words is not None and words < 1:
        raise UserError(
            f"corpus.split_words={words}: give the number of words of a passage, such as 100, or null"
        )
    files, left_out = corpus_files(path)
    if left_out:
        log.warning("%s: %s left out: %s", path, counted(len(left_out), "file"), kinds_of(left_out))
    return _Reader(path, files, encoding, words, first_id).passages()


def existing(path: Path | str, advice: str) -> Path:
    """The path of something that exists. UserError, ending in the advice, where nothing does or may be seen there."""
    path = Path(path)
    try:
        path.stat()
    except FileNotFoundError:
        raise UserError(f"{path} does not exist: {advice}") from None
    except (OSError, ValueError) as error:
        raise unreadable(path, error) from error
    return path


def corpus_files(path: Path) -> tuple[list[Path], list[Path]]:
    """The files of a corpus that are read, in their order, and those of a folder that are not.

    Of a folder: BEIR's corpus.jsonl beside its queries; else its .parquet files; else the .txt and .md files in it and
    in its folders; else its tables. Raises UserError where there is nothing to read.
    """
    if not path.is_dir():
        return [path], []
    if (path / "corpus.jsonl").is_file() and (path / "queries.jsonl").is_file():  # BEIR's
        return [path / "corpus.jsonl"], []
    if files := sorted(path.glob("*.parquet")):
        check_shards(path, files)
        return files, []
    skipped: list[Path] = []
    everything = list(files_below(path, skipped))
    chosen = [file for file in everything if is_text(file)]
    chosen = chosen or [file for file in everything if plain_name(file).endswith(_TABLES)]
    if not chosen:
        found = everything + skipped
        content = f"found {kinds_of(found)}" if found else "it is empty"
        raise UserError(f"{path} has nothing to read: {content}; expected {FORMATS}")
    kept = set(chosen)
    return chosen, [file for file in everything if file not in kept] + skipped


class _Reader:
    """One pass over a corpus, and what is to be said of it at the end."""

    def __init__(
        self, corpus: Path, files: list[Path], encoding: str | None, words: int | None, first_id: int
    ):
        self.corpus = corpus
        self.files = files
        self.encoding = encoding
        self.words = words
        self.first_id = first_id
        self.replaced = self.split = self.pieces = 0

    def passages(self) -> Iterator[Passage]:
        seen = SeenIds()
        count = 0
        for location, passage in self._numbered():
            if not seen.add(passage.id):
                raise _twice(location, passage.id)
            count += 1
            yield passage
        if not count:
            if self.corpus.is_dir():
                raise UserError(f"{self.corpus} holds no text: all of its {len(self.files)} files are empty")
            raise UserError(f"{self.corpus} holds no passages")
        self._report()
        if suspects := seen.repeated():
            met: set[str] = set()
            for location, passage in self._numbered():
                if hash(passage.id) in suspects:
                    if passage.id in met:
                        raise _twice(location, passage.id)
                    met.add(passage.id)

    def _numbered(self) -> Iterator[tuple[str, Passage]]:
        """Every passage, and where it stands."""
        numbers = count(self.first_id)
        made: bool | None = None  # whether the first passage had no id
        self.replaced = self.split = self.pieces = 0
        for file in self.files:
            kind = _kind(file)
            if kind is None:
                for title, text in read_text(file, self.encoding, self.words):
                    yield str(file), Passage(str(next(numbers)), self._whole(title), self._whole(text))
                continue
            read, unit = kind
            for line, id, title, text in read(file, self.encoding):
                location = f"{file}, {unit} {line}"
                if made is None:
                    made = id is None
                    if made:
                        log.warning("%s: passages have no ids, and are numbered from %d", file, self.first_id)
                if (id is None) is not made:
                    raise UserError(
                        f"{location}: {'no id' if id is None else 'an id'}: give all passages one, or none"
                    )
                passage_id = str(next(numbers)) if id is None else id
                if not text or text.isspace():
                    raise UserError(
                        f"{location}: the text of passage {shortened(passage_id)!r} is empty: give it one or drop it"
                    )
                if not passage_id or has_half_pair(passage_id):
                    what = (
                        "holds half a surrogate pair (a character that was cut)" if passage_id else "is empty"
                    )
                    raise UserError(
                        f"{location}: the id {shortened(passage_id)!r} {what}: give the passage another"
                    )
                if has_half_pair(title) or has_half_pair(text):
                    self.replaced += 1
                    title, text = without_half_pairs(title), without_half_pairs(text)
                parts = [text] if self.words is None else split_words(text, self.words)
                if len(parts) == 1:
                    yield location, Passage(passage_id, title, text)
                    continue
                self.split += 1
                self.pieces += len(parts)
                for number, part in enumerate(parts, start=1):
                    yield location, Passage(piece_id(passage_id, number), title, part)

    def _whole(self, text: str) -> str:
        return without_half_pairs(text) if has_half_pair(text) else text

    def _report(self) -> None:
        if self.replaced:
            log.warning(
                "%s: half a surrogate pair (a character that was cut) becomes U+FFFD in %s",
                self.corpus,
                counted(self.replaced, "passage"),
            )
        if self.split:
            log.warning(
                "%s: %s of more than %d words split into %s",
                self.corpus,
                counted(self.split, "passage"),
                self.words,
                counted(self.pieces, "piece"),
            )


def _kind(file: Path) -> tuple[_Read, str] | None:
    """What reads a file and what it counts; None for text without columns."""
    name = plain_name(file)
    if name.endswith((".jsonl", ".json")):
        return read_json_passages, "line"
    if name.endswith(".parquet"):
        return read_parquet, "row"
    if name.endswith((".tsv", ".csv")) or is_text(Path(name)) and is_table(file):
        return read_table, "line"
    if is_text(Path(name)):
        return None
    if name.endswith(ARCHIVES):
        open_bytes(file)  # says to unpack it
    raise UserError(f"{file} is not in a supported format; a corpus is {FORMATS}")


def _twice(location: str, id: str) -> UserError:
    return UserError(f"{location}: the id {shortened(id)!r} occurs twice: ids must be unique")


class SeenIds:
    """Which ids were met: a byte for each small whole number, a 64-bit hash for any other.

    21 million ids take 21 MB, or 170 MB when they are not numbers, where a set of strings would take
    gigabytes.
    """

    _LARGEST = 100_000_000

    def __init__(self) -> None:
        self._numbers = bytearray(1 << 16)
        self._hashes = array("q")

    def add(self, id: str) -> bool:
        """False if `id` is a small whole number that was met before; other ids are judged by `repeated`."""
        if id.isdigit() and id.isascii() and len(id) < 10 and (id[0] != "0" or id == "0"):
            number = int(id)
            if number < self._LARGEST:
                if number >= len(self._numbers):
                    self._numbers.extend(bytes(max(number + 1 - len(self._numbers), len(self._numbers) // 2)))
                if self._numbers[number]:
                    return False
                self._numbers[number] = 1
                return True
        self._hashes.append(hash(id))
        return True

    def repeated(self) -> set[int]:
        """The hashes that came more than once (two ids may share one by chance: compare the ids
        themselves)."""
        hashes = np.frombuffer(self._hashes, dtype=np.int64) if self._hashes else np.empty(0, np.int64)
        hashes.sort()
        return set(hashes[1:][hashes[1:] == hashes[:-1]].tolist())


def check_shards(folder: Path, files: list[Path]) -> None:
    """Say which of files that are numbered as NAME-00003-of-00157.parquet are not there.

    UserError where a download was broken off beside them; otherwise a warning, since a part may be meant.
    """
    for name in sorted({match[1] for file in files if (match := _SHARD.fullmatch(file.name))}):
        numbered = [match for file in files if (match := _SHARD.fullmatch(file.name)) and match[1] == name]
        count = max(int(match[3]) for match in numbered)
        there = {int(match[2]) for match in numbered if int(match[3]) == count}
        if missing := sorted(set(range(count)) - there):
            first = f"{name}-{missing[0]:0{len(numbered[0][2])}d}-of-{numbered[0][3]}.parquet"
            more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
            lacks = f"{folder} lacks {first}{more} of {count} files"
            if any(folder.glob(".*.partial")):
                raise UserError(
                    f"{lacks}, and a download was broken off there: run it again (python -m rag.download)"
                )
            log.warning("%s: the rest is taken for all there is", lacks)
