"""The report of rag.wiki: the paper's comparisons (Tables 1 and 6, figure 3) on real questions over real text."""

from pathlib import Path
from typing import Any

from rag.files import read_json, write_aside, write_json
from rag.metrics.record import BM25, by_k, records_of
from rag.reports import plots
from rag.reports.comparison import (
    Metrics,
    header,
    judged,
    longest,
    metrics_of,
    plot_against_k,
    plot_answers,
    rows_of,
    show,
    table_against_k,
    table_of_seconds,
    table_of_targets,
    value,
)
from rag.reports.page import table
from rag.reports.plots import COLOURS, NAMES
from rag.reports.result_table import number
from rag.reports.run_report import answers
from rag.runs import git_commit, versions
from rag.safe_text import say

RETRIEVES = ("hybrid", "rag_sequence", "rag_token", "frozen", "bm25")
MODELS = {"closed_book": "closed-book reader"} | {name: NAMES[name] for name in (*RETRIEVES[::-1], "gold")}
RECALL_AT = (1, 5, 20, 100)

# What the comparison is expected to show: (metric, at least, bound).
TARGETS = [
    ("EM with the gold passage", "≥", 0.56),
    ("RAG-Sequence EM, hybrid", "≥", 0.46),
    ("the same above closed book", "≥", 0.40),
    ("RAG-Sequence EM above the frozen retriever's", "≥", 0.0),
    ("recall@1 gained end to end, RAG-Sequence", "≥", 0.02),
    ("recall@1 gained end to end, RAG-Token", "≥", 0.02),
]


def measured(metrics: Metrics) -> list[float]:
    """The values of TARGETS, in their order."""
    hybrid, sequence, token, frozen = (
        metrics[name] for name in ("hybrid", "rag_sequence", "rag_token", "frozen")
    )
    # A frozen retriever retrieves what every dense one retrieved before it was trained end to end.
    before = value(frozen, "recall", 1)
    return [
        round(each, 4)
        for each in (
            value(metrics["gold"], "em"),
            value(hybrid, "em"),
            value(hybrid, "em") - value(metrics["closed_book"], "em"),
            value(sequence, "em") - value(frozen, "em"),
            value(sequence, "recall", 1) - before,
            value(token, "recall", 1) - before,
        )
    ]


def gather(folder: Path, seconds: dict[str, float]) -> dict[str, Any]:
    """The contents of report.json, from the evaluations in `folder`."""
    results = {name: read_json(folder / "evaluation" / name / "result.json") for name in (*MODELS, "dpr")}
    metrics = {name: records_of(result) for name, result in results.items()}
    return {
        "seconds": seconds,
        "seed": results["hybrid"]["seed"],
        "commit": git_commit(),
        "versions": versions(),
        "questions": results["hybrid"]["questions"],
        "passages": results["hybrid"]["index"]["passages"],
        "metrics": {name: [record.plain() for record in records] for name, records in metrics.items()},
        "targets": judged(TARGETS, measured(metrics)),
    }


def plot(metrics: Metrics, path: Path) -> None:
    """Three panels: exact match of each model, recall of each retriever, exact match against K."""
    figure, (axes,) = plots.new_figure(16, 4.6, 1, 3)
    plot_answers(axes[0], metrics, MODELS, "Real questions over Wikipedia")
    shown = {"frozen": "dense, frozen", "rag_sequence": "dense, end to end", "hybrid": "hybrid, end to end"}
    recalls = {"BM25": [value(metrics["dpr"], "recall", k, BM25) for k in RECALL_AT]}
    recalls |= {
        label: [value(metrics[name], "recall", k) for k in RECALL_AT] for name, label in shown.items()
    }
    colours = [COLOURS[name] for name in ("bm25", *shown)]
    plots.grouped_bars(axes[1], [f"recall@{k}" for k in RECALL_AT], recalls, colours)
    axes[1].set(ylabel="gold passage found", title="Retrieval")
    plot_against_k(axes[2], metrics, RETRIEVES)
    axes[2].set_title("More passages at test time (figure 3)")
    plots.save(figure, path)


def markdown(report: dict[str, Any], predictions: Path) -> str:
    """report.md."""
    metrics = metrics_of(report)
    ks = list(by_k(metrics["hybrid"], "em"))
    lexical = ", ".join(number(value(metrics["dpr"], "recall", k, BM25)) for k in RECALL_AT)
    lines = [
        "# The paper's comparison on real text",
        "",
        f"{report['questions']:,} dev questions drawn at random, of articles that training never saw, over "
        f"{report['passages']:,} passages. Seed {report['seed']}, commit {report['commit']}, "
        f"{report['seconds']['total']:,.0f} s in all.",
        "",
        *table(header(RECALL_AT), rows_of(metrics, MODELS, RECALL_AT)),
        "",
        "All rows start from the same reader, which was trained with the passage given; all with retrieval get the "
        f"same steps and K. BM25 alone finds {lexical} among its first {', '.join(map(str, RECALL_AT))}; the "
        f'bi-encoder before end-to-end training is that of the row "{NAMES["frozen"]}".',
        "",
        "![exact match, recall and K](report.png)",
        "",
        "## Targets",
        "",
        *table_of_targets(report["targets"]),
        "",
        f"## Exact match against K, n = {report['questions']:,}",
        "",
        *table_against_k(metrics, {name: NAMES[name] for name in RETRIEVES}, ks),
    ]
    lines += answers(predictions, report["questions"], NAMES["hybrid"])
    lines += table_of_seconds(report["seconds"])
    return "\n".join(lines) + "\n"


def write_report(folder: Path, seconds: dict[str, float]) -> dict[str, Any]:
    """Write report.json, report.md and report.png into `folder` and print the tables."""
    report = gather(folder, longest(seconds, folder / "report.json"))
    metrics = metrics_of(report)
    plot(metrics, folder / "report.png")
    with write_aside(folder / "report.md") as aside:
        aside.write_text(
            markdown(report, folder / "evaluation" / "hybrid" / "predictions.jsonl"), encoding="utf-8"
        )
    write_json(folder / "report.json", report)
    show(f"{report['questions']:,} dev questions", rows_of(metrics, MODELS, RECALL_AT), report["targets"])
    say(f"{report['seconds']['total']:,.0f} s; report in {folder / 'report.md'}")
    return report
