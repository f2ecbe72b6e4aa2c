"""Corpora in JSON: objects with id, title and text, a line each or in an array, or SQuAD's form, whose paragraphs are
the passages."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rag.errors import UserError, listed
from rag.index.fields import Row, fields
from rag.index.reading import AS_USUAL, CorpusReading
from rag.json_files import json_records, kind, not_too_deep
from rag.text_files import first_bytes


def read_json_passages(path: Path, reading: CorpusReading = AS_USUAL) -> Iterator[Row]:
    """The rows of a .jsonl or .json file, streamed. Raises UserError, with the line, for what is malformed, and at the
    end where no object has the field that is given as the title."""
    line, first = None, {}
    title = reading.columns.get("title")
    titled = title is None
    for line, record in json_records(path, reading.encoding):
        where = f"{path}, line {line}"
        first, titled = first or record, titled or title in record
        if "paragraphs" in record and "text" not in reading.columns:
            yield from _paragraphs(record, line, where)
        else:
            with not_too_deep(where):
                row = fields(record, where, reading.columns)
            yield line, *row
    if line is None and not first_bytes(path, 1 << 16).removeprefix(b"\xef\xbb\xbf").strip():
        raise UserError(f"{path} is empty: expected one passage per line, as a JSON object")
    if line is not None and not titled:
        raise UserError(f"{path} has no field {title} (corpus.columns.title): there are {listed(first)}")


def _paragraphs(article: dict[str, Any], line: int, where: str) -> Iterator[Row]:
    """The passages of one of SQuAD's articles."""
    if not isinstance(paragraphs := article["paragraphs"], list):
        raise UserError(
            f"{where}: paragraphs is {kind(paragraphs)}, a list of objects with a context is expected"
        )
    for number, paragraph in enumerate(paragraphs, start=1):
        if not isinstance(paragraph, dict) or not isinstance(paragraph.get("context"), str):
            raise UserError(f"{where}, paragraph {number}: expected an object with the text as context")
        yield line, None, str(article.get("title") or ""), paragraph["context"]
