"""Questions in tables: tab-separated, comma-separated, Parquet, and two files side by side."""

import ast
import json
import re
from collections.abc import Callable, Iterator
from itertools import islice, zip_longest
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from rag.errors import UserError, listed
from rag.json_files import json_records
from rag.tasks.lines import Mender, plain_suffix, read_lines
from rag.text_files import unreadable
from rag.text_tables import table_rows

NAMES = {"question", "query", "input", "source", "claim", "answer", "answers", "golden_answers", "target"}
NAMES |= {"user_input", "reference", "ground_truth"}
_CALLED = {"\t": "tab", ",": "comma", ";": "semicolon"}
_ASKED = ("question", "query", "input", "user_input", "source", "claim")
_SEVERAL = ("answer", "answers", "golden_answers")  # cells of several answers, between vertical bars
Bad = Callable[[UserError], None]  # what becomes of a row that is wrong


def table_records(
    path: Path, mend: Mender, encoding: str | None = None, bad: Bad | None = None, lists: bool = False
) -> Iterator[tuple[str, dict[str, Any]]]:
    """(place, record) of each row; the header's names are the keys, without a header `question` and `answers`.

    A cell that is a list, as Python or JSON writes one, becomes a list, and so do answers between vertical bars. lists:
    DPR's form, tab-separated and without a header, whose answers are lists. Raises UserError, with the line, or calls
    `bad` with it where that is given.
    """
    first = next((line for line in read_lines(path, encoding) if line.strip()), "")
    tabs = "\t" in first or lists or plain_suffix(path) == ".tsv"
    separator = "\t" if tabs else max(",;", key=first.count)
    rows = table_rows(path, separator, encoding)
    header: list[str] | None = None
    for number, (line, row) in enumerate(rows):
        where = f"{path}, line {line}"
        if number == 0 and not lists:
            names = [name.strip() for name in row]
            if NAMES & {name.lower() for name in names}:
                header = [name.lower() if name.lower() in NAMES else name for name in names]
                continue
            lists = row[-1].lstrip().startswith("[")
        try:
            record = _record(row, header, lists, separator, where)
        except UserError as error:
            if bad is None:
                raise
            bad(error)
            continue
        yield where, mend(record, "".join(row), where)


def _record(
    row: list[str], header: list[str] | None, lists: bool, separator: str, where: str
) -> dict[str, Any]:
    if len(row) != (2 if header is None else len(header)):
        raise UserError(_wrong_width(where, row, header, separator))
    if header is None:
        return {"question": row[0], "answers": _listed(row[1], where) if lists else _several(row[1])}
    return {key: _cell(key, value, where) for key, value in zip(header, row, strict=True)}


def _wrong_width(where: str, row: list[str], header: list[str] | None, separator: str) -> str:
    called = _CALLED[separator]
    expected = (
        "expected a question and a list of answers"
        if header is None
        else f"the header has {len(header)} ({listed(header)})"
    )
    problem = f"{where}: {len(row)} {called}-separated columns, {expected}"
    return f"{problem}; a field that holds a {called} belongs in double quotes" if len(row) > 2 else problem


def _listed(cell: str, where: str) -> list:
    value = None
    for read in (ast.literal_eval, json.loads):
        try:
            value = read(cell.strip())
            str(value)  # a hexadecimal number of thousands of digits has no text
        except (ValueError, SyntaxError, MemoryError, RecursionError):  # also a number of thousands of digits
            continue
        break
    if not isinstance(value, list | tuple):
        raise UserError(f"{where}: the answers are not a Python-style list: {cell[:60]}")
    return list(value)


def _cell(key: str, cell: str, where: str) -> Any:
    if key in _ASKED:
        return cell
    if re.match(r"""\s*\[\s*(['"\]]|\d+\s*[,\]])""", cell):
        return _listed(cell, where)
    return _several(cell) if key in _SEVERAL else cell


def _several(cell: str) -> str | list[str]:
    """The answers of a cell, a|b; a cell without a bar as it is."""
    answers = [answer.strip() for answer in cell.split("|")]
    return answers if len(answers) > 1 and all(answers) else cell


def paired_records(source: Path, encoding: str | None = None) -> Iterator[tuple[str, dict[str, Any]]]:
    """(place, record) of a file of questions and one of answers, line by line, as in Hugging Face's examples."""
    target = source.with_name(source.name.replace(".source", ".target"))
    if target == source or not target.is_file():
        raise UserError(
            f"{source} has no {target.name if target != source else '.target file'} beside it, whose lines are the "
            "answers to its own: add it"
        )
    pairs = zip_longest(read_lines(source, encoding), read_lines(target, encoding))
    for number, (question, answer) in enumerate(pairs, start=1):
        if question is None or answer is None:
            longer, shorter = (source, target) if answer is None else (target, source)
            raise UserError(
                f"{longer}, line {number}: {shorter.name} has fewer lines: both need one line per question"
            )
        yield f"{source}, line {number}", {"question": question.strip(), "answers": answer.strip()}


def parquet_records(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(place, record) of each row of a Parquet file, a thousand rows at a time."""
    try:
        path.open("rb").close()
    except (OSError, ValueError) as error:
        raise unreadable(path, error) from None
    row = 0
    try:
        with pq.ParquetFile(path, buffer_size=1 << 20, pre_buffer=False) as file:
            for batch in file.iter_batches(1024):
                for record in batch.to_pylist():
                    row += 1
                    yield f"{path}, row {row}", record
    except (pa.ArrowException, OSError, ValueError) as error:
        raise UserError(f"{path} is not a whole Parquet file ({error}): download it again") from None


def dataset_records(folder: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(place, record) of each row of a folder that `datasets` wrote with save_to_disk."""
    from datasets import load_from_disk  # takes a second to import

    try:
        rows = load_from_disk(str(folder))
    except (OSError, ValueError, TypeError, KeyError, pa.ArrowException) as error:
        raise UserError(f"{folder} is not a whole folder of `datasets` ({error}): save it again") from None
    if isinstance(rows, dict):
        splits = ", ".join(str(folder / str(name)) for name in rows)
        raise UserError(f"{folder} holds several splits: give one of them: {splits}")
    for number, row in enumerate(rows, start=1):
        yield f"{folder}, row {number}", dict(row)


def judged_records(qrels: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(place, record) of each question that one of BEIR's qrels/*.tsv judges, whose text is in queries.jsonl: without
    answers, with the passages of a positive score as `positive_ids`."""
    right: dict[str, list[str]] = {}
    for line, row in islice(table_rows(qrels, "\t"), 1, None):  # below the header
        if len(row) != 3 or not re.fullmatch(r"-?\d{1,9}", row[2].strip()):
            raise UserError(f"{qrels}, line {line}: expected query-id, corpus-id and a whole number as score")
        if int(row[2]) > 0:
            right.setdefault(row[0], []).append(row[1])
    queries = qrels.parent.parent / "queries.jsonl"
    for line, record in json_records(queries):
        if (id := str(record.get("_id"))) in right:
            yield (
                f"{queries}, line {line}",
                {
                    "id": id,
                    "question": record.get("text"),
                    "positive_ids": right[id],
                },
            )
