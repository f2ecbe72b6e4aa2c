"""Reading the files that tasks are made of, record by record; what is wrong in them is told in one sentence.

A source is the path of a file, plain or packed as `.gz` or `.xz`, or a split of a hub dataset. What is read:

- `*.jsonl`, `*.json`: one JSON object a line, or one array of objects, which is streamed, since DPR's are gigabytes
  long, or one object that holds questions, as SQuAD's, MRQA's and TriviaQA's;
- `*.csv`, `*.tsv`: with a header that names its columns, or without one a question and its answer or answers, separated
  by tabs, commas or semicolons (tables.py), such as DPR's question files (`*.qa.csv`);
- `*.source` with its `*.target` beside it: a question a line, and its answer on the same line of the other file;
- `*.parquet`: a record a row;
- `hub://owner/name/config/split`: read through `datasets` (downloaded at the first use).

Half of a surrogate pair (an emoji cut in two), which no tokenizer takes, is read as U+FFFD and counted.
"""

import json
import logging
import re
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from rag.errors import UserError
from rag.tasks.lines import Mender, plain_suffix, read_lines
from rag.tasks.tables import paired_records, parquet_records, table_records

log = logging.getLogger(__name__)

Record = dict[str, Any]

CHUNK = 1 << 20  # characters of a JSON array read at a time
HUB = "hub://"
FORMS = (
    ".jsonl or .json (objects with question and answers, SQuAD, DPR's training files), .csv or .tsv (a header, or a "
    "question and its answers), .source with .target, .parquet; each but Parquet also as .gz or .xz"
)
_SOMETHING = re.compile(r"[^\s,]")


def read_records(source: Path | str) -> Iterator[tuple[str, Record]]:
    """Yield (place, record) for each record of a source; place is "file, line 7", for messages.

    Raises UserError, with file and line, for a source that is missing, of no form that is read, not UTF-8 or malformed.
    """
    if str(source).startswith(HUB):
        return _hub_records(str(source))
    path = Path(source)
    suffix = plain_suffix(path)
    if suffix in (".csv", ".tsv"):
        return _mended(table_records, path)
    if suffix == ".source":
        return paired_records(path, Path(str(path).replace(".source", ".target")))
    if suffix == ".parquet":
        return parquet_records(path)
    first = first_character(path)
    if first == "[":
        return _mended(_array_records, path)
    if suffix in (".json", ".jsonl", ".ndjson") or first == "{":
        return _mended(_jsonl_records, path)
    raise UserError(f"{path} is not in a supported format; supported: {FORMS}")


def _mended(
    read: Callable[[Path, Mender], Iterator[tuple[str, Record]]], path: Path
) -> Iterator[tuple[str, Record]]:
    mend = Mender(path)
    try:
        yield from read(path, mend)
    finally:
        mend.report()


def read_object(path: Path | str) -> Record:
    """The one JSON object that a whole file is, read at once; UserError if it is anything else."""
    return parse_object("".join(read_lines(path)), str(path))


def parse_object(text: str | bytes, where: str) -> Record:
    """The JSON object that is written in `text`; UserError beginning with `where` if it is anything else."""
    try:
        text = text if isinstance(text, str) else text.decode("utf-8-sig")
        value = json.loads(text)
    except UnicodeDecodeError as error:
        raise UserError(f"{where}: not UTF-8 ({error.reason} at byte {error.start})") from None
    except json.JSONDecodeError as error:
        raise UserError(f"{where}, line {error.lineno}: malformed JSON ({error.msg})") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: malformed JSON ({error})") from None
    mend = Mender(where)
    value = mend(_object(value, where), text, where)
    mend.report()
    return value


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


def first_character(path: Path | str) -> str:
    """The first character of a text file that is no space; "" if it has none."""
    return next((line.strip()[0] for line in read_lines(path) if line.strip()), "")


def _jsonl_records(path: Path, mend: Mender) -> Iterator[tuple[str, Record]]:
    """JSON lines, or a file that is one object over several lines; an object that holds many questions is unfolded."""
    first = True
    for number, line in enumerate(read_lines(path), start=1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            record = json.loads(line.rstrip())
        except json.JSONDecodeError as error:
            if first and (plain_suffix(path) == ".json" or line.strip() == "{"):
                yield from _unfolded(read_object(path), str(path), path)
                return
            raise UserError(f"{where}: malformed JSON ({error.msg} at column {error.colno})") from None
        except (
            ValueError,
            RecursionError,
        ) as error:  # a number of thousands of digits, lists in lists in lists
            raise UserError(f"{where}: malformed JSON ({error})") from None
        first = False
        yield from _unfolded(mend(_object(record, where), line, where), where, path)


def _unfolded(record: Record, where: str, path: Path) -> Iterator[tuple[str, Record]]:
    """The questions inside SQuAD's, MRQA's and TriviaQA's objects; any other object is a record itself."""
    articles = record.get("data")
    if isinstance(articles, list) and all(isinstance(one, dict) and "paragraphs" in one for one in articles):
        paragraphs = [
            one for article in articles for one in _objects(article["paragraphs"], f"{where}: paragraphs")
        ]
        yield from _asked_of(paragraphs, where, path)
    elif "qas" in record and "question" not in record:  # MRQA: a context a line
        yield from _asked_of([record], where, path)
    elif isinstance(record.get("Data"), list) and "Question" not in record:
        for number, one in enumerate(_objects(record["Data"], f"{where}: Data"), start=1):
            yield f"{path}, question {number}", one
    elif set(record) != {"header"}:  # of MRQA's files
        yield where, record


def _asked_of(paragraphs: list[Record], where: str, path: Path) -> Iterator[tuple[str, Record]]:
    """The questions under `qas` of each paragraph that can be answered."""
    number = left_out = 0
    for paragraph in paragraphs:
        for one in _objects(paragraph.get("qas"), f"{where}: qas"):
            number += 1
            location = f"{path}, question {one.get('id', one.get('qid', number))}"
            if one.get("is_impossible"):
                left_out += 1
                continue
            answers = one.get("answers")
            if isinstance(answers, list) and answers and not isinstance(answers[0], str):
                answers = [answer.get("text") for answer in _objects(answers, f"{location}: answers")]
                answers = list(dict.fromkeys(answer for answer in answers if isinstance(answer, str)))
            yield location, one | {"answers": answers}
    if left_out:
        log.warning("%s: %d of %d questions cannot be answered and are left out", path, left_out, number)


def _objects(value: Any, where: str) -> list[Record]:
    if not isinstance(value, list) or not all(isinstance(one, dict) for one in value):
        raise UserError(f"{where} is {kind(value)}, a list of objects is expected")
    return value


def _array_records(path: Path, mend: Mender) -> Iterator[tuple[str, Record]]:
    """Stream the objects of one JSON array, with little more than one of them in memory at a time."""
    decoder = json.JSONDecoder()
    lines = read_lines(path)
    text = _next_lines(lines, CHUNK)
    at = text.index("[") + 1  # where the next object starts in what was read, and on which line of the file
    line = 1 + text.count("\n", 0, at)
    while True:
        next_token = _SOMETHING.search(text, at)
        start = next_token.start() if next_token else len(text)
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
            except (ValueError, RecursionError) as error:
                raise UserError(f"{where}: malformed JSON ({error})") from None
            record = _object(record, where)
            yield where, mend(record, text[at:end], where)
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
        reason = hub.reason(error)
        if "script" in reason.lower():  # what `datasets` says of a repository with a program in place of data
            raise UserError(
                f"{source} is a loading script without data, which `datasets` no longer runs: give a file; `python -m "
                "rag.download list` says which data it fetches and where it puts them"
            ) from error
        raise hub.refusal(error, f"{owner}/{name}", "dataset") or UserError(
            f"{source} cannot be loaded ({reason}): give a file of one's own instead, or go online"
        ) from error
    for number, row in enumerate(rows):
        yield f"{source}, row {number}", dict(row)
