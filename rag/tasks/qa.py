"""Open-domain question answering (section 3.1) on files of one's own, and the reader all such tasks share.

A record has `question` (or `Question`, `query`, KILT's and others' `input`, RAGAS's `user_input`), `answers` (a list of
strings or one string; where there are none, `answer` as in NQ-open, `golden_answers` as in FlashRAG, `output` as in
KILT, `target`, RAGAS's `reference` or `ground_truth`), and where known `positive_ids`, `hard_negative_ids`, `set`, and
`id`. DPR's retriever training format has `positive_ctxs` and `hard_negative_ctxs` instead, whose passages have a
`passage_id` or `psg_id`, or neither. Passages that come with a question are contexts.py's. records.py says which files
are read.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from rag.errors import UserError, listed
from rag.index.fields import written
from rag.index.passage import Passage
from rag.json_files import not_too_deep
from rag.metrics.bootstrap import Metric, mean_with_interval
from rag.metrics.qa import exact_match, token_f1
from rag.metrics.retrieval import answer_matcher
from rag.tasks.contexts import CONTEXTS, contexts_of, read_contexts
from rag.tasks.example import Example
from rag.tasks.lines import BadRows
from rag.tasks.records import Record, field, not_empty, read_records, said_form, text_field, texts
from rag.tasks.task import Task
from rag.text_files import EncodingError
from rag.words import answer_tokens

log = logging.getLogger(__name__)

QUESTION = ("question", "Question", "query", "input", "user_input")
OTHER_NAMES = "query, input, user_input; answer, golden_answers, output, target, reference"
IDS = ("id", "_id", "qid", "query_id", "question_id")
ANSWERS = ("answers", "answer", "golden_answers", "Answers", "Answer", "output", "target")
_UNANSWERABLE = {"text": [], "answer_start": []}  # SQuAD 2.0 on the hub
_TRUTHS = ("ground_truths", "ground_truth")  # RAGAS's, beside which `answer` is a model's
_BESIDE_REFERENCE = (
    *CONTEXTS,
    "user_input",
    "response",
)  # where `reference` is the right answer, not a source


def read_examples(path: Path | str, answers: str = "answers", limit: int | None = None) -> list[Example]:
    """Read the questions of one file, in the file's order.

    `answers` names the key that holds the answers (a file with dated answers has several); "answers" stands for
    any of the usual names. `limit` keeps the first so many. Raises UserError, with file and line, for a file that is
    missing, empty, not UTF-8 or malformed, a key that is missing, an empty question, and answers that are not
    a list of strings.
    """
    with not_too_deep(path):
        return not_empty(path, (each.without_contexts() for each in _examples(path, answers)), limit)


def _examples(
    path: Path | str,
    answers: str,
    setting: str = "",
    form: str | None = None,
    encoding: str | None = None,
    skip: bool = False,
) -> Iterator[Example]:
    """skip: leave out rows that are wrong, and count them; the others as in `read_records` and `example_of`."""
    bad = BadRows(path, skip, "task.on_bad_row=skip")
    number = unanswerable = 0
    try:
        for number, (where, record) in enumerate(read_records(path, form, encoding, bad), start=1):
            if record.get("answers") == _UNANSWERABLE:
                unanswerable += 1
                continue
            try:
                example = example_of(record, where, str(number), answers, setting)
                if skip and example.contexts is not None and isinstance(example.contexts[1], list | dict):
                    read_contexts(*example.contexts)  # a passage that is wrong is a row that is
            except UserError as error:
                bad(error)
                continue
            bad.right += 1
            if skip or not bad.count:
                yield example
    except EncodingError as error:
        raise UserError(error.told("task.encoding" if setting else None)) from error
    if unanswerable:
        log.warning("%s: %d of %d questions cannot be answered and are left out", path, unanswerable, number)
    bad.report()


def example_of(
    record: Record, where: str, default_id: str, answers: str = "answers", setting: str = ""
) -> Example:
    """The example that a record of a question file holds; a UserError beginning with `where` if wrong.

    setting: what names another key for the answers on the command line, where something does.
    """
    asked = next((key for key in QUESTION if key in record), "")
    if not asked:
        field(record, QUESTION[0], where, f": a question file has question and answers, or {OTHER_NAMES}")
    question = text_field(record, asked, where, QUESTION[0])
    key = answers
    if answers == ANSWERS[0]:
        key = next((one for one in _names_of_answers(record) if one in record), answers)
    named = next((one for one in record if one.lower().startswith("answer")), "")
    if named and setting:
        hint = f": name the key of the answers, as in {setting}={named}"
    else:
        hint = f": rename the key that holds the answers to {answers!r}"
    if key not in record and record.get("positive_ids"):  # BEIR's: what is asked for is a passage
        value: Any = ()
    else:
        value = texts(_answers(field(record, key, where, hint)), f"{where}: {key}")
    return Example(
        question=question,
        answers=value,
        positive_ids=_ids(record, "positive_ids", "positive_ctxs", where),
        hard_negative_ids=_ids(record, "hard_negative_ids", "hard_negative_ctxs", where),
        set=str(record.get("set") or ""),
        id=str(next((record[key] for key in IDS if record.get(key) is not None), default_id)),
        contexts=contexts_of(record, where),
    )


def _names_of_answers(record: Record) -> tuple[str, ...]:
    """Where the right answers of a record may stand, the likeliest first."""
    reference = ("reference",) if any(key in record for key in _BESIDE_REFERENCE) else ()
    return (ANSWERS[0], *_TRUTHS, *reference, *ANSWERS[1:])


def _answers(value: Any) -> Any:
    """The strings of KILT's [{"answer": …}], SQuAD's [{"text": …}] and, on the hub, {"text": […]}, and TriviaQA's
    {"value", "aliases"}."""
    if isinstance(value, dict):
        lowered = {key.lower(): one for key, one in value.items()}
        if isinstance(lowered.get("value"), str) and isinstance(lowered.get("aliases", []), list):
            return list(dict.fromkeys([lowered["value"], *lowered.get("aliases", [])]))
    if isinstance(value, dict) and isinstance(value.get("text"), list):
        return list(dict.fromkeys(one for one in value["text"] if isinstance(one, str)))
    if isinstance(value, list) and value and all(isinstance(one, dict) for one in value):
        for name in ("answer", "text"):
            if given := [one[name] for one in value if isinstance(one.get(name), str)]:
                return list(dict.fromkeys(given))
    return value


def _ids(record: Record, key: str, contexts: str, where: str) -> tuple[str, ...]:
    """The passage ids under `key`, or those of DPR's passages under `contexts`; () if there are neither."""
    if key in record or contexts not in record:
        ids = [] if record.get(key) is None else record[key]
    else:
        passages = record[contexts]
        if not isinstance(passages, list) or not all(isinstance(passage, dict) for passage in passages):
            raise UserError(f"{where}: {contexts} is not a list of passages")
        named = [passage.get("passage_id", passage.get("psg_id")) for passage in passages]
        ids = [one for one in named if one is not None]  # DPR's files leave them out here and there
        key = contexts
    if not isinstance(ids, list) or not all(
        type(one) in (int, str) or isinstance(one, float) and one.is_integer() for one in ids
    ):
        raise UserError(f"{where}: {key} is not a list of passage ids (integers or strings)")
    return tuple(written(one) for one in ids)  # 7.0 is 7, as of a passage


@cache
def _say_once(sentence: str) -> None:
    """In a process; what reads the questions beside the task would say it again."""
    print(sentence)


class QuestionAnswering(Task):
    """Questions with short answers in files of one's own, judged by exact match and token F1 (section 3.1).

    Args:
        train, dev, test: files in any format of this module; a split may be left out.
        passages: the corpus that the questions are asked of, in any form of `read_passages`. The task itself never
            reads it; it stands here so that all files of one's own are settings of one place (corpus/local.yaml).
        answers: the key that holds the answers.
        train_sets: train on the examples of these sets alone (the key `set` of the files); all by default.
        report_sets: count only the examples of these sets in `score`; all by default.
        limit: read only the first so many examples of every split.
        format: the form of the files, a name of forms.py; None chooses it by looking at each.
        encoding: of the files; None is UTF-8.
        on_bad_row: "skip" leaves out what is wrong and counts it, "stop" reports the first row that is.

    `regular`: the answers are regular expressions. `answer_setting`: what sets `answers` on the command line. `tokens`:
    what an answer is looked for by in a passage; the paper's tasks take DPR's.
    """

    regular: bool = False
    answer_setting = "task.answers"
    tokens = staticmethod(answer_tokens)
    measures = ("em", "f1")

    def __init__(
        self,
        train: str | None = None,
        dev: str | None = None,
        test: str | None = None,
        answers: str = "answers",
        train_sets: Sequence[str] | None = None,
        report_sets: Sequence[str] | None = None,
        limit: int | None = None,
        passages: str | None = None,
        format: str | None = None,
        encoding: str | None = None,
        on_bad_row: str = "stop",
    ):
        super().__init__(train, dev, test, limit)
        if on_bad_row not in ("stop", "skip"):
            raise UserError(f"task.on_bad_row={on_bad_row} does not exist: there is stop and skip")
        self.format = format
        self.encoding = encoding
        self.on_bad_row = on_bad_row
        self.passages = passages
        self.answers = answers
        self.train_sets = train_sets
        self.report_sets = report_sets

    def read(self, source: str) -> Iterator[Example]:
        skip = self.on_bad_row == "skip"
        if form := said_form(source, self.format, self.encoding):
            _say_once(f"{source}: read as {form}")
        return _examples(source, self.answers, self.answer_setting, self.format, self.encoding, skip)

    def reading(self) -> list[Any]:
        return [*super().reading(), self.answers, self.format, self.encoding, self.on_bad_row]

    def examples(self, split: str) -> list[Example]:
        """The examples of "train", "dev" or "test", read anew; UserError if the split has no source."""
        examples = super().examples(split)
        if split != "train" or self.train_sets is None:
            return examples
        chosen = [example for example in examples if example.set in self.train_sets]
        if not chosen:
            sets = listed(sorted({repr(example.set) for example in examples}))
            wanted = ", ".join(self.train_sets)
            raise UserError(f"{self.source(split)}: no question of the sets {wanted}, found {sets}")
        return chosen

    def right_passages(self, example: Example) -> dict[str, Callable[[Passage], bool]]:
        """ "recall" as for every task, and "answer_recall": its text, without the title, contains an answer."""
        if not example.answers:
            return super().right_passages(example)
        contains = answer_matcher(example.answers, self.regular, self.tokens)
        return super().right_passages(example) | {"answer_recall": lambda passage: contains(passage.text)}

    def match(self, predictions: Sequence[str], answers: Sequence[Sequence[str]]) -> np.ndarray:
        """(N,) scores of what counts as right in this task: exact match, unless a subclass says otherwise."""
        return exact_match(predictions, answers)

    def score(self, predictions: Sequence[str], examples: Sequence[Example]) -> dict[str, Metric]:
        """Exact match and token F1 of the examples that count, as {"em": …, "f1": …}.

        Examples outside `report_sets`, or without answers, are NaN in `per_example` and count for nothing.
        """
        counts = [
            bool(example.answers) and (self.report_sets is None or example.set in self.report_sets)
            for example in examples
        ]
        answers = [example.answers for example in examples]
        return {
            "em": mean_with_interval(np.where(counts, self.match(predictions, answers), np.nan)),
            "f1": mean_with_interval(np.where(counts, token_f1(predictions, answers), np.nan)),
        }
