"""Reading the files that tasks are made of, record by record; what is wrong in them is told in one sentence.

A source is the path of a file, plain or packed as `.gz` or `.xz`, or a split of a hub dataset. What is read:

- `*.jsonl`, `*.json`: one JSON object a line, or one array of objects, which is streamed, since DPR's are gigabytes
  long, or one object that holds questions, as SQuAD's, MRQA's and TriviaQA's (forms.py);
- `*.csv`, `*.tsv`: with a header that names its columns, or without one a question and its answer or answers, separated
  by tabs, commas or semicolons (tables.py), such as DPR's question files (`*.qa.csv`);
- `*.source` with its `*.target` beside it: a question a line, and its answer on the same line of the other file;
- `*.parquet`: a record a row; a folder that `datasets` wrote with save_to_disk;
- BEIR's `qrels/*.tsv`: the questions of `queries.jsonl` that it judges, with their passages;
- `hub://owner/name/config/split`: read through `datasets` (downloaded at the first use).

Half of a surrogate pair (an emoji cut in two), which no tokenizer takes, is read as U+FFFD and counted.
"""

import logging
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from rag.errors import UserError, listed
from rag.index.fields import written
from rag.json_files import Record, check_object, kind, parse_json
from rag.tasks.forms import NATIVE, SUPPORTED, File, form_of
from rag.tasks.lines import Mender, read_lines
from rag.tasks.tables import Bad

log = logging.getLogger(__name__)

HUB = "hub://"
FORMS = SUPPORTED


def read_records(
    source: Path | str, form: str | None = None, encoding: str | None = None, bad: Bad | None = None
) -> Iterator[tuple[str, Record]]:
    """Yield (place, record) for each record of a source; place is "file, line 7", for messages.

    form: of forms.py; None chooses by looking. encoding: of a text file; None is UTF-8. bad: called with what is wrong
    with a row, which is then left out. Raises UserError, with file and line, for a source that is missing, of no form
    that is read, not of the encoding or malformed.
    """
    if str(source).startswith(HUB):
        yield from _hub_records(str(source))
        return
    mend = Mender(source)
    file = File(Path(source), encoding, mend, bad)
    try:
        yield from form_of(file, form).read(file)
    finally:
        mend.report()


def said_form(source: Path | str, form: str | None = None, encoding: str | None = None) -> str | None:
    """What the form of a source is called in a sentence; None for JSON with question and answers, and for the hub."""
    if str(source).startswith(HUB):
        return None
    chosen = form_of(File(Path(source), encoding, Mender(source), None), form)
    return None if chosen.name == NATIVE and form is None else f"{chosen.said} (task.format={chosen.name})"


def read_object(path: Path | str) -> Record:
    """The one JSON object that a whole file is, read at once; UserError if it is anything else."""
    return parse_object("".join(read_lines(path)), str(path))


def parse_object(text: str | bytes, where: str) -> Record:
    """The JSON object that is written in `text`; UserError beginning with `where` if it is anything else."""
    try:
        text = text if isinstance(text, str) else text.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{where}: not UTF-8 ({error.reason} at byte {error.start})") from None
    mend = Mender(where)
    value = mend(check_object(parse_json(text, where), where), text, where)
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
        raise UserError(f"{where}: no key {key!r}, found {listed(record)}{hint}")
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
    """A list of strings and numbers, or one, as a tuple of strings; UserError if it holds nothing or something else."""
    if isinstance(written(value), str):
        value = [value]
    if not isinstance(value, list | tuple):
        raise UserError(f"{where} is {kind(value)}, a list of strings is expected")
    if not value:
        raise UserError(f"{where} is an empty list, at least one string is expected")
    value = [written(one) for one in value]
    for one in value:
        if not isinstance(one, str):
            raise UserError(f"{where} holds {kind(one)}, a list of strings is expected")
        if not one.strip():
            raise UserError(f"{where} holds an empty string, at least one character is expected")
    return tuple(value)


def first_character(path: Path | str) -> str:
    """The first character of a text file that is no space; "" if it has none."""
    return next((line.strip()[0] for line in read_lines(path) if line.strip()), "")


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
