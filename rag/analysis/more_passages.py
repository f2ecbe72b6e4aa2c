"""Figure 3: exact match and recall against the number of passages retrieved at test time, K."""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from rag.analysis.opened import Evaluation
from rag.errors import UserError
from rag.metrics.record import BM25, Record, by_k
from rag.reports import plots
from rag.reports.page import Analysis
from rag.reports.result_table import RETRIEVAL, label_of, sweeps_of
from rag.safe_text import markdown


def more_passages(runs: Sequence[Path]) -> Analysis:
    """Metrics and recall of one or more runs against K (figure 3)."""
    evaluations = [Evaluation.open(run) for run in runs]
    swept = [sweeps_of(evaluation.records) for evaluation in evaluations]
    for evaluation, metrics in zip(evaluations, swept, strict=True):
        if not metrics:
            raise UserError(
                f"{evaluation.folder} was evaluated for one K only: "
                f"python evaluate.py checkpoint={evaluation.config.checkpoint} k_sweep=[1,5,10,20] does it for several"
            )
    names = names_of(evaluations)
    panels: dict[str, dict[str, dict[int, Record]]] = {
        metric: {name: metrics[metric] for name, metrics in zip(names, swept, strict=True)}
        for metric in swept[0]
        if all(metric in metrics for metrics in swept)
    }
    # One kind of hit a panel: gold passages where they are known, else answers, else gold articles.
    kind = next((each for each in RETRIEVAL if all(by_k(e.records, each) for e in evaluations)), None)
    if kind is not None:
        panels[kind] = {name: by_k(each.records, kind) for name, each in zip(names, evaluations, strict=True)}
        bm25 = next((lines for each in evaluations if (lines := by_k(each.records, kind, BM25))), None)
        panels[kind] |= {} if bm25 is None else {BM25: bm25}

    figure, axes = plots.new_figure(5 * len(panels), 4.2, columns=len(panels))
    for axis, (metric, models) in zip(axes[0], panels.items(), strict=True):
        lines = {name: {k: each.value for k, each in of_one.items()} for name, of_one in models.items()}
        label = f"share with {RETRIEVAL[metric]}" if metric in RETRIEVAL else label_of(metric)
        plots.against_k(axis, lines, label)
        axis.set_title("What is retrieved" if metric in RETRIEVAL else label_of(metric))

    ks = sorted({k for models in panels.values() for of_one in models.values() for k in of_one})
    frame = pd.DataFrame(
        [
            {"metric": label_of(metric), "model": plots.label_of(name), "n": next(iter(of_one.values())).n}
            | {f"K = {k}": of_one[k].value if k in of_one else None for k in ks}
            for metric, models in panels.items()
            for name, of_one in models.items()
        ]
    )
    trained = sorted({int(each.result["n_docs"]) for each in evaluations})
    text = (
        f"{evaluations[0].result['questions']:,} questions ({markdown(evaluations[0].config.split)}), n of them "
        f"counting for a metric; every K beyond the {' or '.join(map(str, trained))} of this evaluation's own is the "
        "same model reading more. In the paper RAG-Sequence gains all the way to K = 50, RAG-Token is best at K = 10, "
        "and recall only rises."
    )
    return Analysis("More passages at test time", text, frame, figure)


def names_of(evaluations: Sequence[Evaluation]) -> list[str]:
    """The runs' names, or their whole folders where two are called the same."""
    names = [evaluation.name for evaluation in evaluations]
    return [
        name if names.count(name) == 1 else str(each.folder)
        for name, each in zip(names, evaluations, strict=True)
    ]
