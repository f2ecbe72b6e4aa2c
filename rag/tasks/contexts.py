"""The passages that come with a question in its own file, with scores where something gave them.

`ctxs` as FiD writes them, `passages` as Atlas, `contexts` or `retrieved_contexts` as RAGAS, or HotpotQA's `context`: a
list of objects with `text` (or another of the names of rag/index/fields.py), `title`, `id` and `score`, the last three
where they are known; of texts; or of [title, sentences]. An object of such lists, as `datasets` keeps a list of objects
(MS-MARCO's on the hub), will do.
"""

import math
from collections.abc import Iterator
from typing import Any

from rag.errors import UserError, listed
from rag.index.fields import ID_NAMES, TEXT_NAMES, fields, joined, named
from rag.json_files import Record, kind

CONTEXTS = ("ctxs", "contexts", "retrieved_contexts", "passages")
HOTPOT_QA = "context"
SCORES = ("score", "similarity", "relevance_score")
Context = tuple[str | None, str, str, float | None]  # id, title, text, score


def contexts_of(record: Record, where: str) -> tuple[str, Any] | None:
    """The place of a record and its passages as they are written; None where it has none."""
    key = next((each for each in CONTEXTS if each in record), None)
    if key is None and isinstance(record.get(HOTPOT_QA), list | dict):
        key = HOTPOT_QA
    return None if key is None else (f"{where}: {key}", record[key])


def read_contexts(where: str, written: Any) -> list[Context]:
    """The passages of one question, best first where they have scores, in their own order otherwise.

    One that comes twice, the same in id, title and text, is taken once, with its better score. Raises UserError, which
    begins with `where`, for what is no list of passages, for a passage without text, a score that is no finite number,
    and where some of a question's passages have scores and others have none.
    """
    contexts = [
        _context(f"{where}, passage {number}", one) for number, one in enumerate(_items(where, written), 1)
    ]
    scored = [each for each in contexts if each[3] is not None]
    if scored and len(scored) < len(contexts):
        raise UserError(
            f"{where}: {len(scored)} of the {len(contexts)} passages have a score and the others none: give each one, "
            "or none"
        )
    if scored:
        contexts.sort(key=lambda each: -(each[3] or 0.0))
    seen: dict[tuple[str | None, str, str], Context] = {}
    for each in contexts:
        seen.setdefault(each[:3], each)
    return list(seen.values())


def _items(where: str, written: Any) -> Iterator[Any]:
    if isinstance(written, dict) and named(written, TEXT_NAMES) is not None:
        lists = {key: each for key, each in written.items() if each is not None}
        lengths = {len(each) if isinstance(each, list) else None for each in lists.values()}
        if len(lengths) != 1 or None in lengths:
            raise UserError(f"{where}: expected lists of one length under {listed(lists)}")
        yield from (dict(zip(lists, each, strict=True)) for each in zip(*lists.values(), strict=True))
        return
    if isinstance(written, dict) and isinstance(written.get("title"), list):  # HotpotQA on the hub
        sentences = written.get("sentences")
        if not isinstance(sentences, list) or len(sentences) != len(written["title"]):
            raise UserError(f"{where}: expected as many lists of sentences as titles")
        yield from map(list, zip(written["title"], sentences, strict=True))
        return
    if not isinstance(written, list):
        raise UserError(f"{where} is {kind(written)}, a list of passages is expected")
    yield from written


def _context(where: str, one: Any) -> Context:
    if isinstance(one, str):
        one = {"text": one}
    elif isinstance(one, list) and len(one) == 2:
        one = {"title": one[0], "text": joined(one[1])}
    if not isinstance(one, dict):
        raise UserError(f"{where} is {kind(one)}, an object with text, or a text, is expected")
    if named(one, TEXT_NAMES) is None:
        raise UserError(f"{where}: no text, found {listed(one)}")
    at_id = named(one, ID_NAMES)
    id, title, text = fields(
        {key: value for key, value in one.items() if key != at_id or value is not None}, where
    )
    if not text.strip():
        raise UserError(f"{where}: its text is empty")
    key = next((each for each in SCORES if one.get(each) is not None), None)
    return id, title, text, None if key is None else _score(one[key], f"{where}: {key}")


def _score(value: Any, where: str) -> float:
    try:
        score = math.nan if isinstance(value, bool) else float(value)  # FiD writes numbers as texts
    except (TypeError, ValueError, OverflowError):
        score = math.nan
    if not math.isfinite(score):
        raise UserError(f"{where} is {value!r:.40}, a finite number is expected")
    return score
