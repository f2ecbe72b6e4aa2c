"""The demo's report: the paper's comparisons (Tables 1 and 6, figure 3, section 4.5) on the mini-wiki."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Column, Table

from rag.files import read_json, write_aside, write_json
from rag.metrics.record import Record, by_k, find, records_of, swap_cells, swap_pair
from rag.reports import plots
from rag.reports.page import table
from rag.reports.plots import COLOURS, NAMES
from rag.reports.result_table import NONE, count, interval, number
from rag.reports.run_report import answers
from rag.runs import git_commit, versions

RETRIEVES = ("rag_sequence", "rag_token", "frozen", "bm25")
SWAPPED = ("rag_sequence", "rag_token")  # whose index is exchanged, and whose retriever is trained
RECALL_AT = (1, 5, 20)
Metrics = dict[str, list[Record]]  # of each model

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
        for name in (*NAMES, "closed_book_train")
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
    report["targets"] = [
        {"metric": metric, "bound": f"{sign} {bound}", "value": value, "reached": reached(value, sign, bound)}
        for (metric, sign, bound), value in zip(TARGETS, measured(metrics), strict=True)
    ]
    return report


def metrics_of(report: dict[str, Any]) -> Metrics:
    """The records of each model's evaluation."""
    return {name: records_of({"metrics": records}) for name, records in report["metrics"].items()}


def reached(value: float, sign: str, bound: float) -> bool:
    return value >= bound - 1e-9 if sign == "≥" else value <= bound + 1e-9


def value(records: Sequence[Record], metric: str, k: int | None = None) -> float:
    """A metric at that K, without one at the evaluation's own; NaN where it could not be judged."""
    record = find(records, metric, k)
    return math.nan if record is None or record.value is None else record.value


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


HEADER = ["model", "exact match", "95 % interval", "n", "F1", "recall@1", "recall@5", "recall@20"]


def rows_of(metrics: Metrics) -> list[list[str]]:
    """The main table: exact match with interval and n, F1, recall@1, 5, 20."""
    rows = []
    for name, label in NAMES.items():
        records = metrics[name]
        em, f1 = find(records, "em"), find(records, "f1")
        retrieved = [find(records, "recall", k) for k in RECALL_AT]
        row = [label, *([number(em.value), interval(em), count(em)] if em else [NONE] * 3)]
        rows.append([*row, *(number(each.value) if each else NONE for each in (f1, *retrieved))])
    return rows


def plot(metrics: Metrics, path: Path) -> None:
    """Four panels: exact match of each model, recall before and after, EM against K, hot-swap."""
    figure, axes = plots.new_figure(11, 8.6, 2, 2)
    bars, recall, sweep, swap = axes.flat

    names = list(NAMES)[::-1]
    ems = [find(metrics[name], "em") for name in names]
    known = [each if each else Record("em", None, "", 0.0, 0.0, 0.0, 0) for each in ems]
    plots.interval_bars(
        bars,
        [NAMES[name] for name in names],
        [each.value or 0.0 for each in known],
        [(each.low or 0.0, each.high or 0.0) for each in known],
        [COLOURS[name] for name in names],
    )
    over = ", ".join(sorted({count(each) for each in known}))
    bars.set(xlabel="exact match (95 % interval)", title=f"Questions about unseen people (n = {over})")

    shown = {"before": "frozen"} | {NAMES[name]: name for name in SWAPPED[::-1]}
    recall_of = {
        label: [value(metrics[name], "recall", k) for k in RECALL_AT] for label, name in shown.items()
    }
    colours = [plots.GREY, *(COLOURS[name] for name in SWAPPED[::-1])]
    plots.grouped_bars(recall, [f"recall@{k}" for k in RECALL_AT], recall_of, colours)
    recall.set(ylabel="gold passage found", title="Retrieval before and after end-to-end training")

    lines = {name: by_k(metrics[name], "em") for name in RETRIEVES}
    plots.against_k(
        sweep,
        {name: {k: each.value for k, each in line.items()} for name, line in lines.items()},
        "exact match",
    )
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
    judged = find(metrics["rag_sequence"], "em")
    asked_about = next((each.n for each in metrics["rag_sequence"] if swap_pair(each)), None)
    lines = ["# The demo's report", ""]
    lines += [
        f"Trained from scratch, answers only in the stages with retrieval; {report['questions']} questions about "
        f"people who are never asked about in training. Seed {report['seed']}, commit {report['commit']}, "
        f"{report['seconds']['total']:,.0f} s in all.",
        "",
        *table(HEADER, rows_of(metrics)),
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
        *table(
            ["metric", "bound", "value", "reached"],
            [
                [t["metric"], t["bound"], f"{t['value']:.3f}", "yes" if t["reached"] else "**no**"]
                for t in report["targets"]
            ],
        ),
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
        f"## Exact match against K, n = {(judged.n if judged else None) or 0:,}",
        "",
        *table(
            ["model", *(f"K = {k}" for k in ks)],
            [[NAMES[name], *(f"{value(metrics[name], 'em', k):.3f}" for k in ks)] for name in RETRIEVES],
        ),
    ]
    lines += answers(predictions, report["questions"], NAMES["rag_sequence"])
    lines += ["", "## Seconds of each stage", ""]
    lines += table(["stage", "seconds"], [[name, f"{took:,.1f}"] for name, took in report["seconds"].items()])
    return "\n".join(lines) + "\n"


def write_report(folder: Path, seed: int, seconds: dict[str, float]) -> dict[str, Any]:
    """Write report.json, report.md and report.png into `folder` and print the tables."""
    before = folder / "report.json"
    if before.exists():  # stages that were skipped keep the seconds they took when they ran
        old = read_json(before)["seconds"]
        seconds = {name: max(took, old.get(name, 0.0)) for name, took in seconds.items()}
    report = gather(folder, seed, seconds)
    plot(metrics_of(report), folder / "report.png")
    with write_aside(folder / "report.md") as aside:
        predictions = folder / "evaluation" / "rag_sequence" / "predictions.jsonl"
        aside.write_text(markdown(report, predictions), encoding="utf-8")
    write_json(before, report)

    console = Console()
    # Narrow enough for a terminal of 80 columns: n, which is the same in every row, stands in the title.
    shown = Table(
        *(
            Column(each, no_wrap=True)
            for each in ("model", "EM", "95 % interval", "F1", "recall@1", "@5", "@20")
        ),
        title=f"{report['questions']} questions about people never asked about in training",
        box=box.SIMPLE_HEAD,
        padding=(0, 0),
    )
    for row in rows_of(metrics_of(report)):
        shown.add_row(*row[:3], *row[4:])
    console.print(shown)
    for target in report["targets"]:
        if not target["reached"]:
            console.print(
                f"target missed: {target['metric']} is {target['value']:.3f}, expected {target['bound']}"
            )
    print(f"{seconds['total']:,.0f} s; report in {folder / 'report.md'}")
    return report
