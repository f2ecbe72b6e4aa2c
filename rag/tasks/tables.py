"""Questions in tables: tab-separated, comma-separated, Parquet, and two files side by side."""

import ast
import csv
import json
import re
from collections.abc import Iterator
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from rag.errors import UserError
from rag.tasks.lines import Mender, read_lines

NAMES = {"question", "query", "input", "source", "claim", "answer", "answers", "golden_answers", "target"}
_LONGEST_FIELD = (1 << 31) - 1  # csv's own limit, 131,072 characters, is less than some passages
_CALLED = {"\t": "tab", ",": "comma", ";": "semicolon"}


def table_records(path: Path, mend: Mender) -> Iterator[tuple[str, dict[str, Any]]]:
    """(place, record) of each row; the header's names are the keys, without a header `question` and `answers`.

    A cell that is a list, as Python or JSON writes one, becomes a list. Raises UserError, with the line.
    """
    lines = read_lines(path)
    first = next((line for line in lines if line.strip()), None)
    if first is None:
        return
    before = 0  # empty lines at the beginning, which the numbers of lines count
    for line in read_lines(path):
        if line.strip():
            break
        before += 1
    name = path.name.lower().removesuffix(".gz").removesuffix(".xz")
    lists = name.endswith(".qa.csv")  # DPR's: no header, the answers are lists
    separator = "\t" if "\t" in first or lists or name.endswith(".tsv") else max(",;", key=first.count)
    csv.field_size_limit(_LONGEST_FIELD)
    rows = csv.reader(chain([first], lines), delimiter=separator)
    header: list[str] | None = None
    last = 0  # the line on which the row before ended
    try:
        for number, row in enumerate(rows):
            began, last = last + 1, rows.line_num
            where = f"{path}, line {began + before}"
            if not row:
                continue
            if number == 0 and not lists:
                names = [name.strip() for name in row]
                if NAMES & {name.lower() for name in names}:
                    header = names
                    continue
                lists = row[-1].lstrip().startswith("[")
            width = 2 if header is None else len(header)
            if len(row) != width:
                raise UserError(_wrong_width(where, row, header, separator, last > began))
            if header is None:
                record = {"question": row[0], "answers": _listed(row[1], where) if lists else row[1]}
            else:
                record = {key: _cell(key, value, where) for key, value in zip(header, row, strict=True)}
            yield where, mend(record, "".join(row), where)
    except csv.Error as error:
        raise UserError(
            f"{path}, line {rows.line_num + before}: not a table of columns separated by {_CALLED[separator]}s "
            f"({error})"
        ) from None


def _wrong_width(where: str, row: list[str], header: list[str] | None, separator: str, several: bool) -> str:
    called = _CALLED[separator]
    expected = (
        "expected a question and a list of answers"
        if header is None
        else f"the header has {len(header)} ({', '.join(header)})"
    )
    problem = f"{where}: {len(row)} {called}-separated columns, {expected}"
    if several:
        return (
            f'{problem}; a double quote that begins a field is not closed on this line: write it as """" and the '
            "field in double quotes"
        )
    return f"{problem}; a field that holds a {called} belongs in double quotes" if len(row) > 2 else problem


def _listed(cell: str, where: str) -> list:
    try:
        value = ast.literal_eval(cell.strip())
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        value = None
    if isinstance(value, list | tuple):
        return list(value)
    try:
        value = json.loads(cell)
    except (json.JSONDecodeError, RecursionError):
        value = None
    if not isinstance(value, list):
        raise UserError(f"{where}: the answers are not a Python-style list: {cell[:60]}")
    return value


def _cell(key: str, cell: str, where: str) -> Any:
    if key.lower() not in ("question", "query", "input") and re.match(
        r"""\s*\[\s*(['"\]]|\d+\s*[,\]])""", cell
    ):
        return _listed(cell, where)
    return cell


def paired_records(source: Path, target: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(place, record) of a file of questions and one of answers, line by line, as in Hugging Face's examples."""
    if not target.is_file():
        raise UserError(
            f"{source} has no {target.name} beside it, whose lines are the answers to its own: add it"
        )
    pairs = zip_longest(read_lines(source), read_lines(target))
    for number, (question, answer) in enumerate(pairs, start=1):
        if question is None or answer is None:
            longer, shorter = (source, target) if answer is None else (target, source)
            raise UserError(
                f"{longer}, line {number}: {shorter.name} has fewer lines: both need one line per question"
            )
        yield f"{source}, line {number}", {"question": question.strip(), "answers": answer.strip()}


def parquet_records(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(place, record) of each row of a Parquet file, a thousand rows at a time."""
    if not path.is_file():
        raise UserError(f"{path} does not exist")
    row = 0
    try:
        with pq.ParquetFile(path, buffer_size=1 << 20, pre_buffer=False) as file:
            for batch in file.iter_batches(1024):
                for record in batch.to_pylist():
                    row += 1
                    yield f"{path}, row {row}", record
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not a whole Parquet file ({error}): download it again") from None
