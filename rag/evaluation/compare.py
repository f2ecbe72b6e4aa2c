"""Finished evaluations side by side: the task's metrics of each, and what differs over the same questions.

Everything is computed anew from what was predicted (predictions.jsonl) by the task's own scoring, so that evaluations
of other machines and days are compared by one rule.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from hydra.utils import instantiate
from omegaconf import DictConfig

from rag.errors import UserError
from rag.metrics.bootstrap import Metric
from rag.metrics.paired import Difference, difference, is_right_or_wrong
from rag.tasks.example import Example
from rag.tasks.task import Task


@dataclass(frozen=True)
class Answers:
    """What one evaluation answered. config: evaluate.py's of it; predictions: the lines of predictions.jsonl."""

    name: str
    config: DictConfig
    predictions: list[dict[str, Any]]

    def key(self, position: int) -> tuple[str, str, tuple[str, ...]]:
        """What makes two questions the same: id, text and the answers that count as right."""
        record = self.predictions[position]
        return str(record["id"]), record["question"], tuple(record["answers"])


@dataclass(frozen=True)
class Row:
    """A metric of one evaluation, and its difference from the first evaluation's; None for the first itself."""

    metric: str
    name: str
    value: Metric
    change: Difference | None


@dataclass(frozen=True)
class Changed:
    """A question that one of two evaluations has right and the other wrong."""

    question: str
    answers: tuple[str, ...]
    before: str  # the first's answer
    after: str  # the other's
    right: bool  # whether it is the other that is right


@dataclass(frozen=True)
class Comparison:
    """rows: by metric, then by evaluation. changed: {name of an evaluation: questions that changed sides}, by `by`."""

    questions: int
    rows: list[Row]
    by: str | None
    changed: dict[str, list[Changed]]


def compare(evaluations: Sequence[Answers]) -> Comparison:
    """The second and later evaluations against the first.

    Raises UserError unless there are two or more, of one task, of the same questions with the same answers.
    """
    if len(evaluations) < 2:
        raise UserError("a comparison takes two evaluations or more: python -m rag.compare RUN RUN")
    first = evaluations[0]
    orders = [order_of(first, each) for each in evaluations]
    task: Task = instantiate(first.config.task)
    examples = examples_of(task, first)
    texts = [
        [each.predictions[position]["prediction"] for position in order]
        for each, order in zip(evaluations, orders, strict=True)
    ]
    scores = [task.score(predicted, examples) for predicted in texts]
    rows = [
        Row(
            metric,
            each.name,
            score[metric],
            None if each is first else difference(scores[0][metric], score[metric]),
        )
        for metric in scores[0]
        for each, score in zip(evaluations, scores, strict=True)
    ]
    if not any(row.value.count for row in rows):
        raise UserError(
            f"{first.name}: none of its questions has a public answer, so that nothing can be compared"
        )
    by = next((m for m in scores[0] if all(is_right_or_wrong(score[m]) for score in scores)), None)
    changed = {}
    if by is not None:
        for each, score, predicted in zip(evaluations[1:], scores[1:], texts[1:], strict=True):
            gap = score[by].per_example - scores[0][by].per_example
            changed[each.name] = [
                Changed(
                    examples[n].question, examples[n].answers, texts[0][n], predicted[n], bool(gap[n] > 0)
                )
                for n in np.flatnonzero(np.nan_to_num(gap))
            ]
    return Comparison(len(examples), rows, by, changed)


def order_of(first: Answers, other: Answers) -> list[int]:
    """Where `other` has the questions of `first`, in their order; UserError unless both have the same."""
    if other.config.task._target_ != first.config.task._target_:
        kinds = [each.config.task._target_.rpartition(".")[2] for each in (first, other)]
        raise UserError(
            f"{first.name} is judged as {kinds[0]} and {other.name} as {kinds[1]}: compare evaluations of one task"
        )
    positions: dict[Any, list[int]] = {}
    for position in range(len(other.predictions)):
        positions.setdefault(other.key(position), []).append(position)
    order = [
        same_question.pop(0) if (same_question := positions.get(first.key(position))) else -1
        for position in range(len(first.predictions))
    ]
    same = len(order) - order.count(-1)
    if not same == len(first.predictions) == len(other.predictions):
        raise UserError(
            f"{first.name} answers {len(first.predictions):,} questions and {other.name} "
            f"{len(other.predictions):,}, and {same:,} of them are the same with the same answers: evaluate both with "
            "the same split=, limit= and task.*"
        )
    return order


def examples_of(task: Task, answers: Answers) -> list[Example]:
    """The examples of an evaluation, from its own lines.

    Evaluations of older versions do not say which set of a mixed file a question is of: where the task counts some
    sets alone, its file is read for that. Raises UserError where that is not there any more.
    """
    sets: dict[tuple[str, str], str] = {}
    records = answers.predictions
    if task.report_sets is not None and not any("set" in record for record in records):
        sets = {(one.id, one.question): one.set for one in task.examples(answers.config.split)}
    return [
        Example(
            record["question"],
            tuple(record["answers"]),
            set=record.get("set") or sets.get((str(record["id"]), record["question"]), ""),
            id=str(record["id"]),
        )
        for record in records
    ]
