"""Answering a whole set of questions and judging the answers: a task's measures, recall, figures against K (figure 3).

The questions are encoded and searched for once, with the largest K; smaller K are prefixes of it, and so are the
encoded contexts. For RAG-Sequence the hypotheses and their scores are made once too.

`answer_in_parts` is for sets that take long: every batch is written as it is answered, so that an interrupted
evaluation goes on where it was, also with another batch size or number of processes, which share the batches.
"""

import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64

from rag.evaluation.answering import Answered
from rag.evaluation.as_read import AsRead
from rag.files import write_aside
from rag.index.passage import Passage, whole_id
from rag.index.passages import PassageStore
from rag.metrics.bootstrap import Metric, mean_with_interval
from rag.metrics.retrieval import where_not_retrieved
from rag.tasks.example import Example
from rag.tasks.qa import QuestionAnswering
from rag.tasks.task import Task

# -- in parts, which are kept as they come -------------------------------------------------------


# -- figures -------------------------------------------------------------------------------------


def passage_metrics(
    task: Task,
    store: PassageStore,
    rows: Int64[np.ndarray, "questions docs"],
    examples: Sequence[Example],
    ks: Sequence[int],
    as_read: AsRead | None = None,
) -> dict[str, dict[int, Metric]]:
    """{measure: {K: a right passage is among the K best}} by what the task calls right (`right_passages`).

    "recall" (gold ids) and "answer_recall" (contains an answer) are different things. A measure that no example can
    be judged by is left out. ks: those beyond what was retrieved are left out. as_read: judges the part of
    a passage that a generator reads.
    """
    ks = [k for k in ks if k <= rows.shape[1]]
    depth = max(ks, default=0)
    ranks: list[dict[str, float]] = []
    for example, own in zip(examples, rows[:, :depth].tolist(), strict=True):
        left = task.right_passages(example)
        found: dict[str, float] = dict.fromkeys(left, np.inf)
        for rank, row in enumerate(own):
            if not left:
                break
            if row >= 0:
                passage = store[row]
                if as_read is not None:
                    passage = as_read(example.question, row, passage)
                for name in [name for name, is_right in left.items() if is_right(passage)]:
                    found[name] = rank
                    del left[name]
        ranks.append(found)
    metrics: dict[str, dict[int, Metric]] = {}
    for name in dict.fromkeys(name for found in ranks for name in found):
        first = np.array([found.get(name, np.nan) for found in ranks])
        metrics[name] = {
            k: mean_with_interval(np.where(np.isnan(first), np.nan, (first < k).astype(np.float64)))
            for k in ks
        }
    return metrics


def bm25_metrics(
    task: Task,
    store: PassageStore,
    examples: Sequence[Example],
    ks: Sequence[int],
    as_read: AsRead | None = None,
) -> dict[str, dict[int, Metric]]:
    """What `passage_metrics` says of BM25 over the same passages, for the same questions."""
    ks = [k for k in ks if k <= len(store)]
    from rag.retrievers.lexical import BM25

    _, rows = BM25.build(store).search([example.question for example in examples], max(ks))
    return passage_metrics(task, store, rows, examples, ks, as_read)


def retrieval_figures(
    store: PassageStore,
    rows: Int64[np.ndarray, "questions docs"],
    examples: Sequence[Example],
    ks: Sequence[int],
) -> dict[str, dict[str, float]]:
    """{"recall": {K: …}, "answer_recall": {K: …}} of questions and answers, without intervals."""
    found = passage_metrics(QuestionAnswering(), store, rows, examples, ks)
    return {name: {str(k): metric.value for k, metric in by_k.items()} for name, by_k in found.items()}


def bm25_figures(
    store: PassageStore, examples: Sequence[Example], ks: Sequence[int]
) -> dict[str, dict[str, float]]:
    """`retrieval_figures` of BM25 over the same passages, for the same questions."""
    found = bm25_metrics(QuestionAnswering(), store, examples, ks)
    return {name: {str(k): metric.value for k, metric in by_k.items()} for name, by_k in found.items()}


class Figures:
    """The figures of a result.json, each with its interval: {"em": …, "recall": {"1": …}, "intervals": {"em": …},
    "intervals_at": {"recall@1": …}}.

    What could not be judged (no public answer) is null.
    """

    def __init__(self) -> None:
        self.values: dict[str, Any] = {}
        self.intervals: dict[str, list[float | None]] = {}
        self.intervals_at: dict[str, list[float | None]] = {}

    def add(self, name: str, metric: Metric, k: int | str | None = None) -> None:
        """One figure, or one of several under the same name that differ in K (or another key)."""
        interval = [_number(metric.low), _number(metric.high)]
        if k is None:
            self.values[name] = _number(metric.value)
            self.intervals[name] = interval
        else:
            self.values.setdefault(name, {})[str(k)] = _number(metric.value)
            self.intervals_at[f"{name}@{k}"] = interval

    def result(self) -> dict[str, Any]:
        return {**self.values, "intervals": self.intervals, "intervals_at": self.intervals_at}


def _number(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


def judge(
    task: Task,
    examples: Sequence[Example],
    answered: Sequence[Answered],
    n_docs: int,
    sweep: Sequence[int] = (),
    store: PassageStore | None = None,
    recall_at: Sequence[int] = (),
    bm25: bool = False,
    as_read: AsRead | None = None,
) -> Figures:
    """All figures of one evaluation. as_read: see `passage_metrics`.

    The task's measures for `n_docs`; for each K of `sweep` as <measure>_by_k, with the best K; what was retrieved; and
    "em_not_retrieved", exact match where none of the K passages contains an answer (section 4.1).
    """
    figures = Figures()
    scores = {k: task.score([each.texts[k] for each in answered], examples) for k in {n_docs, *sweep}}
    for name, metric in scores[n_docs].items():
        figures.add(name, metric)
    of_answers = [name for name in scores[n_docs] if not name.endswith("_gold")]
    for k in sweep:
        for name in of_answers:
            figures.add(f"{name}_by_k", scores[k][name], k)
    for name in of_answers:
        judged = {k: scores[k][name].value for k in sorted(sweep) if scores[k][name].count}
        if judged:  # a K of which nothing is known is not the best
            figures.values[f"{name}_best_k"] = max(judged, key=judged.__getitem__)
    if store is None:
        return figures
    rows = np.array([each.rows for each in answered])
    found = judge_passages(figures, task, examples, rows, store, recall_at, n_docs, bm25, as_read)
    if "em" in scores[n_docs] and "answer_recall" in found:
        hits = found["answer_recall"][n_docs].per_example
        alone = mean_with_interval(where_not_retrieved(scores[n_docs]["em"].per_example, hits))
        if alone.count:
            figures.add("em_not_retrieved", alone)
    return figures


def judge_passages(
    figures: Figures,
    task: Task,
    examples: Sequence[Example],
    rows: Int64[np.ndarray, "questions docs"],
    store: PassageStore,
    recall_at: Sequence[int],
    n_docs: int,
    bm25: bool = False,
    as_read: AsRead | None = None,
) -> dict[str, dict[int, Metric]]:
    """Add what was retrieved, at each K of `recall_at`, and what BM25 retrieves; returned with `n_docs` as a K too."""
    found = passage_metrics(task, store, rows, examples, sorted({*recall_at, n_docs}), as_read)
    for name, by_k in found.items():
        for k in by_k if not recall_at else [k for k in recall_at if k in by_k]:
            figures.add(name, by_k[k], k)
    if bm25:
        beside = bm25_metrics(task, store, examples, recall_at, as_read)
        figures.values["bm25"] = {
            name: {str(k): _number(metric.value) for k, metric in by_k.items()}
            for name, by_k in beside.items()
        }
        for name, by_k in beside.items():
            for k, metric in by_k.items():
                figures.intervals_at[f"bm25.{name}@{k}"] = [_number(metric.low), _number(metric.high)]
    return found


# -- predictions ---------------------------------------------------------------------------------


def write_predictions(
    path: Path,
    task: Task,
    examples: Sequence[Example],
    answered: Sequence[Answered],
    n_docs: int,
    store: PassageStore | None,
    passages: int = 5,
    as_read: AsRead | None = None,
) -> None:
    """predictions.jsonl: question, answers, prediction, log p(y|x) and the passages with prior and posterior.

    The `passages` best ones by p(z|x), and the one with the largest posterior if it is not among them.
    as_read: of a passage that is too long for the generator, the part that it reads.
    """
    with write_aside(path) as aside, aside.open("w", encoding="utf-8") as file:
        for example, each in zip(examples, answered, strict=True):
            record: dict[str, Any] = {
                "id": example.id,
                "question": example.question,
                "answers": list(example.answers),
                "prediction": each.texts[n_docs],
                # JSON has no −∞, which is what an answer without any passage is worth
                "logprob": round(each.logprob, 4) if math.isfinite(each.logprob) else None,
            }
            if example.set:  # the task may count some sets alone
                record["set"] = example.set
            if store is not None:
                record["passages"] = list(_passages(task, store, example, each, n_docs, passages, as_read))
            file.write(json.dumps(record, ensure_ascii=False) + "\n")


def _passages(
    task: Task,
    store: PassageStore,
    example: Example,
    each: Answered,
    n_docs: int,
    count: int,
    as_read: AsRead | None,
) -> Iterator[dict[str, Any]]:
    read = [place for place in range(n_docs) if each.rows[place] >= 0]
    shown = read[:count]
    shown += [place for place in read[count:] if each.posterior[place] == max(each.posterior)][:1]
    for place in shown:
        passage = store[each.rows[place]]
        if as_read is not None:
            passage = as_read(example.question, each.rows[place], passage)
        yield {
            "id": passage.id,
            "title": passage.title,
            "text": passage.text,
            "prior": round(each.prior[place], 4),
            "posterior": round(each.posterior[place], 4),
            "gold": {passage.id, whole_id(passage.id)}.isdisjoint(example.positive_ids) is False,
        }


def texts_of(store: PassageStore, rows: Int64[np.ndarray, "questions docs"]) -> Iterator[list[str]]:
    """The texts of each question's passages, without titles, as DPR's match reads them; nothing for a row of −1."""
    return ([store[row].text if row >= 0 else "" for row in own] for own in rows.tolist())


def passage_text(store: PassageStore, row: int) -> str:
    """ "title text" of a passage; nothing for a row of −1 (not found)."""
    if row < 0:
        return ""
    passage: Passage = store[row]
    return f"{passage.title} {passage.text}"
