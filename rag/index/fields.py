"""Which fields of a record are a passage's id, title and text, under the names that are in use."""

import math
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from rag.errors import UserError, listed

ID_NAMES = ("id", "_id", "passage_id", "psg_id", "doc_id", "docid", "pid", "wikipedia_id")
TITLE_NAMES = ("title", "wikipedia_title")
TEXT_NAMES = ("text", "contents", "passage", "passage_text", "context", "content")
NAMES = {"id": ID_NAMES, "title": TITLE_NAMES, "text": TEXT_NAMES}
Row = tuple[int, str | None, str, str]  # number of the line or row, id where there is one, title, text
_TITLE_LINE = re.compile(r'"([^\n]+)"\n(?=\s*\S)')  # how pyserini and FlashRAG begin their `contents`


def named(columns: Collection[str], names: Sequence[str]) -> str | None:
    """The first of `names` that is among `columns`."""
    for name in names:
        if name in columns:
            return name
    return None


def column(columns: Collection[str], what: str, given: Mapping[str, str | None], where: str) -> str | None:
    """Which of a table's columns is its id, title or text: the one that is `given` for it, or one of the usual names.

    UserError, beginning with `where`, for one that is given and not there.
    """
    name = given.get(what)
    if name is None:
        return named(columns, NAMES[what])
    if name not in columns:
        raise UserError(f"{where} has no column {name} (corpus.columns.{what}): there are {listed(columns)}")
    return name


def fields(
    record: dict[str, Any], location: str, given: Mapping[str, str | None] = {}
) -> tuple[str | None, str, str]:
    """Id (None where the record has none), title ("" where it has none) and text of a record.

    Numbers are taken as they are written, 7.0 as 7. A list of texts is joined (KILT's paragraphs). `contents` that
    begins with a line in double quotes, as pyserini's and FlashRAG's do, begins with the title. A `section` that is not
    empty follows the title, as in Atlas: "title: section". given: the names of `column`. Raises UserError, beginning
    with `location`, for anything else than texts and numbers.
    """
    id, title, text = record.get("id"), record.get("title"), record.get("text")
    if (
        not given and isinstance(title, str) and isinstance(text, str) and type(id) in (str, int)
    ):  # as nearly all are
        return str(id), _with_section(title, record), text
    at_title = given.get("title", named(record, TITLE_NAMES))
    at_id, at_text = (column(record, what, given, location) for what in ("id", "text"))
    id = None if at_id is None else written(record[at_id])
    title = "" if at_title is None or record.get(at_title) is None else written(record[at_title])
    text = None if at_text is None else written(joined(record[at_text]))
    for name, at, value in (("id", at_id, id), ("title", at_title, title), ("text", at_text, text)):
        if not isinstance(value, str) and not (name == "id" and value is None):
            problem = f"no {name} among {listed(record)}" if at is None else f"{at} is {value!r:.80}"
            advice = f", or corpus.columns.{name}= what it is called" if at is None else ""
            raise UserError(f"{location}: {problem}: expected a string each for id, title and text{advice}")
    if at_text == "contents" and at_title is None and (match := _TITLE_LINE.match(text)):  # type: ignore[arg-type]
        title, text = match[1], text[match.end() :]  # type: ignore[index]
    return id, title if "title" in given else _with_section(title, record), text  # type: ignore[return-value]


def _with_section(title: Any, record: dict[str, Any]) -> Any:
    section = record.get("section")
    return f"{title}: {section}" if title and section and isinstance(section, str) else title


def written(value: Any) -> Any:
    """A number as text; anything else, also NaN, infinity and a truth value, as it is."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    number = isinstance(value, int) or isinstance(value, float) and math.isfinite(value)
    try:
        return str(value) if number and not isinstance(value, bool) else value
    except ValueError:  # one of thousands of digits
        return value


def joined(value: Any) -> Any:
    """A list of texts, or of lists of them, as one text; anything else as it is."""
    if not isinstance(value, list):
        return value
    parts = list(_texts(value))
    if not all(isinstance(part, str) for part in parts):
        return value
    return " ".join(part.strip() for part in parts if part.strip())


def _texts(value: list[Any]) -> Iterator[Any]:
    for part in value:
        if isinstance(part, list):
            yield from _texts(part)
        else:
            yield part


def unquoted_title(title: str) -> str:
    r"""A title that is still a quoted field of a TSV, as facebook/wiki_dpr keeps them, as it was meant.

    Doubled quotes inside quotes become single ones, as csv makes them of psgs_w100.tsv, whose titles DPR's vectors were
    made of. What does not both begin and end with a quote, or has other than doubled ones inside, stays as it is.
    """
    inside = title[1:-1]
    quoted = len(title) > 2 and title[0] == title[-1] == '"' and '"' in inside
    return inside.replace('""', '"') if quoted and '"' not in inside.replace('""', "") else title
