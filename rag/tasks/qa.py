"""Open-domain question answering (section 3.1) on files of one's own, and the readers that all such tasks
share.

Three formats are read, each plain or packed as `.gz` or `.xz`:

- JSON lines: one object a line with `question`, `answers` (a list of strings, or one string) and, where
  known, `positive_ids`, `hard_negative_ids`, `set`, `id`;
- `*.csv`: DPR's question files (`*.qa.csv`), a question, a tab and a Python-style list of answers, no header;
- `*.json`: DPR's retriever training files, one array of objects with `question`, `answers`, `positive_ctxs`
  and `hard_negative_ctxs`, whose passages have a `passage_id` (or `psg_id`). They are gigabytes long and are
  streamed.
"""

import ast
import csv
import gzip
import json
import lzma
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from rag.errors import UserError
from rag.metrics.bootstrap import Metric, mean_with_interval
from rag.metrics.qa import exact_match, token_f1
from rag.tasks.example import Example

CHUNK = 1 << 20  # characters of a JSON array read at a time


def read_examples(path: Path | str, answers: str = "answers", limit: int | None = None) -> list[Example]:
    """Read the questions of one file in any of this module's formats, in the file's order.

    `answers` names the key that holds the answers (NQ-open has "answer"; a file with dated answers has
    several). `limit` keeps the first so many. Raises UserError, with file and line, for a file that is
    missing, empty, not UTF-8 or malformed, a key that is missing, an empty question, and answers that are not
    a list of strings.
    """
    path = Path(path)
    examples = [
        _example(record, answers, where, default_id=str(number))
        for number, (where, record) in enumerate(islice(read_records(path), limit), start=1)
    ]
    if not examples and limit != 0:
        raise UserError(f"{path} holds no questions")
    return examples


def read_records(path: Path | str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (place, record) for each JSON object or row of a file; place is "file, line 7", for messages."""
    path = Path(path)
    suffix = path.with_suffix("").suffix if path.suffix in (".gz", ".xz") else path.suffix
    if suffix == ".csv":
        return _csv_records(path)
    if suffix == ".json" and next((line.strip()[:1] for line in read_lines(path) if line.strip()), "") == "[":
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


def _open(path: Path) -> BinaryIO | gzip.GzipFile | lzma.LZMAFile:
    if path.suffix == ".gz":
        return gzip.open(path, "rb")
    if path.suffix == ".xz":
        return lzma.open(path, "rb")
    return path.open("rb")


def _jsonl_records(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    for number, line in enumerate(read_lines(path), start=1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise UserError(f"{where}: malformed JSON ({error.msg} at column {error.colno})") from None
        yield where, _object(record, where)


def _csv_records(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
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


def _array_records(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Stream the objects of one JSON array, a chunk of the file in memory at a time."""
    decoder = json.JSONDecoder()
    lines = read_lines(path)
    text, start, line_number = (
        "",
        0,
        1,
    )  # what is in memory, and where the next object starts

    def more(text: str) -> str:
        parts, size = [text], 0
        for line in lines:
            parts.append(line)
            size += len(line)
            if size >= max(CHUNK, len(text)):
                break
        return "".join(parts)

    def skip(characters: str) -> None:
        nonlocal text, start, line_number
        while True:
            while start < len(text) and text[start] in characters:
                line_number += text[start] == "\n"
                start += 1
            if start < len(text):
                return
            text, start = more(""), 0
            if not text:
                raise UserError(f"{path}, line {line_number}: the JSON array is cut short, its ] is missing")

    skip(" \t\r\n")
    start += 1  # the opening bracket, which read_records has seen
    while True:
        skip(" \t\r\n,")
        if text[start] == "]":
            return
        where = f"{path}, line {line_number}"
        while True:
            try:
                record, end = decoder.raw_decode(text, start)
                break
            except json.JSONDecodeError as error:
                # An object that goes on beyond the chunk breaks off at its end or inside a string.
                cut = error.pos >= len(text) - 16 or error.msg.startswith("Unterminated")
                longer = more(text[start:]) if cut else ""
                if len(longer) <= len(text) - start:
                    line = line_number + text.count("\n", start, error.pos)
                    raise UserError(f"{path}, line {line}: malformed JSON ({error.msg})") from None
                text, start = longer, 0
        line_number += text.count("\n", start, end)
        start = end
        yield where, _object(record, where)


def _object(record: Any, where: str) -> dict[str, Any]:
    if not isinstance(record, dict):
        raise UserError(f"{where}: a JSON object is expected, found {_kind(record)}")
    return record


def _kind(value: Any) -> str:
    kinds = {str: "a string", list: "a list", dict: "an object", bool: "true or false", type(None): "null"}
    return kinds.get(type(value), "a number")


def _example(record: dict[str, Any], answers: str, where: str, default_id: str) -> Example:
    for key in ("question", answers):
        if key not in record:
            hint = (
                f": name the key of the answers with answers={_answer_key(record)}" if key == answers else ""
            )
            raise UserError(f"{where}: no key {key!r}, found {', '.join(record) or 'none'}{hint}")
    question = record["question"]
    if not isinstance(question, str):
        raise UserError(f"{where}: the question is {_kind(question)}, a string is expected")
    if not question.strip():
        raise UserError(f"{where}: the question is empty")
    return Example(
        question=question,
        answers=_answers(record[answers], f"{where}: {answers}"),
        positive_ids=_ids(record, "positive_ids", "positive_ctxs", where),
        hard_negative_ids=_ids(record, "hard_negative_ids", "hard_negative_ctxs", where),
        set=str(record.get("set") or ""),
        id=str(record.get("id", default_id)),
    )


def _answer_key(record: dict[str, Any]) -> str:
    return next((key for key in record if key.startswith("answer")), "…")


def _answers(value: Any, where: str) -> tuple[str, ...]:
    if isinstance(value, str):
        value = [value]
    if not isinstance(value, list | tuple):
        raise UserError(f"{where} is {_kind(value)}, a list of strings is expected")
    if not value:
        raise UserError(f"{where} is an empty list, at least one answer is expected")
    for answer in value:
        if not isinstance(answer, str):
            raise UserError(f"{where} holds {_kind(answer)}, a list of strings is expected")
        if not answer.strip():
            raise UserError(f"{where} holds an empty string, every answer needs at least one character")
    return tuple(value)


def _ids(record: dict[str, Any], key: str, contexts: str, where: str) -> tuple[str, ...]:
    """The passage ids under `key`, or those of DPR's passages under `contexts`; () if there are neither."""
    if key in record or contexts not in record:
        ids = record.get(key) or []
    else:
        passages = record[contexts]
        if not isinstance(passages, list) or not all(isinstance(passage, dict) for passage in passages):
            raise UserError(f"{where}: {contexts} is not a list of passages")
        key = contexts
        ids = [passage.get("passage_id", passage.get("psg_id")) for passage in passages]
    if not isinstance(ids, list) or not all(
        isinstance(i, int | str) and not isinstance(i, bool) for i in ids
    ):
        raise UserError(f"{where}: {key} is not a list of passage ids (integers or strings)")
    return tuple(str(i) for i in ids)


class QuestionAnswering:
    """Questions with short answers in files of one's own, judged by exact match and token F1 (section 3.1).

    Args:
        train, dev, test: files in any format of this module; a split may be left out.
        answers: the key that holds the answers.
        train_sets: train on the examples of these sets alone (the key `set` of the files); all by default.
        report_sets: count only the examples of these sets in `score`; all by default.
        limit: keep the first so many examples of every split.
    """

    def __init__(
        self,
        train: str | None = None,
        dev: str | None = None,
        test: str | None = None,
        answers: str = "answers",
        train_sets: Sequence[str] | None = None,
        report_sets: Sequence[str] | None = None,
        limit: int | None = None,
    ):
        self.files = {"train": train, "dev": dev, "test": test}
        self.answers = answers
        self.train_sets = train_sets
        self.report_sets = report_sets
        self.limit = limit

    def examples(self, split: str) -> list[Example]:
        """The examples of "train", "dev" or "test", read at each call; UserError if the split has no file."""
        path = self.files.get(split)
        if path is None:
            known = ", ".join(name for name, file in self.files.items() if file is not None)
            raise UserError(f"the task has no {split} file: give task.{split}=… (it has: {known or 'none'})")
        examples = read_examples(path, self.answers, self.limit)
        if split == "train" and self.train_sets is not None:
            chosen = [example for example in examples if example.set in self.train_sets]
            if not chosen:
                found = ", ".join(sorted({repr(example.set) for example in examples}))
                raise UserError(
                    f"{path}: no question of the sets {', '.join(self.train_sets)}, found {found}"
                )
            return chosen
        return examples

    def training_pairs(self) -> list[tuple[Example, str]]:
        """One (example, target) for each answer of each training question, as in section 3.1."""
        return [(example, answer) for example in self.examples("train") for answer in example.answers]

    def score(self, predictions: Sequence[str], examples: Sequence[Example]) -> dict[str, Metric]:
        """Exact match and token F1 of the examples that count, as {"em": …, "f1": …}.

        Examples outside `report_sets` are NaN in `per_example` and count for nothing.
        """
        counted = np.array(
            [self.report_sets is None or example.set in self.report_sets for example in examples]
        )
        answers = [example.answers for example in examples]
        return {
            "em": mean_with_interval(np.where(counted, exact_match(predictions, answers), np.nan)),
            "f1": mean_with_interval(np.where(counted, token_f1(predictions, answers), np.nan)),
        }
