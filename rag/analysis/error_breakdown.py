"""Section 4.1: where answers go wrong, in retrieval or in reading.

Each question falls in one of four cells: a passage with an answer was among the K that were read or not, and the answer
given was right or wrong. Right without such a passage is what the generator knows by itself, or says in other words.
"""

from pathlib import Path

import numpy as np
import pandas as pd

from rag.analysis.opened import Evaluation, open_examples, open_model
from rag.errors import UserError
from rag.evaluation.answering import find_passages
from rag.evaluation.judging import passage_text, texts_of
from rag.metrics.qa import exact_match
from rag.metrics.retrieval import answer_recall_at
from rag.reports import plots
from rag.reports.page import Analysis, shortened
from rag.safe_text import markdown

SHOWN = 90  # characters of a passage in the examples


def error_breakdown(run: Path, examples: int = 4) -> Analysis:
    """Answers by whether a passage with the answer was read, and whether they were right (section 4.1).

    examples: how many questions of each kind of mistake are shown.
    """
    evaluation = Evaluation.open(run)
    config = evaluation.config
    retriever = open_model(config)[0].retriever
    if retriever is None:
        raise UserError(f"{run} is closed book and reads no passages: give a run with retrieval")
    questions = open_examples(config)
    asked = [example.question for example in questions]
    if asked != [p["question"] for p in evaluation.predictions]:
        raise UserError(
            f"the questions of {config.split} have changed since {evaluation.folder}: evaluate again"
        )
    rows = find_passages(retriever, asked, int(config.n_docs), config.batch_size, "retrieving")
    store = retriever.index.passages
    answers = [example.answers for example in questions]
    read = answer_recall_at(texts_of(store, rows), answers, [rows.shape[1]])[rows.shape[1]] == 1
    right = exact_match([p["prediction"] for p in evaluation.predictions], answers) == 1

    kinds = {"answer among the passages": read, "answer in no passage": ~read}
    frame = pd.DataFrame(
        [
            {
                "": name,
                "questions": int(selected.sum()),
                "right": int((selected & right).sum()),
                "wrong": int((selected & ~right).sum()),
                "exact match": float(right[selected].mean()) if selected.any() else None,
            }
            for name, selected in (*kinds.items(), ("all", np.ones_like(read)))
        ]
    )
    shown = [
        {
            "mistake of": cause,
            "question": questions[n].question,
            "expected": " or ".join(questions[n].answers),
            "answered": evaluation.predictions[n]["prediction"],
            "first passage": shortened(passage_text(store, int(rows[n, 0])), SHOWN),
        }
        for cause, selected in (("reading", read & ~right), ("retrieval", ~read & ~right))
        for n in np.flatnonzero(selected)[:examples]
    ]
    figure, axes = plots.new_figure(6, 3.2)
    counts = np.array([[(selected & right).sum(), (selected & ~right).sum()] for selected in kinds.values()])
    shares = [f"answered right\n{right.sum():,}", f"answered wrong\n{(~right).sum():,}"]
    plots.grid(axes[0, 0], counts, list(kinds), shares, "{:,.0f}", largest=counts.max(), fontsize=16)
    axes[0, 0].set_title(f"{len(right):,} questions, K = {rows.shape[1]}")
    wrong = int((~right).sum())
    blame = (
        ""
        if not wrong
        else (
            f" Of {wrong:,} wrong answers {int((read & ~right).sum()):,} had a passage with the answer before them: a "
            f"mistake of reading; {int((~read & ~right).sum()):,} are retrieval's."
        )
    )
    text = (
        f"{len(right):,} questions ({markdown(config.split)}), K = {rows.shape[1]} passages, exact match.{blame} "
        "In the paper, 11.8 % of the questions of Natural Questions were answered right although no passage held the "
        "answer."
    )
    return Analysis("Where answers go wrong", text, frame, figure, pd.DataFrame(shown))
