"""Figure 3: exact match and recall against the number of passages retrieved at test time, K."""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from rag.analysis.opened import Evaluation
from rag.errors import UserError
from rag.reports import plots
from rag.reports.page import Analysis
from rag.reports.run_report import sweeps_of


def more_passages(runs: Sequence[Path]) -> Analysis:
    """Metrics and recall of one or more runs against K (figure 3)."""
    found = [Evaluation.open(run) for run in runs]
    for evaluation in found:
        if not sweeps_of(evaluation.result):
            raise UserError(
                f"{evaluation.folder} was evaluated for one K only: "
                f"python evaluate.py checkpoint={evaluation.config.checkpoint} k_sweep=[1,5,10,20] does it for several"
            )
    names = names_of(found)
    shared = [m for m in sweeps_of(found[0].result) if all(m in sweeps_of(each.result) for each in found)]
    panels = {
        metric: {name: sweeps_of(each.result)[metric] for name, each in zip(names, found, strict=True)}
        for metric in shared
    }
    # One recall a figure: that of gold passages where they are known, else that of answers.
    kinds = {"recall": "gold passage", "answer_recall": "passage with an answer"}
    kind = next((kind for kind in kinds if all(kind in each.result for each in found)), None)
    if kind is not None:
        panels[kind] = {name: each.result[kind] for name, each in zip(names, found, strict=True)}
        bm25 = next((e.result["bm25"][kind] for e in found if kind in e.result.get("bm25", {})), None)
        panels[kind] |= {} if bm25 is None else {"BM25": bm25}

    figure, axes = plots.new_figure(5 * len(panels), 4, columns=len(panels))
    for axis, (metric, models) in zip(axes[0], panels.items(), strict=True):
        plots.against_k(axis, models)
        if metric == kind:
            axis.set(ylabel=f"questions with a {kinds[metric]} among K", title="What is retrieved")
        else:
            label = "exact match" if metric == "em" else metric
            axis.set(ylabel=label, title="More passages at test time")

    ks = sorted({int(k) for models in panels.values() for by_k in models.values() for k in by_k})
    frame = pd.DataFrame(
        [
            {"figure": metric.upper() if metric == "em" else metric, "model": plots.label_of(name)}
            | {f"K = {k}": by_k.get(str(k)) for k in ks}
            for metric, models in panels.items()
            for name, by_k in models.items()
        ]
    )
    trained = sorted({int(each.result["n_docs"]) for each in found})
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
