"""Corpora in tables: tab- or comma-separated text and Parquet. Each reader yields rows of (number, id, title, text).

rag/text_tables.py reads the rows of text tables; here it is told which column is which.
"""

import logging
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from rag.errors import UserError, listed
from rag.index.fields import NAMES, TEXT_NAMES, Row, column, fields, unquoted_title
from rag.index.reading import AS_USUAL, CorpusReading
from rag.text_files import plain_name, text_lines, text_parts
from rag.text_tables import SEPARATORS, Fields, table_rows

log = logging.getLogger(__name__)

_SAID = re.compile(r'\s*"?sep=([,;\t])"?\s*$', re.IGNORECASE)  # a spreadsheet's first line
_LOOKED_AT = 100  # rows that say which column is the text, where no header does


def is_table(path: Path, reading: CorpusReading = AS_USUAL) -> bool:
    """Whether a text file is a table, by its name or by a header that names a text column between tabs."""
    if plain_name(path).endswith((".tsv", ".csv")):
        return True
    first = next((part for _, part in text_parts(path, reading.encoding)), "").split("\n")[0]
    return "\t" in first and _position(_names(first.split("\t")), _text_names(reading)) is not None


def read_table(path: Path, reading: CorpusReading = AS_USUAL) -> Iterator[Row]:
    """The rows of a .tsv or .csv file, with a header or without.

    A header names the columns, in any order and in any case; those beyond id, title and text are left out. Without
    one, two or three columns are told apart by the first rows: ids hold no spaces, and texts are longer than titles.
    """
    first = next((text for _, text in text_lines(path, reading.encoding) if text.strip()), "")
    said = _SAID.match(first)
    separator = said[1] if said else _separator(path, first, _text_names(reading))
    records = table_rows(path, separator, reading.encoding)
    if said:
        next(records)
    if (begin := next(records, None)) is None:
        raise UserError(f"{path} is empty: expected a table with the columns id, text and title")
    line, header = begin
    columns = _names(header)
    given = {what: name.lower() for what, name in reading.columns.items() if name is not None}
    at_id, at_title, at_text = (
        None
        if (name := column(columns, what, given, f"{path}, line {line},")) is None
        else columns.index(name)
        for what in NAMES
    )
    if (
        at_text is None
        and (given or at_id is not None or at_title is not None)
        and (given or len(header) > 1)
    ):
        raise UserError(
            f"{path}, line {line}: the header has no column text: expected id, text and title, separated by "
            f"{SEPARATORS[separator]}, or corpus.columns.text= one of {listed(columns)}"
        )
    if at_text is None:
        looked_at = [(line, header), *islice(records, _LOOKED_AT)]
        at_id, at_title, at_text = _guess(path, [row for _, row in looked_at], separator)
        log.warning(
            "%s has no header: column %d is read as the text%s%s",
            path,
            at_text + 1,
            "" if at_title is None else f", {at_title + 1} as the title",
            "" if at_id is None else f", {at_id + 1} as the id",
        )
        yield from _rows(path, iter(looked_at), len(header), at_id, at_title, at_text, separator, "line 1")
    yield from _rows(path, records, len(header), at_id, at_title, at_text, separator, "the header")


def _rows(
    path: Path,
    records: Iterator[Fields],
    width: int,
    at_id: int | None,
    at_title: int | None,
    at_text: int,
    separator: str,
    measure: str,
) -> Iterator[Row]:
    for line, row in records:
        if len(row) != width:
            raise UserError(
                f"{path}, line {line}: {len(row)} columns where {measure} has {width}: separate them by "
                f"{SEPARATORS[separator]}, and put a text that has {SEPARATORS[separator]} in double quotes"
            )
        yield (
            line,
            None if at_id is None else row[at_id],
            "" if at_title is None else row[at_title],
            row[at_text],
        )


def _text_names(reading: CorpusReading) -> Sequence[str]:
    """What the column of the text may be called."""
    name = reading.columns.get("text")
    return TEXT_NAMES if name is None else (name.lower(),)


def _names(header: Sequence[str]) -> list[str]:
    return [name.strip().strip('"').lower() for name in header]


def _position(columns: Sequence[str], names: Sequence[str]) -> int | None:
    return next((columns.index(name) for name in names if name in columns), None)


def _separator(path: Path, first: str, text_names: Sequence[str]) -> str:
    """What separates the columns: tabs in a .tsv; elsewhere what gives a header with a text, or the most columns."""
    if plain_name(path).endswith(".tsv") or "\t" in first and not plain_name(path).endswith(".csv"):
        return "\t"
    split = {separator: _names(first.split(separator)) for separator in (",", ";", "\t")}
    with_text = [
        each for each, names in split.items() if len(names) > 1 and _position(names, text_names) is not None
    ]
    return (with_text or sorted(split, key=lambda each: -len(split[each])))[0]


def _guess(path: Path, rows: list[list[str]], separator: str) -> tuple[int | None, int | None, int]:
    """Which of one to three columns are id, title and text."""
    width = len(rows[0])
    expected = (
        f"give it a first line that names the columns (id, text, title), separated by {SEPARATORS[separator]}"
    )
    if width == 1 and not plain_name(path).endswith(".txt"):
        return None, None, 0
    if width > 3:
        raise UserError(f"{path}, line 1: no header, and {width} columns: {expected}")
    rows = [row for row in rows if len(row) == width]
    length = [sum(len(row[column]) for row in rows) for column in range(width)]
    ids = [row[0] for row in rows]
    has_ids = all(id and not any(map(str.isspace, id)) for id in ids) and len(set(ids)) == len(ids)
    if width == 2:
        if has_ids and all(id.isdecimal() for id in ids):
            return 0, None, 1
        return (None, 0, 1) if length[1] >= length[0] else (None, 1, 0)
    if not has_ids:
        raise UserError(f"{path}, line 1: no header, and a first column that holds no ids: {expected}")
    return (0, 1, 2) if length[2] > length[1] else (0, 2, 1)


def read_parquet(path: Path, reading: CorpusReading = AS_USUAL) -> Iterator[Row]:
    """The rows of a Parquet file; columns beyond id, title and text, as `embeddings`, are left unread."""
    try:
        file = pq.ParquetFile(path, buffer_size=1 << 20, pre_buffer=False)  # not a row group at once
        names = file.schema_arrow.names
    except (pa.ArrowInvalid, OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not a Parquet file, or was cut short ({error})") from error
    with file:
        present = _present(path, names, reading)
        yield from _batch_rows(path, lambda: file.iter_batches(1024, columns=present), reading)


def read_arrow(path: Path, reading: CorpusReading = AS_USUAL) -> Iterator[Row]:
    """The rows of an Arrow file, a stream as `datasets` writes them, with the same columns."""
    try:
        reader: Any = pa.ipc.open_stream(pa.memory_map(str(path)))
        names = reader.schema.names
    except (pa.ArrowInvalid, OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not a stream of Arrow's, or was cut short ({error})") from error
    present = _present(path, names, reading)
    few = (part for batch in reader for part in _parts(batch.select(present)))
    yield from _batch_rows(path, lambda: few, reading)


def _parts(batch: Any) -> Iterator[Any]:
    """A thousand rows at a time; Arrow trusts the offsets in a file, and may end the process by them."""
    batch.validate(full=True)
    yield from (batch.slice(start, 1024) for start in range(0, batch.num_rows, 1024))


def _present(path: Path, columns: Sequence[str], reading: CorpusReading) -> list[str]:
    """Those of the columns that are read."""
    found = {what: column(columns, what, reading.columns, str(path)) for what in NAMES}
    if found["text"] is None:
        raise UserError(
            f"{path} has no column text: expected id, text and title, found {listed(columns)}; corpus.columns.text= "
            "names another"
        )
    sections = {"section"} & set(columns) if "title" not in reading.columns else set()
    return sorted({name for name in found.values() if name is not None} | sections)


def _batch_rows(path: Path, batches: Callable[[], Iterable[Any]], reading: CorpusReading) -> Iterator[Row]:
    row = 0
    try:
        for batch in batches():
            for row, record in enumerate(batch.to_pylist(), start=row + 1):  # noqa: B020
                id, title, text = fields(record, f"{path}, row {row}", reading.columns)
                yield row, id, unquoted_title(title), text
    except UnicodeDecodeError as error:
        raise UserError(f"{path}, after row {row}: not UTF-8 ({error.reason})") from error
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(f"{path} is damaged after row {row} ({error}): download it again") from error
