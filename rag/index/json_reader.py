"""Corpora in JSON: an object a line, an array of objects, or SQuAD's form, whose paragraphs are the passages."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rag.errors import UserError
from rag.index.fields import Row, fields
from rag.text_files import text_lines

FORMS = "an object with id, title and text per line, an array of such objects, or SQuAD's form"


def read_json_passages(path: Path, encoding: str | None = None) -> Iterator[Row]:
    """The rows of a .jsonl or .json file. Raises UserError, with the line or the item, for what is malformed.

    JSON lines are streamed; an array or an object over several lines is held in memory.
    """
    first = next(((line, text) for line, text in text_lines(path, encoding) if text.strip()), None)
    if first is None:
        raise UserError(f"{path} is empty: expected one passage per line, as a JSON object")
    line, text = first
    try:
        record = json.loads(text)
    except (ValueError, RecursionError) as error:
        if not isinstance(error, json.JSONDecodeError) or error.pos < len(text.rstrip()):
            raise _malformed(path, line, error) from error
        yield from _whole(path, encoding)  # the line is right so far, and goes on in the next one
        return
    if isinstance(record, list) and (not record or isinstance(record[0], dict)) or _squad(record) is not None:
        yield from _whole(path, encoding)
        return
    yield from _lines(path, encoding)


def _lines(path: Path, encoding: str | None) -> Iterator[Row]:
    for line, text in text_lines(path, encoding):
        if not text.strip():
            continue
        try:
            record = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise _malformed(path, line, error) from error
        if not isinstance(record, dict):
            raise UserError(f"{path}, line {line}: expected an object with id, title and text")
        yield line, *fields(record, f"{path}, line {line}")


def _whole(path: Path, encoding: str | None) -> Iterator[Row]:
    try:
        value = json.loads("".join(text for _, text in text_lines(path, encoding)))
    except (ValueError, RecursionError) as error:
        raise _malformed(path, getattr(error, "lineno", 1), error) from error
    if (articles := _squad(value)) is not None:
        yield from _paragraphs(path, articles)
        return
    if isinstance(value, dict):
        value = [value]
    for number, record in enumerate(value, start=1):
        if not isinstance(record, dict):
            raise UserError(f"{path}, item {number}: expected an object with id, title and text")
        yield number, *fields(record, f"{path}, item {number}")


def _squad(value: Any) -> list[Any] | None:
    """The articles of SQuAD's form; None for anything else."""
    data = value.get("data") if isinstance(value, dict) else None
    ours = isinstance(data, list) and all(isinstance(one, dict) and "paragraphs" in one for one in data)
    return data if ours else None


def _paragraphs(path: Path, articles: list[Any]) -> Iterator[Row]:
    number = 0
    for article in articles:
        for paragraph in article["paragraphs"]:
            number += 1
            if not isinstance(paragraph, dict) or not isinstance(paragraph.get("context"), str):
                raise UserError(f"{path}, paragraph {number}: expected an object with the text as context")
            yield number, None, str(article.get("title") or ""), paragraph["context"]


def _malformed(path: Path, line: int, error: ValueError | RecursionError) -> UserError:
    """json also raises a plain ValueError, for a number of thousands of digits, and a RecursionError."""
    return UserError(
        f"{path}, line {line}: not valid JSON ({getattr(error, 'msg', error)}): expected {FORMS}"
    )
