"""Section 4.5: what end-to-end training does to retrieval, from answers alone.

The index is the same before and after; only the question encoder moves. For each question the rank of its gold passage
(or, where none is known, of the first passage with an answer) is found with both encoders.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from hydra.utils import instantiate
from jaxtyping import Int64

from rag.analysis.opened import open_examples, open_model, settings
from rag.encoders.opening import open_question_encoder
from rag.errors import UserError
from rag.evaluation.answering import find_passages
from rag.evaluation.judging import texts_of
from rag.index.passages import PassageStore
from rag.metrics.retrieval import answer_recall_at, recall_at
from rag.reports import plots
from rag.reports.page import Analysis, shortened
from rag.retrievers.dense import DenseRetriever
from rag.safe_text import markdown
from rag.tasks.example import Example

SHOWN = 90  # characters of a passage in the examples


def retrieval_change(run: Path, before: str = "", depth: int = 20, examples: int = 5) -> Analysis:
    """What end-to-end training changed: the gold passage's rank before and after, with examples (section 4.5).

    before: another question encoder's folder; without one, the one that the run started from. depth: passages looked
    at. examples: how many of the questions that gained most and lost most are shown.
    """
    config = settings(run)
    trained = open_model(config)[0].retriever
    if not isinstance(trained, DenseRetriever):
        raise UserError(f"{run} has no question encoder to compare: give a run with dense retrieval")
    start = before or str(config.question_encoder)
    settings_of_start = None if before else config.get("encoder")
    encoders = [
        open_question_encoder(start, None if settings_of_start is None else instantiate(settings_of_start)),
        trained.question_encoder,
    ]
    started, ended = (DenseRetriever(encoder, trained.index, trainable=False) for encoder in encoders)
    questions = open_examples(config)
    depth = min(depth, len(trained.index))
    store = trained.index.passages
    asked = [example.question for example in questions]
    rows = [
        find_passages(each, asked, depth, config.batch_size, f"retrieving, {when}")
        for each, when in ((started, "before training"), (ended, "after training"))
    ]
    by_id = any(example.positive_ids for example in questions)
    old, new = (ranks(store, of_one, questions, by_id) for of_one in rows)
    judged = ~np.isnan(old)
    if not judged.any():
        raise UserError(f"none of the questions of {config.split} has answers or gold passages to judge by")
    old, new = old[judged], new[judged]
    frame = _recalls(old, new, depth)
    moves = [
        _moved(store, questions, rows, judged, old, new, order)[:examples]
        for order in (np.argsort(new - old, kind="stable"), np.argsort(old - new, kind="stable"))
    ]
    what = "gold passage" if by_id else "first passage with an answer"
    text = (
        f"Rank of the {what} among the best {depth} of {len(store):,}, {len(old):,} questions "
        f"({markdown(config.split)}): nearer the top for {int((new < old).sum()):,}, farther for "
        f"{int((new > old).sum()):,}, unchanged for {int((new == old).sum()):,}. The index was not touched: "
        "only the question encoder moved."
    )
    shown = pd.DataFrame([*moves[0], *moves[1]])
    return Analysis(
        "Retrieval before and after end-to-end training", text, frame, _draw(old, new, depth), shown
    )


def ranks(
    store: PassageStore, rows: Int64[np.ndarray, "questions depth"], examples: Sequence[Example], by_id: bool
) -> np.ndarray:
    """(N,) rank from 1 of the first hit, depth + 1 where there is none; NaN for a question that cannot be judged."""
    every = range(1, rows.shape[1] + 1)
    if by_id:
        ids = np.array(store.ids(rows.reshape(-1)), dtype=object).reshape(rows.shape)
        hits = recall_at(ids, [example.positive_ids for example in examples], every)
    else:
        hits = answer_recall_at(texts_of(store, rows), [example.answers for example in examples], every)
    return rows.shape[1] + 1 - np.sum([hits[k] for k in every], axis=0)


def _recalls(old: np.ndarray, new: np.ndarray, depth: int) -> pd.DataFrame:
    shown = [k for k in (1, 2, 5, 10, 20, 50, 100) if k <= depth]
    rows = [
        {
            "recall@": k,
            "before": (old <= k).mean(),
            "after": (new <= k).mean(),
            "gained": ((new <= k) * 1.0).mean() - ((old <= k) * 1.0).mean(),
        }
        for k in shown
    ]
    return pd.DataFrame(rows)


def _moved(store, questions, rows, judged, old, new, order) -> list[dict[str, str]]:
    """Those that moved in the direction of `order`, furthest first, with the passage that stood first."""
    numbers = np.flatnonzero(judged)
    direction = np.sign(new - old)[order[0]] if len(order) else 0
    moved = []
    for position in order:
        if np.sign(new[position] - old[position]) != direction or direction == 0:
            break
        question = questions[numbers[position]]
        first = [store[int(of_one[numbers[position], 0])] for of_one in rows]
        moved.append(
            {
                "question": question.question,
                "answer": question.answers[0],
                "rank": " → ".join(_rank(r, rows[0].shape[1]) for r in (old[position], new[position])),
                "first before": shortened(f"{first[0].title}: {first[0].text}", SHOWN),
                "first after": shortened(f"{first[1].title}: {first[1].text}", SHOWN),
            }
        )
    return moved


def _rank(rank: float, depth: int) -> str:
    return str(int(rank)) if rank <= depth else f"> {depth}"


def _draw(old: np.ndarray, new: np.ndarray, depth: int):
    """Recall before and after, and how many questions went from which rank to which."""
    figure, axes = plots.new_figure(11, 4.2, columns=2)
    left, right = axes[0]
    ks = [k for k in (1, 5, 20, 100) if k <= depth]
    both = {"before": [(old <= k).mean() for k in ks], "after": [(new <= k).mean() for k in ks]}
    plots.grouped_bars(left, [f"recall@{k}" for k in ks], both, [plots.GREY, plots.PALETTE[0]])
    left.set(ylabel="share of questions", title="Found among the first K")

    edges = [0, 1, 5, depth, depth + 1] if depth > 5 else [0, 1, depth, depth + 1]
    names = [
        f"{low + 1}–{high}" if high > low + 1 else str(high)
        for low, high in zip(edges, edges[1:-1], strict=False)
    ]
    names.append(f"beyond {depth}")
    bins = [np.digitize(each, np.array(edges[1:-1]), right=True) for each in (old, new)]
    counts = np.zeros((len(names), len(names)))
    np.add.at(counts, (bins[0], bins[1]), 1)
    plots.grid(right, counts, names, names, "{:.0f}", largest=counts.max(), fontsize=12)
    right.set(xlabel="rank after", ylabel="rank before", title="Number of questions by rank")
    return figure
