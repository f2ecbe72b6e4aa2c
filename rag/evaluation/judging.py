"""Judging the answers to a whole set of questions: the task's metrics, recall, metrics against K (figure 3).

`judge` gives records (rag/metrics/record.py); `write_predictions` writes what was answered, beside them.
"""

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
from rag.index.splitting import sentences
from rag.metrics.bootstrap import Metric, mean_with_interval
from rag.metrics.record import BM25, NOT_RETRIEVED, Record
from rag.metrics.retrieval import where_not_retrieved
from rag.metrics.support import PassageWords, Support, support
from rag.safe_text import json_text
from rag.tasks.example import Example
from rag.tasks.task import Task

# -- metrics -------------------------------------------------------------------------------------


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
    for example, retrieved in zip(examples, rows[:, :depth].tolist(), strict=True):
        left = task.right_passages(example)
        rank_of: dict[str, float] = dict.fromkeys(left, np.inf)
        for rank, row in enumerate(retrieved):
            if not left:
                break
            if row >= 0:
                passage = store[row]
                if as_read is not None:
                    passage = as_read(example.question, row, passage)
                for name in [name for name, is_right in left.items() if is_right(passage)]:
                    rank_of[name] = rank
                    del left[name]
        ranks.append(rank_of)
    metrics: dict[str, dict[int, Metric]] = {}
    for name in dict.fromkeys(name for rank_of in ranks for name in rank_of):
        first = np.array([rank_of.get(name, np.nan) for rank_of in ranks])
        metrics[name] = {
            k: mean_with_interval(np.where(np.isnan(first), np.nan, (first < k).astype(np.float64)))
            for k in ks
        }
    return metrics


def describe_gold_not_held(store: PassageStore, examples: Sequence[Example], source: str) -> str | None:
    """One sentence about questions whose gold passages are not among those that are searched; None where all are."""
    with_gold = [each for each in examples if each.positive_ids]
    held = store.rows_of(id for each in with_gold for id in each.positive_ids)
    without = [each for each in with_gold if held.keys().isdisjoint(each.positive_ids)]
    if not without:
        return None
    return (
        f"{source}: the gold passages of {len(without):,} of {len(with_gold):,} questions (such as "
        f"{without[0].positive_ids[0]} of {without[0].question[:60]!r}) are not among the {len(store):,} passages that "
        "are searched, and count as not found: recall means something only where both are of one corpus"
    )


def bm25_metrics(
    task: Task,
    store: PassageStore,
    examples: Sequence[Example],
    ks: Sequence[int],
    as_read: AsRead | None = None,
) -> dict[str, dict[int, Metric]]:
    """What `passage_metrics` says of BM25 over the same passages, for the same questions."""
    ks = [k for k in ks if k <= len(store)]
    if not ks:
        return {}
    from rag.retrievers import lexical

    _, rows = lexical.BM25.build(store).search([example.question for example in examples], max(ks))
    return passage_metrics(task, store, rows, examples, ks, as_read)


def judge(
    task: Task,
    examples: Sequence[Example],
    answered: Sequence[Answered],
    n_docs: int,
    split: str,
    sweep: Sequence[int] = (),
    store: PassageStore | None = None,
    recall_at: Sequence[int] = (),
    bm25: bool = False,
    as_read: AsRead | None = None,
) -> list[Record]:
    """All metrics of one evaluation. store: None of a closed book. as_read: see `passage_metrics`.

    The task's metrics for `n_docs`; exact match where none of the K passages contains an answer (section 4.1); the
    metrics of answers for each other K of `sweep`; and what was retrieved.
    """
    scores = {k: task.score([each.texts[k] for each in answered], examples) for k in {n_docs, *sweep}}
    k_of_run = None if store is None else n_docs
    records = [Record.of(name, metric, k_of_run, split) for name, metric in scores[n_docs].items()]
    if store is None:
        return records
    rows = np.array([each.rows for each in answered])
    retrieval = passage_metrics(task, store, rows, examples, sorted({*recall_at, n_docs}), as_read)
    if "em" in scores[n_docs] and "answer_recall" in retrieval:
        hits = retrieval["answer_recall"][n_docs].per_example
        alone = mean_with_interval(where_not_retrieved(scores[n_docs]["em"].per_example, hits))
        if alone.count:
            records.append(Record.of("em", alone, n_docs, split, NOT_RETRIEVED))
    if "distinct_trigrams" in scores[n_docs]:
        records += _supported(examples, answered, n_docs, store, split, as_read)
    of_answers = [name for name in scores[n_docs] if not name.endswith("_gold")]
    records += [
        Record.of(name, scores[k][name], k, split) for name in of_answers for k in sorted({*sweep} - {n_docs})
    ]
    shown = list(recall_at) or [n_docs]
    return records + _retrieved(task, examples, retrieval, store, shown, split, bm25, as_read)


def _supported(
    examples: Sequence[Example],
    answered: Sequence[Answered],
    n_docs: int,
    store: PassageStore,
    split: str,
    as_read: AsRead | None,
) -> list[Record]:
    """How much of the texts, and of the reference texts, the K passages support (rag/metrics/support.py)."""
    parts: dict[str, list[Support]] = {"": [], "_gold": []}
    for example, each in zip(examples, answered, strict=True):
        passages = [(row, store[row]) for row in each.rows[:n_docs] if row >= 0]
        if as_read is not None:
            passages = [(row, as_read(example.question, row, passage)) for row, passage in passages]
        words = PassageWords(part for _, passage in passages for part in (passage.title, passage.text))
        for name, text in (
            ("", each.texts[n_docs]),
            ("_gold", example.answers[0] if example.answers else ""),
        ):
            parts[name].append(Support.all_of(map(words.of_sentence, sentences(text))))
    measured = {name: support(own) for name, own in parts.items()}
    return [
        Record.of(f"{what}_supported{name}", metric, n_docs, split)
        for name, both in measured.items()
        for what, metric in zip(("trigrams", "names"), both, strict=True)
        if metric.count
    ]


def judge_passages(
    task: Task,
    examples: Sequence[Example],
    rows: Int64[np.ndarray, "questions docs"],
    split: str,
    store: PassageStore,
    recall_at: Sequence[int],
    bm25: bool = False,
) -> list[Record]:
    """What was retrieved, at each K of `recall_at`, and what BM25 retrieves."""
    retrieval = passage_metrics(task, store, rows, examples, recall_at)
    return _retrieved(task, examples, retrieval, store, recall_at, split, bm25, None)


def _retrieved(
    task: Task,
    examples: Sequence[Example],
    retrieval: dict[str, dict[int, Metric]],
    store: PassageStore,
    ks: Sequence[int],
    split: str,
    bm25: bool,
    as_read: AsRead | None,
) -> list[Record]:
    beside = bm25_metrics(task, store, examples, ks, as_read) if bm25 else {}
    return [
        Record.of(name, measured[k], k, split, condition)
        for condition, metrics in ((None, retrieval), (BM25, beside))
        for name, measured in metrics.items()
        for k in ks
        if k in measured
    ]


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
            file.write(json_text(record) + "\n")


def _passages(
    task: Task,
    store: PassageStore,
    example: Example,
    each: Answered,
    n_docs: int,
    count: int,
    as_read: AsRead | None,
) -> Iterator[dict[str, Any]]:
    read = [rank for rank in range(n_docs) if each.rows[rank] >= 0]
    shown = read[:count]
    shown += [rank for rank in read[count:] if each.posterior[rank] == max(each.posterior)][:1]
    for rank in shown:
        passage = store[each.rows[rank]]
        if as_read is not None:
            passage = as_read(example.question, each.rows[rank], passage)
        yield {
            "id": passage.id,
            "title": passage.title,
            "text": passage.text,
            "prior": round(each.prior[rank], 4),
            "posterior": round(each.posterior[rank], 4),
            "gold": {passage.id, whole_id(passage.id)}.isdisjoint(example.positive_ids) is False,
        }


def texts_of(store: PassageStore, rows: Int64[np.ndarray, "questions docs"]) -> Iterator[list[str]]:
    """The texts of each question's passages, without titles, as DPR's match reads them; nothing for a row of −1."""
    return ([store[row].text if row >= 0 else "" for row in of_question] for of_question in rows.tolist())


def passage_text(store: PassageStore, row: int) -> str:
    """ "title text" of a passage; nothing for a row of −1 (not found)."""
    if row < 0:
        return ""
    passage: Passage = store[row]
    return f"{passage.title} {passage.text}"
