"""MS-MARCO NLG 2.1 (section 3.2): questions to a search engine with answers in whole sentences.

Sources: `{train,dev,eval}_v2.1_public.json[.gz]` of microsoft.github.io/msmarco (an object with a column a
key, each a mapping from row to value; read at once, several gigabytes for train), the same as JSON lines, and
the hub's microsoft/ms_marco (config v2.1). Bajaj et al. 2016; for non-commercial research only.

The task is made of the questions with a well-formed answer (train 153,725, dev 12,467). The passages that come with
them, Bing's ten, are what retriever=given reads; otherwise they are not used. The answers of eval, the hub's test, are
not public: the original leaves the columns out, the hub's rows have `[]` for both `answers` and `wellFormedAnswers`.
Its examples have none, predictions for them are sent in, and the paper's test metrics can only be compared with dev's.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rag.errors import UserError
from rag.safe_text import json_text
from rag.tasks.contexts import contexts_of
from rag.tasks.example import Example
from rag.tasks.records import HUB, Record, field, kind, read_object, read_records, text_field, texts
from rag.tasks.text_to_text import TextToText

HUB_TRAIN = "hub://microsoft/ms_marco/v2.1/train"
HUB_DEV = "hub://microsoft/ms_marco/v2.1/validation"

_COLUMNS = ("query_id", "query", "answers", "wellFormedAnswers", "passages")
_NONE = ("[]", [], None)  # the original writes the empty list as a string


class MsMarco(TextToText):
    """MS-MARCO's natural language generation task: a question in, a whole sentence out."""

    def __init__(
        self,
        train: str | None = HUB_TRAIN,
        dev: str | None = HUB_DEV,
        test: str | None = None,
        limit: int | None = None,
    ):
        super().__init__(train, dev, test, limit=limit)

    def submission(self, predictions: Sequence[str], examples: Sequence[Example]) -> Mapping[str, str]:
        """The leaderboard's JSON lines of {"query_id", "answers": [one]}, where an example has no public answer."""
        if all(example.answers for example in examples):
            return {}
        pairs = zip(examples, predictions, strict=True)
        rows = [
            {"query_id": int(one.id) if one.id.isdecimal() else one.id, "answers": [text]}
            for one, text in pairs
        ]
        return {"submission.jsonl": "".join(json_text(row) + "\n" for row in rows)}

    def read(self, source: str) -> Iterator[Example]:
        for where, record in _rows(source):
            question, number = text_field(record, "query", where), str(field(record, "query_id", where))
            answers = record.get("wellFormedAnswers")
            given = contexts_of(record, where)
            if "wellFormedAnswers" not in record or (answers in _NONE and record.get("answers", 0) in _NONE):
                yield Example(
                    question, (), id=number, contexts=given
                )  # hidden; an unanswered one says "No Answer Present."
                continue
            if answers in _NONE:
                continue
            right = texts(answers, f"{where}: wellFormedAnswers")
            yield Example(question, right, id=number, contexts=given)


def _rows(source: str) -> Iterator[tuple[str, Record]]:
    name = Path(source).name.removesuffix(".gz").removesuffix(".xz")
    if source.startswith(HUB) or not name.endswith(".json"):
        yield from read_records(source)
        return
    columns = {key: value for key, value in read_object(source).items() if key in _COLUMNS}
    queries = _column(field(columns, "query", source), "query", source)
    for key, column in columns.items():
        if _column(column, key, source).keys() != queries.keys():
            raise UserError(f"{source}: {key} and query do not have the same rows")
    for row in queries:
        yield f"{source}, row {row}", {key: column[row] for key, column in columns.items()}


def _column(value: Any, key: str, source: str) -> Record:
    if not isinstance(value, dict):
        raise UserError(f"{source}: {key} is {kind(value)}, an object from row to value is expected")
    return value
