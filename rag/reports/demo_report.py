"""The demo's report: the paper's comparisons (Tables 1 and 6, figure 3, section 4.5) on the mini-wiki."""

from pathlib import Path
from typing import Any

from rag.files import read_json, write_aside, write_json
from rag.metrics.record import by_k, find, records_of, swap_cells, swap_pair
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

MODELS = {name: NAMES[name] for name in ("closed_book", "bm25", "frozen", "rag_token", "rag_sequence")}
RETRIEVES = ("rag_sequence", "rag_token", "frozen", "bm25")
SWAPPED = ("rag_sequence", "rag_token")  # whose index is exchanged, and whose retriever is trained
RECALL_AT = (1, 5, 20)

# What the demo is expected to reach: (metric, at least or at most, bound).
TARGETS = [
    ("closed-book EM on its own training questions", "≥", 0.95),
    ("closed-book EM on unseen people", "≤", 0.05),
    ("RAG-Token EM", "≥", 0.80),
    ("RAG-Sequence EM", "≥", 0.80),
    ("RAG-Token EM above the frozen retriever's", "≥", 0.15),
    ("RAG-Sequence EM above the frozen retriever's", "≥", 0.15),
    ("recall@1 gained end to end, RAG-Token", "≥", 0.25),
    ("recall@1 gained end to end, RAG-Sequence", "≥", 0.25),
    ("recall@5, RAG-Token", "≥", 0.95),
    ("recall@5, RAG-Sequence", "≥", 0.95),
    ("hot-swap, matched editions, lowest", "≥", 0.60),
    ("hot-swap, mismatched editions, highest", "≤", 0.05),
    ("EM lost from K = 1 to K = 20, RAG-Token", "≤", 0.03),
    ("EM lost from K = 1 to K = 20, RAG-Sequence", "≤", 0.03),
]


def gather(folder: Path, seed: int, seconds: dict[str, float]) -> dict[str, Any]:
    """The contents of report.json, from the evaluations in `folder`."""
    results = {
        name: read_json(folder / "evaluation" / name / "result.json")
        for name in (*MODELS, "closed_book_train")
    }
    metrics = {name: records_of(result) for name, result in results.items()}
    report: dict[str, Any] = {
        "seconds": seconds,
        "seed": seed,
        "commit": git_commit(),
        "versions": versions(),
        "questions": results["rag_sequence"]["questions"],
        "metrics": {name: [record.plain() for record in records] for name, records in metrics.items()},
    }
    report["targets"] = judged(TARGETS, measured(metrics))
    return report


def measured(metrics: Metrics) -> list[float]:
    """The values of TARGETS, in their order."""
    token, sequence, frozen = metrics["rag_token"], metrics["rag_sequence"], metrics["frozen"]
    swaps = {
        (asked == indexed, record.value or 0.0)
        for name in SWAPPED
        for asked, row in swap_cells(metrics[name]).items()
        for indexed, record in row.items()
    }
    # A frozen retriever retrieves what every variant retrieved before it was trained end to end.
    before = value(frozen, "recall", 1)
    return [
        round(each, 4)
        for each in (
            value(metrics["closed_book_train"], "em"),
            value(metrics["closed_book"], "em"),
            value(token, "em"),
            value(sequence, "em"),
            value(token, "em") - value(frozen, "em"),
            value(sequence, "em") - value(frozen, "em"),
            value(token, "recall", 1) - before,
            value(sequence, "recall", 1) - before,
            value(token, "recall", 5),
            value(sequence, "recall", 5),
            min(each for matched, each in swaps if matched),
            max(each for matched, each in swaps if not matched),
            value(token, "em", 1) - value(token, "em", 20),
            value(sequence, "em", 1) - value(sequence, "em", 20),
        )
    ]


def plot(metrics: Metrics, path: Path) -> None:
    """Four panels: exact match of each model, recall before and after, EM against K, hot-swap."""
    figure, axes = plots.new_figure(11, 8.6, 2, 2)
    bars, recall, sweep, swap = axes.flat

    plot_answers(bars, metrics, MODELS, "Questions about unseen people")

    shown = {"before": "frozen"} | {NAMES[name]: name for name in SWAPPED[::-1]}
    recall_of = {
        label: [value(metrics[name], "recall", k) for k in RECALL_AT] for label, name in shown.items()
    }
    colours = [plots.GREY, *(COLOURS[name] for name in SWAPPED[::-1])]
    plots.grouped_bars(recall, [f"recall@{k}" for k in RECALL_AT], recall_of, colours)
    recall.set(ylabel="gold passage found", title="Retrieval before and after end-to-end training")

    plot_against_k(sweep, metrics, RETRIEVES)
    sweep.set_title("More passages at test time (figure 3)")

    plots.swap_grid(swap, swap_cells(metrics["rag_sequence"]))
    swap.set_title("Hot-swap of RAG-Sequence: exact match")
    plots.save(figure, path)


def markdown(report: dict[str, Any], predictions: Path) -> str:
    """report.md."""
    metrics = metrics_of(report)
    swapped = {name: swap_cells(metrics[name]) for name in SWAPPED[::-1]}
    pairs = [(asked, indexed) for asked, row in swapped[SWAPPED[0]].items() for indexed in row]
    ks = list(by_k(metrics["rag_sequence"], "em"))
    em = find(metrics["rag_sequence"], "em")
    asked_about = next((each.n for each in metrics["rag_sequence"] if swap_pair(each)), None)
    lines = ["# The demo's report", ""]
    lines += [
        f"Trained from scratch, answers only in the stages with retrieval; {report['questions']} questions about "
        f"people who are never asked about in training. Seed {report['seed']}, commit {report['commit']}, "
        f"{report['seconds']['total']:,.0f} s in all.",
        "",
        *table(header(RECALL_AT), rows_of(metrics, MODELS, RECALL_AT)),
        "",
        f"Closed-book BART answers {value(metrics['closed_book_train'], 'em'):.1%} of its own training questions and "
        f"{value(metrics['closed_book'], 'em'):.1%} of those about anybody else.",
        "",
        "![exact match, recall, K and hot-swap](report.png)",
        "",
        "The bi-encoder's own training is deliberately short: it finds the person but not which passage of theirs "
        'answers the question. That is the retriever of the row "frozen", and what end-to-end training improves on. '
        "All rows with retrieval start from the same generator and get the same steps and K.",
        "",
        "## Targets",
        "",
        *table_of_targets(report["targets"]),
        "",
        "## Hot-swap",
        "",
        "Exact match on institutions that are never asked about in training; every head differs between the editions. "
        f"n = {asked_about or 0:,}.",
        "",
        *table(
            ["model", *(f"{asked} asked, {indexed} indexed" for asked, indexed in pairs)],
            [
                [NAMES[name], *(number(cells[asked][indexed].value) for asked, indexed in pairs)]
                for name, cells in swapped.items()
            ],
        ),
        "",
        f"## Exact match against K, n = {(em.n if em else None) or 0:,}",
        "",
        *table_against_k(metrics, {name: NAMES[name] for name in RETRIEVES}, ks),
    ]
    lines += answers(predictions, report["questions"], NAMES["rag_sequence"])
    lines += table_of_seconds(report["seconds"])
    return "\n".join(lines) + "\n"


def write_report(folder: Path, seed: int, seconds: dict[str, float]) -> dict[str, Any]:
    """Write report.json, report.md and report.png into `folder` and print the tables."""
    seconds = longest(seconds, folder / "report.json")
    report = gather(folder, seed, seconds)
    plot(metrics_of(report), folder / "report.png")
    with write_aside(folder / "report.md") as aside:
        predictions = folder / "evaluation" / "rag_sequence" / "predictions.jsonl"
        aside.write_text(markdown(report, predictions), encoding="utf-8")
    write_json(folder / "report.json", report)

    show(
        f"{report['questions']} questions about people never asked about in training",
        rows_of(metrics_of(report), MODELS, RECALL_AT),
        report["targets"],
    )
    say(f"{seconds['total']:,.0f} s; report in {folder / 'report.md'}")
    return report
