"""The corpus (section 3): readers, 100-word splitting, and two memory-mapped stores.

The paper's non-parametric memory is English Wikipedia cut into 21 million disjoint passages of 100 words.
Nothing here holds a corpus in memory: `read_passages` streams any of the usual file formats, `PassageStore`
keeps ids, titles and texts in an Arrow file, `TokenStore` keeps the generator's tokens of "title / text" in
one flat array. Both stores are opened by mapping their files, so that all processes of a machine share one
copy.

A passage is known by its `id` (the corpus's own, a string) and by its `row` (0 … N-1, its place in the store,
which is also its number in the index). N is the number of passages.
"""

import codecs
import csv
import gzip
import hashlib
import json
import logging
import lzma
import os
import re
import zlib
from array import array
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Int64

from rag.errors import UserError
from rag.files import hash_file, read_json, write_aside, write_json
from rag.progress import progress_bar

FORMATS = ".tsv, .jsonl (each also .gz or .xz), .parquet, or a folder of .parquet, .txt or .md files"
WORDS_PER_PASSAGE = 100
log = logging.getLogger(__name__)

_STORE_FORMAT = 1
_TOKENS_FORMAT = 1
_ROWS_PER_BATCH = 4096
_SHARD = re.compile(r"(.+)-(\d+)-of-(\d+)\.parquet")
_LONGEST_LINE = 1 << 20  # bytes of a text file that are held at once


@dataclass(frozen=True, slots=True)
class Passage:
    """One passage z: its id in the corpus, the title of the page it is from, and its text."""

    id: str
    title: str
    text: str


# ---------------------------------------------------------------------------------- reading


def split_words(text: str, words: int = WORDS_PER_PASSAGE) -> list[str]:
    """Cut `text` into disjoint pieces of `words` words, the last one shorter (section 3)."""
    return list(_pieces(iter(text.split()), words))


def _pieces(words: Iterator[str], length: int) -> Iterator[str]:
    while piece := list(islice(words, length)):
        yield " ".join(piece)


def read_passages(path: Path | str) -> Iterator[Passage]:
    """Stream the passages of a corpus in their order, in constant memory.

    Reads DPR's psgs_w100 form (.tsv: header naming `id`, `text` and `title` in any order, tab separated, a
    field in double quotes where it needs them, `""` for a quote), .jsonl (objects with `id`, `text` and, if
    there is one, `title`), both also compressed (.gz, .xz); .parquet or a folder of such files (the same
    columns; any others, as `embeddings`, are left unread); and a folder of .txt and .md files, which are
    split into disjoint 100-word passages titled by their first heading or else their file's name, with
    running numbers for ids.

    Raises UserError, naming the file and the line, for a missing, empty or damaged file, a missing column, a
    row with too few or too many columns, a broken quote, an empty text, bytes that are not UTF-8, and an id
    that comes twice (found at once for ids that are small whole numbers, otherwise when the whole file has
    been read).
    """
    path = Path(path)
    if not path.exists():
        raise UserError(f"{path} does not exist: give the path of a corpus ({FORMATS})")
    if path.is_dir():
        if files := sorted(path.glob("*.parquet")):
            check_shards(path, files)
            return _checked(path, files, _read_parquet, "row")
        return _read_folder(path)
    name = path.name.removesuffix(".gz").removesuffix(".xz")
    if name.endswith(".tsv"):
        return _checked(path, [path], _read_tsv, "line")
    if name.endswith((".jsonl", ".json")):
        return _checked(path, [path], _read_jsonl, "line")
    if path.suffix == ".parquet":
        return _checked(path, [path], _read_parquet, "row")
    raise UserError(f"{path} is of no form that can be read: a corpus is {FORMATS}")


_Row = tuple[int, str, str, str]  # line number, id, title, text


def _checked(
    corpus: Path, files: list[Path], read: Callable[[Path], Iterator[_Row]], unit: str
) -> Iterator[Passage]:
    seen = _SeenIds()
    count = 0
    for file in files:
        for number, id, title, text in read(file):
            if not text or text.isspace():
                raise UserError(
                    f"{file}, {unit} {number}: the text of passage {id!r} is empty: give it one or drop it"
                )
            if not seen.add(id):
                raise UserError(
                    f"{file}, {unit} {number}: the id {id!r} comes a second time: ids must be unique"
                )
            count += 1
            yield Passage(id, title, text)
    if not count:
        raise UserError(f"{corpus} holds no passages")
    if suspects := seen.repeated():
        met: set[str] = set()
        for file in files:
            for number, id, _, _ in read(file):
                if hash(id) in suspects:
                    if id in met:
                        raise UserError(
                            f"{file}, {unit} {number}: the id {id!r} comes a second time: ids must be unique"
                        )
                    met.add(id)


class _SeenIds:
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


def _open_bytes(path: Path) -> Any:
    if path.suffix == ".gz":
        return gzip.open(path, "rb")
    if path.suffix == ".xz":
        return lzma.open(path, "rb")
    return open(path, "rb", buffering=1 << 20)


def _damaged(path: Path, line: int, error: Exception) -> UserError:
    return UserError(f"{path} is damaged or was cut short after line {line} ({error}): fetch it again")


_BROKEN_STREAM = (EOFError, lzma.LZMAError, zlib.error, gzip.BadGzipFile)


def _read_tsv(path: Path) -> Iterator[_Row]:
    with _open_bytes(path) as file:
        rows = csv.reader(map(bytes.decode, file), delimiter="\t", strict=True)
        line = 1  # where the row that is being read begins
        try:
            header = next(rows, None)
            if header is None:
                raise UserError(f"{path} is empty: expected a header with the columns id, text and title")
            header = [name.removeprefix("\ufeff").strip() for name in header]
            if missing := {"id", "text", "title"} - set(header):
                raise UserError(
                    f"{path}, line 1: the header has no column {' and '.join(sorted(missing))}: "
                    "expected id, text and title, separated by tabs"
                )
            width = len(header)
            at_id, at_title, at_text = header.index("id"), header.index("title"), header.index("text")
            line = rows.line_num + 1
            for row in rows:
                if len(row) != width:
                    if not row:  # an empty line, which the csv form ignores
                        line = rows.line_num + 1
                        continue
                    raise UserError(
                        f"{path}, line {line}: {len(row)} columns where the header has {width}: "
                        "separate them by tabs, and put a text that has tabs in quotes"
                    )
                yield line, row[at_id], row[at_title], row[at_text]
                line = rows.line_num + 1
        except UnicodeDecodeError as error:
            raise UserError(f"{path}, line {rows.line_num + 1}: not UTF-8 ({error.reason})") from error
        except csv.Error as error:
            raise UserError(
                f'{path}, line {line}: broken quotes ({error}): a text in double quotes writes "" for a quote'
            ) from error
        except _BROKEN_STREAM as error:
            raise _damaged(path, rows.line_num, error) from error


def _read_jsonl(path: Path) -> Iterator[_Row]:
    line = 0
    with _open_bytes(path) as file:
        try:
            for line, data in enumerate(file, start=1):
                if data.isspace():
                    continue
                record = json.loads(data.decode().removeprefix("\ufeff"))
                if not isinstance(record, dict):
                    raise UserError(f"{path}, line {line}: expected an object with id, title and text")
                yield line, *_fields(record, f"{path}, line {line}")
        except UnicodeDecodeError as error:
            raise UserError(f"{path}, line {line}: not UTF-8 ({error.reason})") from error
        except json.JSONDecodeError as error:
            raise UserError(f"{path}, line {line}: not valid JSON ({error.msg})") from error
        except _BROKEN_STREAM as error:
            raise _damaged(path, line, error) from error
    if not line:
        raise UserError(f"{path} is empty: expected a passage as a JSON object a line")


def _fields(record: dict[str, Any], place: str) -> tuple[str, str, str]:
    id, title, text = record.get("id"), record.get("title", ""), record.get("text")
    if isinstance(id, int) and not isinstance(id, bool):
        id = str(id)
    for name, value in (("id", id), ("title", title), ("text", text)):
        if not isinstance(value, str):
            found = f"{name} is {value!r}" if name in record else f"no {name}"
            raise UserError(f"{place}: {found}: expected a string each for id, title and text")
    return id, title, text  # type: ignore[return-value]


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


def unquoted_title(title: str) -> str:
    r"""A title that is still a quoted field of a TSV, as facebook/wiki_dpr keeps them, as it was meant.

    Doubled quotes inside quotes become single ones, as csv makes them of psgs_w100.tsv, whose titles DPR's vectors were
    made of. What does not both begin and end with a quote, or has other than doubled ones inside, stays as it is.
    """
    inside = title[1:-1]
    quoted = len(title) > 2 and title[0] == title[-1] == '"' and '"' in inside
    return inside.replace('""', '"') if quoted and '"' not in inside.replace('""', "") else title


def _read_parquet(path: Path) -> Iterator[_Row]:
    try:
        file = pq.ParquetFile(path, buffer_size=1 << 20, pre_buffer=False)  # not a row group at once
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(f"{path} is not a Parquet file, or was cut short ({error})") from error
    with file:
        names = set(file.schema_arrow.names)
        if missing := {"id", "text"} - names:
            raise UserError(
                f"{path} has no column {' and '.join(sorted(missing))}: expected id, text and title, found "
                f"{', '.join(file.schema_arrow.names)}"
            )
        row = 0
        try:
            for batch in file.iter_batches(1024, columns=sorted({"id", "text", "title"} & names)):
                for row, record in enumerate(batch.to_pylist(), start=row + 1):  # noqa: B020
                    id, title, text = _fields(record, f"{path}, row {row}")
                    yield row, id, unquoted_title(title), text
        except UnicodeDecodeError as error:
            raise UserError(f"{path}, after row {row}: not UTF-8 ({error.reason})") from error
        except (pa.ArrowInvalid, OSError) as error:
            raise UserError(f"{path} is damaged after row {row} ({error}): fetch it again") from error


def _read_folder(folder: Path) -> Iterator[Passage]:
    number = files = 0
    for file in _text_files(folder):
        files += 1
        title, heading_line = _title(file)
        for piece in _pieces(_words(file, heading_line), WORDS_PER_PASSAGE):
            number += 1
            yield Passage(str(number), title, piece)
    if not files:
        raise UserError(f"{folder} has nothing to read: expected .parquet, .txt or .md files in it")
    if not number:
        raise UserError(f"{folder} holds no text: all of its {files} files are empty")


def _text_files(folder: Path) -> Iterator[Path]:
    """All .txt and .md files of a folder and those in it, by name, without a list of them all."""
    with os.scandir(folder) as entries:
        inside = sorted(
            (entry.name, entry.is_dir(follow_symlinks=False), entry.is_file()) for entry in entries
        )
    for name, is_folder, is_file in inside:
        if is_folder:
            yield from _text_files(folder / name)
        elif is_file and Path(name).suffix.lower() in (".txt", ".md"):
            yield folder / name


def _lines(file: Path) -> Iterator[tuple[int, str]]:
    """The lines of a file with their numbers; a line that is longer than a megabyte comes in several parts."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    number = 1
    with open(file, "rb") as data:
        try:
            while part := data.readline(_LONGEST_LINE):
                if text := decoder.decode(part):
                    yield number, text
                number += part.endswith(b"\n")
            decoder.decode(b"", final=True)
        except UnicodeDecodeError as error:
            raise UserError(f"{file}, line {number}: not UTF-8 ({error.reason})") from error


def _words(file: Path, left_out: int) -> Iterator[str]:
    """The words of a file, without those of the line `left_out`."""
    cut = ""  # what may be the first half of a word
    for line, text in _lines(file):
        if line == left_out:
            continue
        words = (cut + text).split()
        cut = "" if text[-1].isspace() or not words else words.pop()
        yield from words
    yield from cut.split()


def _title(file: Path) -> tuple[str, int]:
    """The first Markdown heading and its line, or the file's name and line 0."""
    begun = 0  # the line whose beginning was seen
    for number, line in _lines(file):
        marks = len(line) - len(line.lstrip("#"))
        if number > begun and 1 <= marks <= 6 and line[marks : marks + 1] in (" ", "\t"):
            if title := line.strip("# \t\r\n"):
                return title, number
        begun = number
    return file.stem, 0


# ---------------------------------------------------------------------------------- the passage store


def describe_corpus(path: Path | str) -> dict[str, Any]:
    """What a corpus file (or folder of files) is now: path, bytes, time of change in ns, SHA-256 of its
    bytes."""
    path = Path(path)
    files = [path] if path.is_file() else sorted(path.glob("*.parquet")) or _text_files(path)
    digest = hashlib.sha256()
    size = changed = 0
    for file in files:
        digest.update(f"{file.relative_to(path)}\n{hash_file(file)}\n".encode())
        stat = file.stat()
        size, changed = size + stat.st_size, max(changed, stat.st_mtime_ns)
    return {"path": str(path), "bytes": size, "changed_ns": changed, "sha256": digest.hexdigest()}


class PassageStore:
    """N passages in a memory-mapped Arrow file, read by row.

    `len(store)` is N, `store[row]` a Passage, iteration streams all of them. `sha256` is a hash of every id,
    title and text in order: two stores with the same hash hold the same corpus. `source` says which file it
    was made from.
    """

    def __init__(self, folder: Path, reader: Any, meta: dict[str, Any]):
        self.folder = folder
        self.sha256: str = meta["sha256"]
        self.source: dict[str, Any] | None = meta["source"]
        self._length: int = meta["passages"]
        self._rows_per_batch: int = meta["rows_per_batch"]
        self._reader = reader
        self._batches: dict[int, tuple[Any, Any, Any]] = {}
        self._rows_by_hash: tuple[np.ndarray, np.ndarray] | None = None

    @classmethod
    def write(
        cls,
        passages: Iterable[Passage],
        folder: Path | str,
        source: dict[str, Any] | None = None,
        show_progress: bool = False,
        unique: bool = False,
    ) -> "PassageStore":
        """Write `passages`, streaming, into `folder`, which appears when it is complete, and open it.

        `source` is kept as it is (see `describe_corpus`). unique: the ids are known to be, as those of
        `read_passages`, and are not looked at again. Raises UserError for an id that comes twice, no
        passages at all, or a place that cannot be written.
        """
        folder = Path(folder)
        schema = pa.schema([("id", pa.string()), ("title", pa.string()), ("text", pa.string())])
        digest = hashlib.sha256()
        seen = _SeenIds()
        count = 0
        with (
            write_aside(folder) as aside,
            progress_bar("reading passages", None, "passages", show=show_progress) as bar,
        ):
            aside.mkdir()
            file = aside / "passages.arrow"
            with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
                stream = iter(passages)
                while block := list(islice(stream, _ROWS_PER_BATCH)):
                    columns = [p.id for p in block], [p.title for p in block], [p.text for p in block]
                    for id in () if unique else columns[0]:
                        if not seen.add(id):
                            raise UserError(f"the passage id {id!r} comes twice: ids must be unique")
                    framed = (
                        f"{len(p.id)} {len(p.title)} {len(p.text)} {p.id}{p.title}{p.text}" for p in block
                    )
                    digest.update("".join(framed).encode())
                    writer.write_batch(pa.record_batch([pa.array(c, pa.string()) for c in columns], schema))
                    count += len(block)
                    bar(len(block))
            if not count:
                raise UserError(f"{folder}: there are no passages to write")
            if seen.repeated():
                raise UserError("a passage id comes twice: ids must be unique")
            meta = {
                "format": _STORE_FORMAT,
                "passages": count,
                "sha256": digest.hexdigest(),
                "bytes": file.stat().st_size,
                "rows_per_batch": _ROWS_PER_BATCH,
                "source": source,
            }
            write_json(aside / "store.json", meta)
        return cls.open(folder)

    @classmethod
    def open(cls, folder: Path | str) -> "PassageStore":
        """Map a store that `write` made. Raises UserError if it is missing, cut short or of another
        format."""
        folder = Path(folder)
        if not (folder / "store.json").is_file():
            raise UserError(
                f"{folder} holds no passages (store.json is missing): build them with build_index.py"
            )
        meta = read_json(folder / "store.json")
        file = folder / "passages.arrow"
        try:
            if meta["format"] != _STORE_FORMAT:
                raise UserError(
                    f"{folder} is of format {meta['format']}, not {_STORE_FORMAT}: build it again"
                )
            found = file.stat().st_size if file.is_file() else 0
            if found != meta["bytes"]:
                raise UserError(
                    f"{file} has {found:,} bytes instead of {meta['bytes']:,}: it was cut short or altered; "
                    "build it again"
                )
            reader = pa.ipc.open_file(pa.memory_map(str(file)))
            expected = -(-meta["passages"] // meta["rows_per_batch"])
            if reader.num_record_batches != expected:
                raise UserError(
                    f"{file} has {reader.num_record_batches} blocks instead of {expected}: build it again"
                )
            return cls(folder, reader, meta)
        except (KeyError, TypeError, pa.ArrowInvalid) as error:
            raise UserError(f"{folder} is damaged or was edited ({error!r}): build it again") from error

    @classmethod
    def prepare(cls, corpus: Path | str, folder: Path | str, show_progress: bool = False) -> "PassageStore":
        """The store of `corpus` (anything `read_passages` reads) in `folder`: opened if it is there, else
        written.

        Raises UserError if `folder` holds the passages of another corpus, or of this one before it was
        changed.
        """
        folder = Path(folder)
        if not (folder / "store.json").is_file():
            passages = read_passages(corpus)
            return cls.write(passages, folder, describe_corpus(corpus), show_progress, unique=True)
        store = cls.open(folder)
        was = store.source or {}
        path = Path(corpus)
        if path.is_file():  # the same size and time of change: the same file, without reading it all
            stat = path.stat()
            if (stat.st_size, stat.st_mtime_ns) == (was.get("bytes"), was.get("changed_ns")):
                return store
        elif not path.exists():
            raise UserError(f"{path} does not exist: give the path of a corpus ({FORMATS})")
        if (now := describe_corpus(path))["sha256"] != was.get("sha256"):
            raise UserError(
                f"{folder} holds the {len(store):,} passages of {was.get('path', 'another source')} "
                f"({was.get('bytes', 0):,} bytes), not those of {path} as it is now "
                f"({now['bytes']:,} bytes): choose another index.path, or delete that folder to build it "
                "again"
            )
        return store

    def __len__(self) -> int:
        return self._length

    def __reduce__(self):  # another process maps the same files
        return PassageStore.open, (self.folder,)

    def _batch(self, number: int) -> tuple[Any, Any, Any]:
        if number not in self._batches:
            batch = self._reader.get_batch(number)
            self._batches[number] = (batch.column(0), batch.column(1), batch.column(2))
        return self._batches[number]

    def _locate(self, row: int) -> tuple[tuple[Any, Any, Any], int]:
        if not 0 <= row < self._length:  # never let -1, "nothing found", mean the last passage
            raise IndexError(f"row {row} of {self._length} passages")
        number, place = divmod(int(row), self._rows_per_batch)
        return self._batch(number), place

    def __getitem__(self, row: int) -> Passage:
        (ids, titles, texts), place = self._locate(row)
        return Passage(ids[place].as_py(), titles[place].as_py(), texts[place].as_py())

    def __iter__(self) -> Iterator[Passage]:
        for number in range(self._reader.num_record_batches):
            batch = self._reader.get_batch(number)
            yield from map(Passage, *(column.to_pylist() for column in batch.columns))

    def slice(self, start: int, stop: int) -> list[Passage]:
        """The passages of rows `start` to `stop` - 1, quicker than one by one."""
        passages: list[Passage] = []
        stop = min(stop, self._length)
        while start < stop:
            number, place = divmod(start, self._rows_per_batch)
            count = min(stop - start, self._rows_per_batch - place)
            columns = (column.slice(place, count).to_pylist() for column in self._batch(number))
            passages.extend(map(Passage, *columns))
            start += count
        return passages

    def ids(self, rows: Iterable[int] | Int64[np.ndarray, " N"]) -> list[str]:
        """The ids of `rows`; "" for a row of -1 (nothing found)."""
        ids = []
        for row in np.asarray(rows, dtype=np.int64).tolist():
            if row == -1:
                ids.append("")
            else:
                (column, _, _), place = self._locate(row)
                ids.append(column[place].as_py())
        return ids

    def ids_from(self, row: int, count: int) -> list[str]:
        """The ids of at most `count` passages from `row` on, quicker than by `ids`."""
        found: list[str] = []
        stop = min(row + count, self._length)
        while row < stop:
            number, place = divmod(row, self._rows_per_batch)
            part = self._batch(number)[0].slice(place, min(stop - row, self._rows_per_batch - place))
            found += part.to_pylist()
            row += len(part)
        return found

    def row_of(self, id: str) -> int:
        """The row of the passage `id`. Raises KeyError if there is none."""
        if id.isdecimal():  # running numbers, as in psgs_w100, need no table
            first = self.ids([0])[0]
            row = int(id) - int(first) if first.isdecimal() else -1
            if 0 <= row < self._length and self.ids([row])[0] == id:
                return row
        if self._rows_by_hash is None:
            batches = (self._reader.get_batch(n).column(0) for n in range(self._reader.num_record_batches))
            hashes = np.fromiter((hash(i) for b in batches for i in b.to_pylist()), np.int64, self._length)
            order = np.argsort(hashes, kind="stable")
            self._rows_by_hash = hashes[order], order
        hashes, order = self._rows_by_hash
        place = int(np.searchsorted(hashes, hash(id)))
        while place < self._length and hashes[place] == hash(id):
            row = int(order[place])
            if self.ids([row])[0] == id:
                return row
            place += 1
        raise KeyError(id)


# ---------------------------------------------------------------------------------- the token store


def tokenizer_fingerprint(tokenizer: Any) -> str:
    """Twelve hexadecimal digits that tell one fast tokenizer from another: a hash of its vocabulary and
    rules.

    Truncation and padding, which change with use, do not count.
    """
    if getattr(tokenizer, "backend_tokenizer", None) is None:
        raise UserError(
            f"{type(tokenizer).__name__} is not a fast tokenizer: use one that has a tokenizer.json"
        )
    rules = json.loads(tokenizer.backend_tokenizer.to_str())
    rules.pop("truncation", None)
    rules.pop("padding", None)
    return hashlib.sha256(json.dumps(rules, sort_keys=True).encode()).hexdigest()[:12]


class TokenStore:
    """The generator's tokens of "title / text" for all N passages: one flat array and N + 1 offsets,
    memory-mapped."""

    def __init__(
        self, folder: Path, tokens: np.ndarray, offsets: Int64[np.ndarray, " offsets"], meta: dict[str, Any]
    ):
        self.folder = folder
        self.fingerprint: str = meta["tokenizer"]
        self.title_separator: str = meta["title_separator"]
        self.corpus_sha256: str = meta["corpus_sha256"]
        self._tokens = tokens
        self._offsets = offsets

    @classmethod
    def write(
        cls,
        store: PassageStore,
        tokenizer: Any,
        folder: Path | str,
        title_separator: str = " / ",
        show_progress: bool = False,
        prefix: str = "",
    ) -> "TokenStore":
        """Tokenise every passage as `prefix` + title + `title_separator` + text, without special tokens, and
        open the result.

        The folder appears when it is complete. Numbers take 2 bytes if the vocabulary allows, else 4.
        """
        folder = Path(folder)
        fingerprint = tokenizer_fingerprint(tokenizer)
        dtype = np.dtype(np.uint16 if max(tokenizer.get_vocab().values()) < 1 << 16 else np.int32)
        total = 0
        with (
            write_aside(folder) as aside,
            progress_bar("tokenising passages", len(store), "passages", show=show_progress) as bar,
        ):
            aside.mkdir()
            with open(aside / "tokens.bin", "wb") as flat, open(aside / "offsets.bin", "wb") as offsets:
                offsets.write(np.zeros(1, np.int64).tobytes())
                passages = iter(store)
                while block := list(islice(passages, 1024)):
                    encoded = tokenizer(
                        [prefix + p.title + title_separator + p.text for p in block],
                        add_special_tokens=False,
                        padding=False,
                        truncation=False,
                        return_attention_mask=False,
                        return_token_type_ids=False,
                        verbose=False,
                    )["input_ids"]
                    ends = total + np.cumsum([len(tokens) for tokens in encoded], dtype=np.int64)
                    total = int(ends[-1])
                    offsets.write(ends.tobytes())
                    flat.write(np.concatenate([np.asarray(tokens, dtype) for tokens in encoded]).tobytes())
                    bar(len(block))
            meta = {
                "format": _TOKENS_FORMAT,
                "tokenizer": fingerprint,
                "title_separator": title_separator,
                "corpus_sha256": store.sha256,
                "passages": len(store),
                "tokens": total,
                "dtype": dtype.name,
            }
            write_json(aside / "tokens.json", meta)
        return cls.open(folder, tokenizer)

    @classmethod
    def open(cls, folder: Path | str, tokenizer: Any = None) -> "TokenStore":
        """Map the tokens in `folder`.

        Raises UserError if they are missing, cut short, or made by another tokenizer than `tokenizer`.
        """
        folder = Path(folder)
        if not (folder / "tokens.json").is_file():
            raise UserError(f"{folder} holds no tokens (tokens.json is missing): tokenise the passages again")
        meta = read_json(folder / "tokens.json")
        try:
            if meta["format"] != _TOKENS_FORMAT:
                raise UserError(f"{folder} is of format {meta['format']}, not {_TOKENS_FORMAT}: delete it")
            dtype, total, count = np.dtype(meta["dtype"]), meta["tokens"], meta["passages"]
            for name, size in (("tokens.bin", total * dtype.itemsize), ("offsets.bin", (count + 1) * 8)):
                found = (folder / name).stat().st_size if (folder / name).is_file() else 0
                if found != size:
                    raise UserError(
                        f"{folder / name} has {found:,} bytes instead of {size:,}: it was cut short or "
                        f"altered; delete {folder} to tokenise the passages again"
                    )
            tokens = np.memmap(folder / "tokens.bin", dtype, "r") if total else np.empty(0, dtype)
            offsets = np.memmap(folder / "offsets.bin", np.int64, "r")
            store = cls(folder, np.asarray(tokens), np.asarray(offsets), meta)
        except (KeyError, TypeError) as error:
            raise UserError(
                f"{folder / 'tokens.json'} was edited ({error!r}): delete {folder} to tokenise again"
            ) from error
        if tokenizer is not None and (wanted := tokenizer_fingerprint(tokenizer)) != store.fingerprint:
            raise UserError(
                f"{folder} holds tokens of tokenizer {store.fingerprint}, not of {wanted}: "
                "tokenise the passages with this tokenizer"
            )
        return store

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def __reduce__(self):  # another process maps the same files
        return TokenStore.open, (self.folder,)

    def gather(
        self, rows: Int64[np.ndarray, " N"]
    ) -> tuple[Int64[np.ndarray, " flat"], Int64[np.ndarray, " N"]]:
        """The tokens of `rows`, one passage after the other, and how many each has; a row of -1 has none."""
        rows = np.asarray(rows, dtype=np.int64)
        if rows.size and not (-1 <= rows.min() and rows.max() < len(self)):
            raise IndexError(f"rows from {rows.min()} to {rows.max()} of {len(self)} passages")
        found = rows >= 0
        starts = self._offsets[np.where(found, rows, 0)]
        lengths = np.where(found, self._offsets[np.where(found, rows + 1, 0)] - starts, 0)
        before = np.cumsum(lengths) - lengths  # where each passage begins in the result
        places = np.arange(lengths.sum()) + np.repeat(starts - before, lengths)
        return self._tokens[places].astype(np.int64), lengths
