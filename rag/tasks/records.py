"""Reading the files that tasks are made of, record by record; what is wrong in them is told in one sentence.

A source is the path of a file, plain or packed as `.gz` or `.xz`, or a split of a hub dataset:

- `*.jsonl`: one JSON object a line;
- `*.json`: one array of objects, streamed, since DPR's are gigabytes long; or JSON lines under another name;
- `*.csv`: DPR's question files (`*.qa.csv`): a question, a tab and a Python-style list of answers, no header;
- `hub://owner/name/config/split`: read through `datasets` (downloaded at the first use).
"""

import ast
import csv
import gzip
import io
import json
import lzma
import re
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from rag.errors import UserError

Record = dict[str, Any]

CHUNK = 1 << 20  # characters of a JSON array read at a time
HUB = "hub://"
_SOMETHING = re.compile(r"[^\s,]")


def read_records(source: Path | str) -> Iterator[tuple[str, Record]]:
    """Yield (place, record) for each record of a source; place is "file, line 7", for messages.

    Raises UserError, with file and line, for a source that is missing, not UTF-8 or malformed.
    """
    if str(source).startswith(HUB):
        return _hub_records(str(source))
    path = Path(source)
    suffix = Path(path.stem).suffix if path.suffix in (".gz", ".xz") else path.suffix
    if suffix == ".csv":
        return _csv_records(path)
    if suffix == ".json" and _first_character(path) == "[":
        return _array_records(path)
    return _jsonl_records(path)


def read_lines(path: Path | str) -> Iterator[str]:
    """Yield the lines of a UTF-8 text file, packed or not; UserError if it cannot be read."""
    path = Path(path)
    number = 0
    try:
        with _open(path) as file:
            for number, line in enumerate(file, start=1):
                yield line.decode("utf-8-sig" if number == 1 else "utf-8")
    except FileNotFoundError:
        raise UserError(f"{path} does not exist") from None
    except IsADirectoryError:
        raise UserError(f"{path} is a folder, a file is expected") from None
    except PermissionError:
        raise UserError(f"{path} may not be read: its permissions forbid it") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}, line {number}: not UTF-8 ({error.reason} at byte {error.start})") from None
    except (EOFError, gzip.BadGzipFile, lzma.LZMAError) as error:
        raise UserError(
            f"{path} is not a whole {path.suffix} file ({error}): fetch or pack it again"
        ) from None


def read_object(path: Path | str) -> Record:
    """The one JSON object that a whole file is, read at once; UserError if it is anything else."""
    try:
        value = json.loads("".join(read_lines(path)))
    except json.JSONDecodeError as error:
        raise UserError(f"{path}, line {error.lineno}: malformed JSON ({error.msg})") from None
    return _object(value, str(path))


def not_empty(source: Path | str, records: Iterable[Any], limit: int | None, what: str = "questions") -> list:
    """The first `limit` of the records as a list; UserError if the source holds none."""
    chosen = list(islice(records, limit))
    if not chosen and limit != 0:
        raise UserError(f"{source} holds no {what}")
    return chosen


def field(record: Record, key: str, where: str, hint: str = "") -> Any:
    """record[key]; if it is missing, a UserError that says which keys there are."""
    if key not in record:
        raise UserError(f"{where}: no key {key!r}, found {', '.join(record) or 'none'}{hint}")
    return record[key]


def text_field(record: Record, key: str, where: str, name: str = "") -> str:
    """record[key], which has to be a string with something in it; `name` is what a message calls it."""
    value = field(record, key, where)
    if not isinstance(value, str):
        raise UserError(f"{where}: the {name or key} is {kind(value)}, a string is expected")
    if not value.strip():
        raise UserError(f"{where}: the {name or key} is empty")
    return value


def texts(value: Any, where: str) -> tuple[str, ...]:
    """A list of strings, or one string, as a tuple; UserError if it is empty or holds something else."""
    if isinstance(value, str):
        value = [value]
    if not isinstance(value, list | tuple):
        raise UserError(f"{where} is {kind(value)}, a list of strings is expected")
    if not value:
        raise UserError(f"{where} is an empty list, at least one string is expected")
    for one in value:
        if not isinstance(one, str):
            raise UserError(f"{where} holds {kind(one)}, a list of strings is expected")
        if not one.strip():
            raise UserError(f"{where} holds an empty string, at least one character is expected")
    return tuple(value)


def kind(value: Any) -> str:
    """What a JSON value is, in words."""
    kinds = {str: "a string", list: "a list", dict: "an object", bool: "true or false", type(None): "null"}
    return kinds.get(type(value), "a number")


def _open(path: Path) -> io.BufferedIOBase:
    if path.suffix == ".gz":
        return gzip.open(path, "rb")
    if path.suffix == ".xz":
        return lzma.open(path, "rb")
    return path.open("rb")


def _first_character(path: Path) -> str:
    return next((line.strip()[0] for line in read_lines(path) if line.strip()), "")


def _jsonl_records(path: Path) -> Iterator[tuple[str, Record]]:
    for number, line in enumerate(read_lines(path), start=1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            record = json.loads(line.rstrip())
        except json.JSONDecodeError as error:
            raise UserError(f"{where}: malformed JSON ({error.msg} at column {error.colno})") from None
        yield where, _object(record, where)


def _csv_records(path: Path) -> Iterator[tuple[str, Record]]:
    rows = csv.reader(read_lines(path), delimiter="\t")
    try:
        for row in rows:
            if not row:
                continue
            where = f"{path}, line {rows.line_num}"
            if len(row) != 2:
                raise UserError(
                    f"{where}: {len(row)} tab-separated columns, expected a question and a list of answers"
                )
            try:
                answers = ast.literal_eval(row[1])
            except (ValueError, SyntaxError):
                raise UserError(f"{where}: the answers are not a Python-style list: {row[1][:60]}") from None
            yield where, {"question": row[0], "answers": answers}
    except csv.Error as error:
        raise UserError(f"{path}, line {rows.line_num}: not a tab-separated file ({error})") from None


def _array_records(path: Path) -> Iterator[tuple[str, Record]]:
    """Stream the objects of one JSON array, with little more than one of them in memory at a time."""
    decoder = json.JSONDecoder()
    lines = read_lines(path)
    text = _next_lines(lines, CHUNK)
    at = text.index("[") + 1  # where the next object starts in what was read, and on which line of the file
    line = 1 + text.count("\n", 0, at)
    while True:
        found = _SOMETHING.search(text, at)
        start = found.start() if found else len(text)
        line += text.count("\n", at, start)
        at = start
        where = f"{path}, line {line}"
        if at == len(text):
            text, at = _next_lines(lines, CHUNK), 0
            if not text:
                raise UserError(f"{where}: the JSON array is cut short, its ] is missing")
        elif text[at] == "]":
            return
        else:
            try:
                record, end = decoder.raw_decode(text, at)
            except json.JSONDecodeError as error:
                # An object that goes on beyond what was read breaks off at its end, or inside a string.
                cut = error.pos >= len(text) - 16 or error.msg.startswith("Unterminated")
                added = _next_lines(lines, max(CHUNK, len(text) - at)) if cut else ""
                if not added:
                    wrong = line + text.count("\n", at, error.pos)
                    raise UserError(f"{path}, line {wrong}: malformed JSON ({error.msg})") from None
                text, at = text[at:] + added, 0
                continue
            yield where, _object(record, where)
            line += text.count("\n", at, end)
            at = end


def _next_lines(lines: Iterator[str], characters: int) -> str:
    """At least so many characters of whole lines, fewer at the end of the file."""
    taken, size = [], 0
    for line in lines:
        taken.append(line)
        size += len(line)
        if size >= characters:
            break
    return "".join(taken)


def _object(record: Any, where: str) -> Record:
    if not isinstance(record, dict):
        raise UserError(f"{where}: a JSON object is expected, found {kind(record)}")
    return record


def _hub_records(source: str) -> Iterator[tuple[str, Record]]:
    parts = source.removeprefix(HUB).split("/")
    if len(parts) != 4 or not all(parts):
        raise UserError(f"{source} is not of the form {HUB}owner/name/config/split")
    import datasets  # takes a second to import, and only the hub needs it

    from rag import hub

    owner, name, config, split = parts
    hub.commit(
        f"{owner}/{name}", "dataset"
    )  # before anything else is asked of a hub that may be out of reach
    try:
        rows = datasets.load_dataset(f"{owner}/{name}", config, split=split)
    except (OSError, ValueError, RuntimeError) as error:
        raise hub.refusal(error, f"{owner}/{name}", "dataset") or UserError(
            f"{source} cannot be loaded ({hub.reason(error)}): give a file of one's own instead, or go online"
        ) from error
    for number, row in enumerate(rows):
        yield f"{source}, row {number}", dict(row)
