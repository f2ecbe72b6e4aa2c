"""The corpus (section 3): N passages in a memory-mapped store.

The paper's non-parametric memory is English Wikipedia cut into 21 million disjoint passages of 100 words.
Nothing here holds a corpus in memory: `CorpusReader` (readers.py) streams any of the usual file formats,
`PassageStore` keeps ids, titles and texts in an Arrow file, `TokenStore` (tokens.py) keeps the generator's
tokens of "title / text" in one flat array. Both stores are opened by mapping their files, so that all processes of a
machine share one copy.

A passage is known by its `id` (the corpus's own, a string) and by its `row` (0 … N-1, its place in the store,
which is also its number in the index). N is the number of passages.
"""

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator
from importlib import import_module
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Int64

from rag.errors import UserError, one_line
from rag.files import read_json, write_aside, write_json
from rag.index.catalog import (
    DocumentInfo,
    counted_in,
    digest_of,
    documents_of,
    read_catalog,
    write_catalog,
)
from rag.index.corpus_files import FORMATS, corpus_files
from rag.index.passage import PIECE, Passage, SeenIds, has_half_pair
from rag.index.readers import CorpusReader
from rag.index.reading import AS_USUAL, CorpusReading
from rag.progress import progress_bar
from rag.text_files import unreadable

CUT = 2  # how documents are cut into passages; another number, another cut
_STORE_FORMAT = 1
_ROWS_PER_BATCH = 4096


def describe_corpus(
    path: Path | str, reading: CorpusReading = AS_USUAL, documents: Iterable[DocumentInfo] | None = None
) -> dict[str, Any]:
    """What a corpus file (or folder of files) is now: path, bytes, time of change in ns, SHA-256 of its bytes, a hash
    of its files' names, sizes and times of change (`state`), how it is read, where that is not the usual way, and by
    which edition of what cuts it. documents: its files, where they are known."""
    path = Path(path)
    documents = list(documents_of(path).values() if documents is None else documents)
    description = {
        "path": str(path),
        "bytes": sum(each.bytes for each in documents),
        "changed_ns": max(each.changed_ns for each in documents),
        "sha256": digest_of(path, documents),
        "state": corpus_state(path),
        "cut": CUT,
    }
    return description | ({"reading": settings} if (settings := reading.settings()) else {})


def corpus_state(path: Path) -> str:
    """A hash of the names, sizes and times of change of a corpus's files: the same one, the same bytes, and none read.

    wiki_dpr has 85 GB, which every process of a run would otherwise read to be sure.
    """
    state = [
        (str(file.relative_to(path)), (stat := file.stat()).st_size, stat.st_mtime_ns)
        for file in corpus_files(path)[0]
    ]
    return hashlib.sha256(json.dumps(state).encode()).hexdigest()


def _framed(passages: Iterable[Passage]) -> bytes:
    """What is hashed of passages: every id, title and text, and where each ends."""
    return "".join(
        f"{len(p.id)} {len(p.title)} {len(p.text)} {p.id}{p.title}{p.text}" for p in passages
    ).encode()


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
        documents: Callable[[], Iterable[DocumentInfo]] | None = None,
    ) -> "PassageStore":
        """Write `passages`, streaming, into `folder`, which appears when it is complete, and open it.

        `source` is kept as it is (see `describe_corpus`). unique: the ids are known to be, as those of
        `read_passages`, and are not looked at again. documents: gives, once the passages were read, the files that
        they are of. Raises UserError for an id that comes twice, no
        passages at all, or a place that cannot be written.
        """
        folder = Path(folder)
        schema = pa.schema([("id", pa.string()), ("title", pa.string()), ("text", pa.string())])
        digest = hashlib.sha256()
        seen = SeenIds()
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
                            raise UserError(f"the passage id {id!r} occurs twice: ids must be unique")
                    try:
                        digest.update(_framed(block))
                    except UnicodeEncodeError:
                        bad = next(p.id for p in block if has_half_pair(f"{p.id}{p.title}{p.text}"))
                        raise UserError(
                            f"passage {bad!r} holds half a surrogate pair (a character that was cut), which no file "
                            "can hold: replace it"
                        ) from None
                    writer.write_batch(pa.record_batch([pa.array(c, pa.string()) for c in columns], schema))
                    count += len(block)
                    bar(len(block))
            if not count:
                raise UserError(f"{folder}: there are no passages to write")
            if seen.repeated():
                raise UserError("a passage id occurs twice: ids must be unique")
            meta = {
                "format": _STORE_FORMAT,
                "passages": count,
                "sha256": digest.hexdigest(),
                "bytes": file.stat().st_size,
                "rows_per_batch": _ROWS_PER_BATCH,
                "source": source,
            }
            if documents is not None:
                write_catalog(aside, documents())
            write_json(aside / "store.json", meta)
        return cls.open(folder)

    @classmethod
    def open(cls, folder: Path | str) -> "PassageStore":
        """Map a store that `write` made. Raises UserError if it is missing, cut short or of another
        format."""
        folder = Path(folder)
        try:
            there = (folder / "store.json").is_file()
        except OSError as error:
            raise unreadable(folder / "store.json", error) from error
        if not there:
            raise UserError(
                f"{folder} holds no passages (store.json is missing): build them with build_index.py"
            )
        meta = read_json(folder / "store.json")
        file = folder / "passages.arrow"
        try:
            if meta["format"] != _STORE_FORMAT:
                raise UserError(f"{folder} is of format {meta['format']}, not {_STORE_FORMAT}: rebuild it")
            size = file.stat().st_size if file.is_file() else 0
            if size != meta["bytes"]:
                raise UserError(
                    f"{file} has {size:,} bytes instead of {meta['bytes']:,}: it was cut short or altered; "
                    "rebuild it"
                )
            reader = pa.ipc.open_file(pa.memory_map(str(file)))
            expected = -(-meta["passages"] // meta["rows_per_batch"])
            if reader.num_record_batches != expected:
                raise UserError(
                    f"{file} has {reader.num_record_batches} blocks instead of {expected}: rebuild it"
                )
            return cls(folder, reader, meta)
        except (KeyError, TypeError, ValueError, OSError) as error:  # pyarrow's errors are such
            raise UserError(f"{folder} is damaged or was edited ({error!r}): rebuild it") from error

    @classmethod
    def read(
        cls,
        corpus: Path | str,
        folder: Path | str,
        show_progress: bool = False,
        reading: CorpusReading = AS_USUAL,
    ) -> "PassageStore":
        """Write the passages of `corpus`, anything `read_passages` reads, into `folder`, and open it."""
        reader = CorpusReader(corpus, reading)
        files = documents_of(reader.corpus)
        return cls.write(
            reader.passages(),
            folder,
            describe_corpus(corpus, reading, files.values()),
            show_progress,
            unique=True,
            documents=lambda: counted_in(files, reader.counts),
        )

    @classmethod
    def prepare(
        cls,
        corpus: Path | str,
        folder: Path | str,
        show_progress: bool = False,
        reading: CorpusReading = AS_USUAL,
    ) -> "PassageStore":
        """The store of `corpus` (anything `read_passages` reads) in `folder`: opened if it is there, else
        written.

        Raises UserError if `folder` holds the passages of another corpus, or of this one before it was
        changed, or read in another way.
        """
        folder = Path(folder)
        if not (folder / "store.json").is_file():
            return cls.read(corpus, folder, show_progress, reading)
        store = cls.open(folder)
        was = store.source or {}
        path = Path(corpus)
        if differ := (mine := store.reading).unlike(reading):
            raise UserError(
                f"{folder} holds passages read with {differ}, not {reading.unlike(mine)}: give {differ}, choose "
                "another index.path, or delete that folder to rebuild it"
            )
        if path.is_file():  # the same size and time of change: the same file, without reading it all
            stat = path.stat()
            if (stat.st_size, stat.st_mtime_ns) == (was.get("bytes"), was.get("changed_ns")):
                return store
        elif not path.exists():
            raise UserError(f"{path} does not exist: give the path of a corpus ({FORMATS})")
        elif corpus_state(path) == was.get("state"):
            return store
        if (now := describe_corpus(path, reading))["sha256"] != was.get("sha256"):
            changed = str(path) == was.get("path")
            if changed and "changes" in was:
                raise UserError(
                    f"{folder} holds the passages of {path} as add= and remove= have changed them: sync=true makes "
                    "them those of the corpus alone again; or choose another index.path"
                )
            raise UserError(
                f"{folder} holds the {len(store):,} passages of {was.get('path', 'another source')} "
                f"({was.get('bytes', 0):,} bytes), not those of {path} as it is now "
                f"({now['bytes']:,} bytes): {'sync=true embeds what changed; or ' if changed else ''}choose another "
                "index.path, or delete that folder to build it again"
            )
        return store

    @property
    def reading(self) -> CorpusReading:
        """How its passages were read."""
        return CorpusReading.of(self.source)

    def documents(self) -> list[DocumentInfo] | None:
        """The files that its passages are of, in the passages' order; None where it does not say."""
        return read_catalog(self.folder, len(self))

    def __len__(self) -> int:
        return self._length

    def __reduce__(self):  # another process maps the same files
        return PassageStore.open, (self.folder,)

    def _batch(self, number: int) -> tuple[Any, Any, Any]:
        if number not in self._batches:
            batch = self._read(number)
            self._batches[number] = (batch.column(0), batch.column(1), batch.column(2))
        return self._batches[number]

    def _read(self, number: int) -> Any:
        """A block of the file, whose offsets are looked at: Arrow trusts them, and may end the process by them."""
        try:
            batch = self._reader.get_batch(number)
            batch.validate()
            expected = min(self._rows_per_batch, self._length - number * self._rows_per_batch)
            if batch.num_rows != expected:
                raise ValueError(f"{batch.num_rows:,} rows instead of {expected:,}")
            for column in batch.columns:
                _, offsets, text = column.buffers()
                ends = np.frombuffer(offsets, np.int32)[: expected + 1]
                if ends[0] < 0 or ends[-1] > (text.size if text else 0) or (np.diff(ends) < 0).any():
                    raise ValueError("offsets that do not ascend")
        except (ValueError, OSError) as error:  # pyarrow's errors are such
            raise self._damaged(f"its block {number} cannot be read ({one_line(str(error))})") from error
        return batch

    def _strings(self, column: Any) -> list[str]:
        try:
            return column.to_pylist()
        except UnicodeDecodeError as error:
            raise self._damaged(f"it holds what is no text ({error.reason})") from error

    def _damaged(self, how: str) -> UserError:
        return UserError(
            f"{self.folder / 'passages.arrow'} was altered: {how}; build the index again with overwrite=true"
        )

    def verify(self) -> None:
        """Read every passage; UserError where they are not those that were written."""
        digest = hashlib.sha256()
        for number in range(self._reader.num_record_batches):
            digest.update(_framed(map(Passage, *map(self._strings, self._read(number).columns))))
        if digest.hexdigest() != self.sha256:
            raise self._damaged("its passages are not those that were written")

    def _locate(self, row: int) -> tuple[tuple[Any, Any, Any], int]:
        if not 0 <= row < self._length:  # never let -1, "nothing found", mean the last passage
            raise IndexError(f"row {row} of {self._length} passages")
        number, row_in_batch = divmod(int(row), self._rows_per_batch)
        return self._batch(number), row_in_batch

    def __getitem__(self, row: int) -> Passage:
        (ids, titles, texts), row_in_batch = self._locate(row)
        return Passage(
            *(self._strings(column[row_in_batch : row_in_batch + 1])[0] for column in (ids, titles, texts))
        )

    def __iter__(self) -> Iterator[Passage]:
        for number in range(self._reader.num_record_batches):
            yield from map(Passage, *map(self._strings, self._read(number).columns))

    def slice(self, start: int, stop: int) -> list[Passage]:
        """The passages of rows `start` to `stop` - 1, quicker than one by one."""
        passages: list[Passage] = []
        stop = min(stop, self._length)
        while start < stop:
            number, row_in_batch = divmod(start, self._rows_per_batch)
            count = min(stop - start, self._rows_per_batch - row_in_batch)
            columns = (self._strings(column.slice(row_in_batch, count)) for column in self._batch(number))
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
                (column, _, _), row_in_batch = self._locate(row)
                ids += self._strings(column[row_in_batch : row_in_batch + 1])
        return ids

    def ids_from(self, row: int, count: int) -> list[str]:
        """The ids of at most `count` passages from `row` on, quicker than by `ids`."""
        ids: list[str] = []
        stop = min(row + count, self._length)
        while row < stop:
            number, row_in_batch = divmod(row, self._rows_per_batch)
            part = self._batch(number)[0].slice(
                row_in_batch, min(stop - row, self._rows_per_batch - row_in_batch)
            )
            ids += self._strings(part)
            row += len(part)
        return ids

    def rows_of(self, ids: Iterable[str]) -> dict[str, list[int]]:
        """{id: the rows of the passage that has it, or of the pieces that were split from it}; without those not held.

        One look through all ids, whatever their number: 21 million take a few seconds.
        """
        pc: Any = import_module("pyarrow.compute")  # whose functions are made as it is imported
        wanted = pa.array(sorted(set(ids)), pa.string())
        found: dict[str, list[int]] = {}
        for number in range(self._reader.num_record_batches if len(wanted) else 0):
            column = self._batch(number)[0]
            names = [column]
            if pc.any(pc.match_substring(column, PIECE)).as_py():
                names.append(pc.replace_substring_regex(column, rf"{re.escape(PIECE)}\d+$", ""))
            held = [pc.is_in(each, wanted).to_numpy(zero_copy_only=False) for each in names]
            for row in np.flatnonzero(np.logical_or.reduce(held)).tolist():
                name = next(each[row].as_py() for each, of in zip(names, held, strict=True) if of[row])
                found.setdefault(name, []).append(number * self._rows_per_batch + row)
        return found

    def row_of(self, id: str) -> int:
        """The row of the passage `id`. Raises KeyError if there is none."""
        if id.isdecimal():  # running numbers, as in psgs_w100, need no table
            first = self.ids([0])[0]
            row = int(id) - int(first) if first.isdecimal() else -1
            if 0 <= row < self._length and self.ids([row])[0] == id:
                return row
        if self._rows_by_hash is None:
            batches = (self._read(n).column(0) for n in range(self._reader.num_record_batches))
            hashes = np.fromiter((hash(i) for b in batches for i in self._strings(b)), np.int64, self._length)
            order = np.argsort(hashes, kind="stable")
            self._rows_by_hash = hashes[order], order
        hashes, order = self._rows_by_hash
        position = int(np.searchsorted(hashes, hash(id)))
        while position < self._length and hashes[position] == hash(id):
            row = int(order[position])
            if self.ids([row])[0] == id:
                return row
            position += 1
        raise KeyError(id)
