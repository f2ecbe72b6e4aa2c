"""The demo's report: the paper's comparisons (Tables 1 and 6, figure 3, section 4.5) on the mini-wiki."""

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from rag.files import read_json, write_aside, write_json
from rag.reports import plots
from rag.reports.page import table
from rag.reports.plots import COLOURS, NAMES
from rag.reports.run_report import answers
from rag.runs import git_commit, versions

# What the demo is expected to reach: (figure, at least or at most, bound).
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
    closed = {"train_em": results["closed_book_train"]["em"], "test_em": results["closed_book"]["em"]}
    report: dict[str, Any] = {"closed_book": closed}
    for name in ("rag_token", "rag_sequence", "frozen", "bm25"):
        report[name] = {key: results[name][key] for key in ("em", "f1", "recall", "em_by_k")}
    # A frozen retriever retrieves what every variant retrieved before it was trained end to end.
    report["recall_before"] = results["frozen"]["recall"]
    report["hot_swap"] = {name: results[name]["hot_swap"] for name in ("rag_token", "rag_sequence")}
    report |= {"seconds": seconds, "seed": seed, "commit": git_commit(), "versions": versions()}
    report["questions"] = results["rag_sequence"]["questions"]
    report["intervals"] = {name: results[name]["intervals"]["em"] for name in NAMES}
    report["targets"] = [
        {"figure": figure, "bound": f"{sign} {bound}", "value": value, "reached": reached(value, sign, bound)}
        for (figure, sign, bound), value in zip(TARGETS, measured(report), strict=True)
    ]
    return report


def reached(value: float, sign: str, bound: float) -> bool:
    return value >= bound - 1e-9 if sign == "≥" else value <= bound + 1e-9


def measured(report: dict[str, Any]) -> list[float]:
    """The figures of TARGETS, in their order."""
    token, sequence, frozen = report["rag_token"], report["rag_sequence"], report["frozen"]
    before, swaps = report["recall_before"], report["hot_swap"].values()
    return [
        round(value, 4)
        for value in (
            report["closed_book"]["train_em"],
            report["closed_book"]["test_em"],
            token["em"],
            sequence["em"],
            token["em"] - frozen["em"],
            sequence["em"] - frozen["em"],
            token["recall"]["1"] - before["1"],
            sequence["recall"]["1"] - before["1"],
            token["recall"]["5"],
            sequence["recall"]["5"],
            min(cells[cell] for cells in swaps for cell in ("AA", "BB")),
            max(cells[cell] for cells in swaps for cell in ("AB", "BA")),
            token["em_by_k"]["1"] - token["em_by_k"]["20"],
            sequence["em_by_k"]["1"] - sequence["em_by_k"]["20"],
        )
    ]


def rows_of(report: dict[str, Any]) -> list[list[str]]:
    """The main table: model, EM with interval, F1, recall@1, 5, 20."""
    rows = []
    for name, label in NAMES.items():
        low, high = report["intervals"][name]
        if name == "closed_book":
            figures = [f"{report[name]['test_em']:.3f}", f"{low:.2f}–{high:.2f}", "–", "–", "–", "–"]
        else:
            own = report[name]
            figures = [f"{own['em']:.3f}", f"{low:.2f}–{high:.2f}", f"{own['f1']:.3f}"]
            figures += [f"{own['recall'][k]:.3f}" for k in ("1", "5", "20")]
        rows.append([label, *figures])
    return rows


HEADER = ["model", "EM", "95 %", "F1", "recall@1", "recall@5", "recall@20"]


def plot(report: dict[str, Any], path: Path) -> None:
    """Four panels: EM of each model, recall before and after, EM against K, hot-swap."""
    figure, axes = plots.new_figure(11, 8, 2, 2)
    bars, recall, sweep, swap = axes.flat

    names = list(NAMES)
    values = [report[n]["test_em"] if n == "closed_book" else report[n]["em"] for n in names]
    intervals = [report["intervals"][n] for n in names]
    plots.interval_bars(bars, [NAMES[n] for n in names], values, intervals, [COLOURS[n] for n in names])
    bars.set(xlabel="exact match (95 % interval)", title="Questions about unseen people")

    ks = ["1", "5", "20"]
    trained = {"before": report["recall_before"]}
    trained |= {NAMES[n]: report[n]["recall"] for n in ("rag_token", "rag_sequence")}
    shown = {label: [by_k[k] for k in ks] for label, by_k in trained.items()}
    colours = [plots.GREY, COLOURS["rag_token"], COLOURS["rag_sequence"]]
    plots.grouped_bars(recall, [f"recall@{k}" for k in ks], shown, colours)
    recall.set(ylabel="gold passage found", title="Retrieval before and after end-to-end training")

    with_retrieval = ("rag_sequence", "rag_token", "frozen", "bm25")
    plots.against_k(sweep, {name: report[name]["em_by_k"] for name in with_retrieval})
    sweep.set(ylabel="exact match", title="More passages at test time (figure 3)")

    plots.swap_grid(swap, plots.cells_of(report["hot_swap"]["rag_sequence"], "AB"))
    swap.set_title("Hot-swap: EM of RAG-Sequence (section 4.5)")
    plots.save(figure, path)


def markdown(report: dict[str, Any], predictions: Path) -> str:
    """report.md."""
    lines = ["# The demo's report", ""]
    lines += [
        f"Trained from scratch, answers only in the stages with retrieval; {report['questions']} questions about "
        f"people who are never asked about in training. Seed {report['seed']}, commit {report['commit']}, "
        f"{report['seconds']['total']:,.0f} s in all.",
        "",
        *table(HEADER, rows_of(report)),
        "",
        f"Closed-book BART answers {report['closed_book']['train_em']:.1%} of its own training questions and "
        f"{report['closed_book']['test_em']:.1%} of those about anybody else.",
        "",
        "![exact match, recall, K and hot-swap](report.png)",
        "",
        "The bi-encoder's own training is deliberately short: it finds the person but not which passage of theirs "
        'answers the question. That is the retriever of the row "frozen", and what end-to-end training improves on. '
        "All rows with retrieval start from the same generator and get the same steps and K.",
        "",
        "## What was to be reached",
        "",
        *table(
            ["figure", "bound", "value", "reached"],
            [
                [t["figure"], t["bound"], f"{t['value']:.3f}", "yes" if t["reached"] else "**no**"]
                for t in report["targets"]
            ],
        ),
        "",
        "## Hot-swap",
        "",
        "Exact match on institutions that are never asked about in training; every head differs between the editions.",
        "",
        *table(
            ["model", "A asked, A indexed", "A asked, B indexed", "B asked, A indexed", "B asked, B indexed"],
            [
                [NAMES[n], *(f"{cells[c]:.3f}" for c in ("AA", "AB", "BA", "BB"))]
                for n, cells in report["hot_swap"].items()
            ],
        ),
        "",
        "## Exact match against K",
        "",
        *table(
            ["model", *(f"K = {k}" for k in report["rag_sequence"]["em_by_k"])],
            [
                [NAMES[n], *(f"{v:.3f}" for v in report[n]["em_by_k"].values())]
                for n in ("rag_sequence", "rag_token", "frozen", "bm25")
            ],
        ),
    ]
    lines += answers(predictions, report["questions"], NAMES["rag_sequence"])
    lines += ["", "## Seconds of each stage", ""]
    lines += table(
        ["stage", "seconds"], [[name, f"{value:,.1f}"] for name, value in report["seconds"].items()]
    )
    return "\n".join(lines) + "\n"


def write_report(folder: Path, seed: int, seconds: dict[str, float]) -> dict[str, Any]:
    """Write report.json, report.md and report.png into `folder` and print the tables."""
    before = folder / "report.json"
    if before.exists():  # stages that were skipped keep the seconds they took when they ran
        old = read_json(before)["seconds"]
        seconds = {name: max(value, old.get(name, 0.0)) for name, value in seconds.items()}
    report = gather(folder, seed, seconds)
    plot(report, folder / "report.png")
    with write_aside(folder / "report.md") as aside:
        predictions = folder / "evaluation" / "rag_sequence" / "predictions.jsonl"
        aside.write_text(markdown(report, predictions), encoding="utf-8")
    write_json(before, report)

    console = Console()
    shown = Table(
        *HEADER, title=f"{report['questions']} questions about people never asked about in training"
    )
    for row in rows_of(report):
        shown.add_row(*row)
    console.print(shown)
    for target in report["targets"]:
        if not target["reached"]:
            console.print(
                f"not reached: {target['figure']} {target['value']:.3f}, {target['bound']} was to be shown"
            )
    print(f"{seconds['total']:,.0f} s; report in {folder / 'report.md'}")
    return report
