"""Which fields of a record are a passage's id, title and text, under the names that are in use."""

from collections.abc import Collection, Sequence
from typing import Any

from rag.errors import UserError

ID_NAMES = ("id", "_id", "passage_id", "psg_id", "doc_id", "docid", "pid")
TITLE_NAMES = ("title",)
TEXT_NAMES = ("text", "contents", "passage", "context", "content")
Row = tuple[int, str | None, str, str]  # number of the line or row, id where there is one, title, text


def named(columns: Collection[str], names: Sequence[str]) -> str | None:
    """The first of `names` that is among `columns`."""
    for name in names:
        if name in columns:
            return name
    return None


def fields(record: dict[str, Any], location: str) -> tuple[str | None, str, str]:
    """Id (None where the record has none), title ("" where it has none) and text of a record.

    A whole number is an id, also in the form 7.0. Raises UserError, beginning with `place`, for anything else that is
    not a string.
    """
    id, title, text = record.get("id"), record.get("title"), record.get("text")
    if isinstance(title, str) and isinstance(text, str) and type(id) in (str, int):  # as nearly all are
        return str(id), title, text
    at_id, at_title, at_text = (named(record, names) for names in (ID_NAMES, TITLE_NAMES, TEXT_NAMES))
    id = None if at_id is None else record[at_id]
    if isinstance(id, float) and id.is_integer():
        id = int(id)
    if isinstance(id, int | float) and not isinstance(id, bool) and id == id:
        id = str(id)
    title = record.get(at_title) if at_title else ""
    title = "" if title is None else title
    text = record[at_text] if at_text else None
    for name, at, value in (("id", at_id, id), ("title", at_title, title), ("text", at_text, text)):
        if not isinstance(value, str) and not (name == "id" and at is None):
            problem = f"no {name}" if at is None else f"{at} is {value!r}"
            raise UserError(f"{location}: {problem}: expected a string each for id, title and text")
    return id, title, text  # type: ignore[return-value]


def unquoted_title(title: str) -> str:
    r"""A title that is still a quoted field of a TSV, as facebook/wiki_dpr keeps them, as it was meant.

    Doubled quotes inside quotes become single ones, as csv makes them of psgs_w100.tsv, whose titles DPR's vectors were
    made of. What does not both begin and end with a quote, or has other than doubled ones inside, stays as it is.
    """
    inside = title[1:-1]
    quoted = len(title) > 2 and title[0] == title[-1] == '"' and '"' in inside
    return inside.replace('""', '"') if quoted and '"' not in inside.replace('""', "") else title
