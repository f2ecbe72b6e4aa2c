"""What the reports of the mini-wiki and of real text share: models side by side, what was to be reached, time."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from rich import box
from rich.table import Column, Table

from rag.files import read_json
from rag.metrics.record import Record, by_k, find, records_of
from rag.reports import plots
from rag.reports.page import table
from rag.reports.plots import COLOURS
from rag.reports.result_table import NONE, count, interval, number
from rag.terminal import Terminal

Metrics = dict[str, list[Record]]  # of each model
Target = tuple[str, str, float]  # metric, "≥" or "≤", bound


def metrics_of(report: Mapping[str, Any]) -> Metrics:
    """The records of each model's evaluation."""
    return {name: records_of({"metrics": records}) for name, records in report["metrics"].items()}


def value(
    records: Sequence[Record], metric: str, k: int | None = None, condition: str | None = None
) -> float:
    """A metric at that K, without one at the evaluation's own; NaN where it could not be judged."""
    record = find(records, metric, k, condition)
    return math.nan if record is None or record.value is None else record.value


# -- what was to be reached ---------------------------------------------------------------------


def reached(value: float, sign: str, bound: float) -> bool:
    return value >= bound - 1e-9 if sign == "≥" else value <= bound + 1e-9


def judged(targets: Sequence[Target], values: Sequence[float]) -> list[dict[str, Any]]:
    """Each target with its value, as it stands in report.json; None where there was nothing to judge."""
    return [
        {
            "metric": metric,
            "bound": f"{sign} {bound}",
            "value": None if math.isnan(value) else value,  # JSON has no NaN
            "reached": reached(value, sign, bound),
        }
        for (metric, sign, bound), value in zip(targets, values, strict=True)
    ]


def table_of_targets(targets: Sequence[Mapping[str, Any]]) -> list[str]:
    return table(
        ["metric", "bound", "value", "reached"],
        [
            [each["metric"], each["bound"], number(each["value"]), "yes" if each["reached"] else "**no**"]
            for each in targets
        ],
    )


# -- the models side by side ----------------------------------------------------------------------


def header(recall_at: Sequence[int]) -> list[str]:
    return ["model", "exact match", "95 % interval", "n", "F1", *(f"recall@{k}" for k in recall_at)]


def rows_of(metrics: Metrics, names: Mapping[str, str], recall_at: Sequence[int]) -> list[list[str]]:
    """The main table: exact match with interval and n, F1, recall. names: of the models, in their order."""
    rows = []
    for name, label in names.items():
        records = metrics[name]
        em, f1 = find(records, "em"), find(records, "f1")
        retrieved = [find(records, "recall", k) for k in recall_at]
        row = [label, *([number(em.value), interval(em), count(em)] if em else [NONE] * 3)]
        rows.append([*row, *(number(each.value) if each else NONE for each in (f1, *retrieved))])
    return rows


def table_against_k(metrics: Metrics, names: Mapping[str, str], ks: Sequence[int]) -> list[str]:
    """Exact match with each K."""
    return table(
        ["model", *(f"K = {k}" for k in ks)],
        [[label, *(number(value(metrics[name], "em", k)) for k in ks)] for name, label in names.items()],
    )


def plot_answers(axes: Axes, metrics: Metrics, names: Mapping[str, str], title: str) -> None:
    """Exact match of each model as a bar with its interval, the first on top."""
    order = list(names)[::-1]
    records = [find(metrics[name], "em") or Record("em", None, "", 0.0, 0.0, 0.0, 0) for name in order]
    plots.interval_bars(
        axes,
        [names[name] for name in order],
        [each.value or 0.0 for each in records],
        [(each.low or 0.0, each.high or 0.0) for each in records],
        [COLOURS[name] for name in order],
    )
    over = ", ".join(sorted({count(each) for each in records}))
    axes.set(xlabel="exact match (95 % interval)", title=f"{title} (n = {over})")


def plot_against_k(axes: Axes, metrics: Metrics, names: Sequence[str]) -> None:
    """Exact match against K (figure 3), a line a model."""
    lines = {name: by_k(metrics[name], "em") for name in names}
    values = {name: {k: each.value for k, each in line.items()} for name, line in lines.items()}
    plots.against_k(axes, values, "exact match")


def show(title: str, rows: Sequence[Sequence[str]], targets: Sequence[Mapping[str, Any]]) -> None:
    """The main table in the terminal, and each target that was missed.

    Narrow enough for 80 columns: n, the same in every row, is left to the title.
    """
    columns = ["model", "EM", "95 % interval", "F1", "recall@1", *(f"@{k}" for k in (5, 20, 100))]
    shown = Table(
        *(Column(each, no_wrap=True) for each in columns[: len(rows[0]) - 1]),
        title=title,
        box=box.SIMPLE_HEAD,
        padding=(0, 0),
    )
    for row in rows:
        shown.add_row(*row[:3], *row[4:])
    console = Terminal()
    console.print(shown)
    for target in targets:
        if not target["reached"]:
            console.print(
                f"target missed: {target['metric']} is {number(target['value'])}, expected {target['bound']}"
            )


# -- time ----------------------------------------------------------------------------------------


def longest(seconds: Mapping[str, float], report: Path) -> dict[str, float]:
    """Seconds of each stage; of one that was skipped, those that an earlier report has of when it ran."""
    before = read_json(report)["seconds"] if report.exists() else {}
    return {name: max(took, before.get(name, 0.0)) for name, took in seconds.items()}


def table_of_seconds(seconds: Mapping[str, float]) -> list[str]:
    return [
        "",
        "## Seconds of each stage",
        "",
        *table(["stage", "seconds"], [[name, f"{took:,.1f}"] for name, took in seconds.items()]),
    ]
