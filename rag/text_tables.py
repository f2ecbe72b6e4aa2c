"""Tables in text files: rows of fields that tabs, commas or semicolons separate.

They are read as spreadsheets and DPR's psgs_w100 write them (RFC 4180 with any separator): a field in double quotes
where it needs them, `""` for a quote. Many real files are not so strict: a row whose quotes make no sense by that rule
is taken as it is written, and such rows are counted. Neither may a quote in a tab-separated table make one row out of
several: a field over several lines that holds a tab as well has swallowed the rows between two stray quotes.
"""

import csv
import logging
from collections import deque
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from rag.text_files import LONGEST_RECORD, text_lines

log = logging.getLogger(__name__)

SEPARATORS = {"\t": "tabs", ",": "commas", ";": "semicolons"}
Fields = tuple[int, list[str]]  # the line that a row begins at, its fields
_MOST_LINES = 1000  # of one row: a quote that is not closed by then was never opened


def table_rows(path: Path, separator: str, encoding: str | None = None) -> Iterator[Fields]:
    """The rows of a table as lists of fields, with the line each begins at.

    Rows of nothing but empty fields, in which spreadsheets end, are left out.
    """
    for number, row in _all_rows(path, separator, encoding):
        if any(field and not field.isspace() for field in row):
            yield number, row


def _all_rows(path: Path, separator: str, encoding: str | None) -> Iterator[Fields]:
    lines = _Lines(text_lines(path, encoding))
    as_written = example = 0
    for number, line in lines:
        if '"' not in line:
            yield number, _as_written(line, separator)
            continue
        row = _strict([line], separator)
        if row is None and line.count('"') % 2:
            # a field may go on in the next lines, until its quotes are even
            block, quotes, length = [(number, line)], line.count('"'), len(line)
            while quotes % 2 and len(block) < _MOST_LINES and length < LONGEST_RECORD:
                if (more := next(lines, None)) is None:
                    break
                block.append(more)
                quotes, length = quotes + more[1].count('"'), length + len(more[1])
            row = _strict([text for _, text in block], separator)
            if row is not None and any("\t" in field and "\n" in field for field in row):
                row = None  # it has swallowed rows
            if row is None:
                lines.put_back(block[1:])
        if row is None:
            as_written, example = as_written + 1, example or number
            row = _as_written(line, separator)
        yield number, row
    if as_written:
        log.warning(
            "%s: double quotes that enclose no field in %s, first in line %d: read as they are written",
            path,
            "1 row" if as_written == 1 else f"{as_written:,} rows",
            example,
        )


class _Lines:
    """A stream of lines that some can be put back into."""

    def __init__(self, lines: Iterator[tuple[int, str]]):
        self._lines = lines
        self._waiting: deque[tuple[int, str]] = deque()

    def __iter__(self) -> Iterator[tuple[int, str]]:
        return self

    def __next__(self) -> tuple[int, str]:
        return self._waiting.popleft() if self._waiting else next(self._lines)

    def put_back(self, lines: list[tuple[int, str]]) -> None:
        self._waiting.extendleft(reversed(lines))


def _as_written(line: str, separator: str) -> list[str]:
    line = line.removesuffix("\n").removesuffix("\r")
    return line.split(separator) if line else []


def _strict(lines: list[str], separator: str) -> list[str] | None:
    """The fields of the one row that `lines` are by RFC 4180; None where they are none, or several."""
    limit = csv.field_size_limit(
        1 << 30
    )  # the module's own 131,072 characters are fewer than a page can have
    try:
        rows = list(islice(csv.reader(lines, delimiter=separator, strict=True), 2))
    except csv.Error:
        return None
    finally:
        csv.field_size_limit(limit)  # which is everybody's
    return rows[0] if len(rows) == 1 else None
