"""The forms of question files that other tools write, each of which knows its own when it sees it.

A form looks at a file (its name, its first bytes) and, where several forms are JSON, at the first record, and says
whether it is its form. `task.format=` names one instead of looking.
"""

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from rag.errors import UserError
from rag.json_files import Record, json_records, kind
from rag.tasks.lines import Mender, plain_suffix, read_lines
from rag.tasks.tables import (
    Bad,
    dataset_records,
    judged_records,
    paired_records,
    parquet_records,
    table_records,
)
from rag.text_files import first_bytes, unreadable

log = logging.getLogger(__name__)

Records = Iterator[tuple[str, Record]]
SUPPORTED = (
    ".jsonl or .json (objects with question and answers, NQ-open, SQuAD, KILT, FiD, FlashRAG, HotpotQA, TriviaQA, "
    "RAGAS, DPR's training files), .csv or .tsv (a header, or a question and its answers), .source with .target, "
    ".parquet; each but Parquet also as .gz or .xz"
)


@dataclass(frozen=True)
class File:
    """A question file as a form looks at it, and how it is to be read."""

    path: Path
    encoding: str | None
    mend: Mender
    bad: Bad | None

    @cached_property
    def suffix(self) -> str:
        return plain_suffix(self.path)

    @cached_property
    def character(self) -> str:
        """The first character that is no space; "" of an empty file."""
        return next((line.strip()[0] for line in read_lines(self.path, self.encoding) if line.strip()), "")

    @cached_property
    def first(self) -> Record:
        """The first record that is right, where the file is JSON and has one."""
        return next((record for _, record in json_records(self.path, self.encoding, bad=lambda _: None)), {})

    def json(self) -> Records:
        for line, record in json_records(self.path, self.encoding, self.mend, self.bad):
            yield f"{self.path}, line {line}", record


@dataclass(frozen=True)
class Form:
    """name: what `task.format=` calls it. said: what it is called in a sentence."""

    name: str
    said: str
    is_it: Callable[[File], bool]
    read: Callable[[File], Records]


def _is_json(file: File) -> bool:
    return file.suffix in (".json", ".jsonl", ".ndjson") or (
        file.suffix not in (".csv", ".tsv") and file.character in ("[", "{")
    )


def _with(*keys: str) -> Callable[[File], bool]:
    """JSON whose first record has one of the keys."""
    return lambda file: _is_json(file) and any(key in file.first for key in keys)


def _of_two(one: str, other: str) -> Callable[[File], bool]:
    return lambda file: _is_json(file) and one in file.first and other in file.first


def _judgments(path: Path) -> Path | None:
    """One of BEIR's qrels/*.tsv: the path itself, or that of test in a folder of BEIR's, or its only one."""
    if path.parent.name == "qrels" and (path.parents[1] / "queries.jsonl").is_file():
        return path
    if not (path / "queries.jsonl").is_file():
        return None
    files = sorted((path / "qrels").glob("*.tsv"))
    return next((file for file in files if file.name == "test.tsv"), files[0] if len(files) == 1 else None)


def _is_fid(file: File) -> bool:
    return _with("ctxs")(file) or (_of_two("question", "answers")(file) and "passages" in file.first)


def _is_ragas(file: File) -> bool:
    judged = _with("ground_truth", "ground_truths", "user_input")(file)
    return judged or _of_two("contexts", "reference")(file)


def _tables(lists: bool = False) -> Callable[[File], Records]:
    return lambda file: table_records(file.path, file.mend, file.encoding, file.bad, lists)


def _is_parquet(file: File) -> bool:
    return file.suffix == ".parquet" or first_bytes(file.path, 4) == b"PAR1"


FORMS = (
    Form(
        "datasets",
        "a folder of `datasets`",
        lambda file: any((file.path / name).is_file() for name in ("state.json", "dataset_dict.json")),
        lambda file: dataset_records(file.path),
    ),
    Form(
        "beir",
        "BEIR's queries and qrels",
        lambda file: _judgments(file.path) is not None,
        lambda file: judged_records(_judgments(file.path) or file.path),
    ),
    Form(
        "source",
        "a file of questions with one of answers beside it",
        lambda file: file.suffix == ".source",
        lambda file: paired_records(file.path, file.encoding),
    ),
    Form(
        "dpr_csv",
        "DPR's table of questions and lists of answers",
        lambda file: file.path.name.lower().removesuffix(".gz").removesuffix(".xz").endswith(".qa.csv"),
        _tables(lists=True),
    ),
    Form("tsv", "a table", lambda file: file.suffix == ".tsv", _tables()),
    Form("csv", "a table", lambda file: file.suffix == ".csv", _tables()),
    Form("parquet", "Parquet", _is_parquet, lambda file: parquet_records(file.path)),
    Form("squad", "SQuAD's JSON", _with("paragraphs"), lambda file: _unfolded(file, _of_article)),
    Form(
        "mrqa",
        "MRQA's JSON",
        lambda file: _with("qas")(file) or list(file.first) == ["header"],
        lambda file: _unfolded(file, _of_context),
    ),
    Form("dpr", "DPR's training JSON", _with("positive_ctxs"), File.json),
    Form("fid", "the JSON of FiD and Atlas", _is_fid, File.json),
    Form("kilt", "KILT's JSON", _of_two("input", "output"), File.json),
    Form("flashrag", "FlashRAG's JSON", _with("golden_answers"), File.json),
    Form("hotpotqa", "HotpotQA's JSON", _with("supporting_facts"), File.json),
    Form("triviaqa", "TriviaQA's JSON", _of_two("Question", "Answer"), File.json),
    Form("ragas", "RAGAS's JSON", _is_ragas, File.json),
    Form("nq_open", "the JSON of NQ-open", _of_two("question", "answer"), File.json),
    Form("json", "JSON", _is_json, File.json),
)
NATIVE = "json"  # ours, of which nothing has to be said


def form_of(file: File, name: str | None = None) -> Form:
    """The form of a file: the first that takes it for its own, or the one of that name. UserError where none does."""
    try:
        file.path.stat()
    except (OSError, ValueError) as error:
        raise unreadable(file.path, error) from error
    if name is not None:
        chosen = next((form for form in FORMS if form.name == name), None)
        if chosen is None:
            names = ", ".join(form.name for form in FORMS)
            raise UserError(f"task.format={name} does not exist: there is {names}; null chooses by looking")
        return chosen
    for form in FORMS:
        if form.is_it(file):
            return form
    raise UserError(f"{file.path} is not in a supported format; supported: {SUPPORTED}")


def _unfolded(
    file: File, read: Callable[[File, Record, str], Iterator[tuple[str, Record | None]]]
) -> Records:
    """The questions inside the records of a file; those that cannot be answered are counted."""
    number = left_out = 0
    for where, record in file.json():
        for location, question in read(file, record, where):
            number += 1
            if question is None:
                left_out += 1
            else:
                yield location, question
    if left_out:
        log.warning("%s: %d of %d questions cannot be answered and are left out", file.path, left_out, number)


def _of_article(file: File, article: Record, where: str) -> Iterator[tuple[str, Record | None]]:
    for paragraph in objects(article.get("paragraphs"), f"{where}: paragraphs"):
        yield from _of_context(file, paragraph, where)


def _of_context(file: File, paragraph: Record, where: str) -> Iterator[tuple[str, Record | None]]:
    """The questions under `qas` of a paragraph, None for one without an answer there."""
    if list(paragraph) == ["header"]:  # of MRQA's files
        return
    for number, one in enumerate(objects(paragraph.get("qas"), f"{where}: qas"), start=1):
        location = f"{where}, question {one.get('id', one.get('qid', number))}"
        if one.get("is_impossible"):
            yield location, None
            continue
        answers = one.get("answers")
        if isinstance(answers, list) and answers and not isinstance(answers[0], str):
            answers = [answer.get("text") for answer in objects(answers, f"{location}: answers")]
            answers = list(dict.fromkeys(answer for answer in answers if isinstance(answer, str)))
        yield location, one | {"answers": answers}


def objects(value: Any, where: str) -> list[Record]:
    """A list of objects; UserError for anything else."""
    if not isinstance(value, list) or not all(isinstance(one, dict) for one in value):
        raise UserError(f"{where} is {kind(value)}, a list of objects is expected")
    return value
