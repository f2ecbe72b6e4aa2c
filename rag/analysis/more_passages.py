"""Figure 3: exact match and recall against the number of passages retrieved at test time, K."""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from rag.analysis import plots
from rag.analysis.opened import Evaluation
from rag.analysis.page import Analysis
from rag.errors import UserError


def more_passages(runs: Sequence[Path]) -> Analysis:
    """Exact match and recall of one or more runs against K (figure 3)."""
    found = [Evaluation.open(run) for run in runs]
    for evaluation in found:
        if "em_by_k" not in evaluation.result:
            raise UserError(
                f"{evaluation.folder} was evaluated for one K only: "
                f"python evaluate.py checkpoint={evaluation.config.checkpoint} k_sweep=[1,5,10,20] does it for several"
            )
    names = names_of(found)
    em = {name: each.result["em_by_k"] for name, each in zip(names, found, strict=True)}
    # One recall a figure: that of gold passages where they are known, else that of answers.
    kind = "recall" if all("recall" in each.result for each in found) else "answer_recall"
    recall = {name: each.result[kind] for name, each in zip(names, found, strict=True)}
    bm25 = next((each.result["bm25"][kind] for each in found if kind in each.result.get("bm25", {})), None)
    if bm25 is not None:
        recall["BM25"] = bm25

    figure, axes = plots.new_figure(10, 4, columns=2)
    left, right = axes[0]
    plots.against_k(left, em)
    left.set(ylabel="exact match", title="More passages at test time")
    plots.against_k(right, recall)
    what = "gold passage" if kind == "recall" else "passage with an answer"
    right.set(ylabel=f"questions with a {what} among K", title="What is retrieved")

    ks = sorted({int(k) for by_k in [*em.values(), *recall.values()] for k in by_k})
    rows = {("EM", name): by_k for name, by_k in em.items()} | {(kind, n): by_k for n, by_k in recall.items()}
    frame = pd.DataFrame(
        [
            {"figure": figure, "model": plots.label_of(name)} | {f"K = {k}": by_k.get(str(k)) for k in ks}
            for (figure, name), by_k in rows.items()
        ]
    )
    trained = sorted({int(each.config.module.model.n_docs) for each in found})
    text = (
        f"{found[0].result['questions']:,} questions ({found[0].config.split}); every K beyond the "
        f"{' or '.join(map(str, trained))} of this evaluation's own is the same model reading more. In the paper "
        "RAG-Sequence gains all the way to K = 50, RAG-Token is best at K = 10, and recall only rises."
    )
    return Analysis("More passages at test time", text, frame, figure)


def names_of(evaluations: Sequence[Evaluation]) -> list[str]:
    """The runs' names, or their whole folders where two are called the same."""
    names = [evaluation.name for evaluation in evaluations]
    return [
        name if names.count(name) == 1 else str(each.folder)
        for name, each in zip(names, evaluations, strict=True)
    ]
