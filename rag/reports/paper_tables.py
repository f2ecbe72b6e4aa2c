"""The paper's tables, beside what our own runs gave: python evaluate.py report=table1.

Each experiment says which cells of the paper it fills (its `paper` node: table, row, column, metric, split, value in
percent). A report gathers the finished evaluations under paths.outputs, puts them into those cells and writes Markdown
and PNG. The numbers of other systems stand here.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml
from rich.table import Column, Table

from rag.errors import UserError
from rag.files import read_json, write_aside
from rag.metrics.record import Record, by_k, records_of
from rag.reports.page import table as markdown_table
from rag.reports.paper_cells import Cell, cells_of
from rag.reports.result_table import RETRIEVAL, label_of, own_k, percent, reads, signed, sweeps_of
from rag.runs import CONFIGS
from rag.safe_text import markdown as escaped
from rag.safe_text import say
from rag.terminal import Terminal

EXPERIMENTS = CONFIGS / "experiment"
NOT_RUN = "not run"


@dataclass(frozen=True)
class Layout:
    """Rows and columns of one table, in the paper's order; `others`: {row: {column: percent}} of other systems."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[str, ...]
    others: dict[str, dict[str, float]] = field(default_factory=dict)


QA = ("NQ", "TQA open", "TQA Wikipedia", "WQ", "CT")
GENERATION = ("Jeopardy B-1", "Jeopardy QB-1", "MS-MARCO R-L", "MS-MARCO B-1", "FEVER-3", "FEVER-2")
BOTH = ("RAG-Token", "RAG-Sequence")
LAYOUTS = {
    "table1": Layout(
        "Table 1: open-domain question answering, exact match",
        QA,
        BOTH,
        {
            "T5-11B closed book": {"NQ": 34.5, "TQA Wikipedia": 50.1, "WQ": 37.4},
            "T5-11B + SSM": {"NQ": 36.6, "TQA Wikipedia": 60.5, "WQ": 44.7},
            "REALM": {"NQ": 40.4, "WQ": 40.7, "CT": 46.8},
            "DPR": {"NQ": 41.5, "TQA open": 57.9, "WQ": 41.1, "CT": 50.6},
        },
    ),
    "table2": Layout(
        "Table 2: generation and classification",
        GENERATION,
        ("BART", *BOTH),
        {
            "best other (* gold evidence)": {
                "MS-MARCO R-L": 49.8,
                "MS-MARCO B-1": 49.9,
                "FEVER-3": 76.8,
                "FEVER-2": 92.2,
            }
        },
    ),
    "table5": Layout(
        "Table 5: distinct trigrams of all trigrams", ("MS-MARCO", "Jeopardy"), ("gold", "BART", *BOTH)
    ),
    "table6": Layout(
        "Table 6: retrievers, on dev",
        ("NQ", "TQA", "WQ", "CT", *GENERATION),
        (
            "RAG-Token, BM25",
            "RAG-Sequence, BM25",
            "RAG-Token, frozen",
            "RAG-Sequence, frozen",
            *BOTH,
        ),
    ),
    "figure3": Layout("Figure 3: more passages at test", ("NQ EM, best K",), BOTH),
    "hotswap": Layout(
        "Hot-swap (section 4.5): exact match",
        ("asked 2016", "asked 2018"),
        ("2016 indexed", "2018 indexed"),
    ),
    "dpr": Layout(
        "Retrieval (section 2.2; Karpukhin et al. 2020): an answer in one of the first K passages",
        ("NQ top-1", "NQ top-5", "NQ top-20", "NQ top-100"),
        ("DPR",),
        {"BM25": {"NQ top-20": 62.94, "NQ top-100": 78.25}},
    ),
    "text": Layout(
        "Numbers in the text (sections 4.1 and 4.4)",
        ("NQ EM, answer not retrieved", "FEVER title hit at 1", "FEVER title hit at 10"),
        ("RAG",),
    ),
}


@dataclass(frozen=True)
class Found:
    """A finished evaluation of an experiment."""

    folder: Path
    result: dict[str, Any]

    @cached_property
    def records(self) -> list[Record]:
        return records_of(self.result)

    @property
    def label(self) -> str:
        """What has to be known beside its values: another split than the paper's, a sample, other settings."""
        notes = [self.result["split"]] if self.result["split"] != "test" else []
        notes += [f"{self.result['questions']:,} questions"] if self.result["limit"] is not None else []
        return ", ".join([*notes, *self.result["changed"]])


def all_cells(table: str, folder: Path = EXPERIMENTS) -> list[Cell]:
    """The cells of a table that our experiments fill, read from their files."""
    cells = []
    for file in sorted(folder.rglob("*.yaml")):
        if not file.name.startswith("_"):
            content = yaml.safe_load(file.read_text(encoding="utf-8")) or {}
            cells += cells_of(content.get("paper") or [], content.get("name", ""))
    return [cell for cell in cells if cell.table == table]


def finished(outputs: Path) -> dict[str, list[Found]]:
    """All finished evaluations under a folder, by the name of their experiment."""
    evaluations: dict[str, list[Found]] = {}
    for file in sorted(outputs.rglob("result.json")):
        result = read_json(file)
        if {"name", "split", "questions", "changed"} <= set(result):
            evaluations.setdefault(result["name"], []).append(Found(file.parent, result))
    return evaluations


def best_of(cell: Cell, candidates: Sequence[Found]) -> Found | None:
    """The evaluation that comes nearest to what the paper measured; None if there is none on a split that counts.

    On the paper's split before the one that stands for it, whole before sampled, with the experiment's own settings
    before others, with most questions.
    """
    fit = [
        each
        for each in candidates
        if each.result["split"] in (cell.split, cell.instead) and cell.ours(each.records) is not None
    ]

    def rank(each: Found) -> tuple:
        result = each.result
        other_split, sampled = result["split"] != cell.split, result["limit"] is not None
        return (other_split, sampled, len(result["changed"]), -result["questions"])

    return min(fit, key=rank, default=None)


def matrix(
    table: str, outputs: Path
) -> tuple[Layout, dict[tuple[str, str], list[tuple[Cell, Found | None]]]]:
    """The layout of a table, and for each (row, column) the paper's cell with our evaluation of it."""
    if table not in LAYOUTS:
        raise UserError(f"report={table} does not exist; available: {', '.join(LAYOUTS)}")
    evaluations = finished(outputs)
    filled: dict[tuple[str, str], list[tuple[Cell, Found | None]]] = {}
    for cell in all_cells(table):
        pair = (cell, best_of(cell, evaluations.get(cell.experiment, [])))
        filled.setdefault((cell.row, cell.column), []).append(pair)
    return LAYOUTS[table], filled


def written(cell: Cell, evaluation: Found | None) -> str:
    """ "44.5 | 43.9 | −0.6", with what has to be known in brackets."""
    digits = 0 if cell.is_k else 1
    ours = None if evaluation is None else cell.ours(evaluation.records)
    if evaluation is None or ours is None:
        return f"{cell.value:.{digits}f} | {NOT_RUN}"
    record = None if cell.is_k else cell.record(evaluation.records)
    label = evaluation.label if cell.split == "test" or evaluation.result["split"] != cell.split else ""
    label = label or ", ".join(evaluation.result["changed"])
    note = f" ({label})" if label else ""
    value = f"{ours:.0f}" if record is None else percent(record)
    return f"{cell.value:.{digits}f} | {value}{note} | {signed(ours - cell.value, digits)}"


def lines_of(table: str, outputs: Path) -> tuple[Layout, list[list[str]], list[str]]:
    """The layout, the rows of a table as text, and a line for each run behind it."""
    layout, filled = matrix(table, outputs)
    rows = [
        [name, *(f"{values[column]:.1f}" if column in values else "–" for column in layout.columns)]
        for name, values in layout.others.items()
    ]
    runs: dict[Path, str] = {}
    for name in layout.rows:
        line = [name]
        for column in layout.columns:
            pairs = filled.get((name, column), [])
            # Where two experiments fill one cell (RAG-Token and RAG-Sequence as classifiers), one that was run counts.
            cell, evaluation = next(
                (pair for pair in pairs if pair[1] is not None), pairs[0] if pairs else (None, None)
            )
            line.append("–" if cell is None else written(cell, evaluation))
            if evaluation is not None:
                runs[evaluation.folder] = describe(evaluation)
        rows.append(line)
    return layout, rows, list(runs.values())


def describe(evaluation: Found) -> str:
    """One line on where a number comes from."""
    result = evaluation.result
    hours = result.get("training_seconds")
    parts = [
        f"{result['split']}, {result['questions']:,} questions, {reads(own_k(result))}",
        f"seed {result['seed']}, commit {result['commit']}, {result['device']}",
        *([f"trained in {hours / 3600:.1f} h"] if hours else []),
        *([f"with {', '.join(result['changed'])}"] if result["changed"] else []),
    ]
    return f"{result['name']}: {'; '.join(parts)}; {evaluation.folder}"


def markdown(layout: Layout, rows: list[list[str]], runs: list[str]) -> str:
    """The table in Markdown, each cell as paper / ours [95 %], n / difference, in percent."""
    lines = [f"# {layout.title}", "", "paper / ours [95 %], n / difference; other systems: paper alone.", ""]
    lines += markdown_table(["", *layout.columns], [[c.replace(" | ", " / ") for c in row] for row in rows])
    lines += (
        ["", "Runs:", *(f"- {escaped(run)}" for run in runs)] if runs else ["", "No run is finished yet."]
    )
    return "\n".join(lines) + "\n"


Curves = dict[str, dict[str, dict[int, float]]]


def sweeps(outputs: Path) -> Curves:
    """{experiment: {metric: {K: percent}}} of the finished evaluations of figure 3, what was retrieved included."""
    curves: Curves = {}
    for name, each in finished(outputs).items():
        if name.startswith("figure3/"):
            records = max(each, key=lambda one: one.result["questions"]).records
            metrics = sweeps_of(records) | {name: by_k(records, name) for name in RETRIEVAL}
            curves[name.removeprefix("figure3/")] = {
                metric: {k: 100 * record.value for k, record in of_one.items() if record.value is not None}
                for metric, of_one in metrics.items()
                if of_one
            }
    return curves


def sweep_lines(curves: Curves) -> list[str]:
    """The curves in numbers, in Markdown."""
    lines = []
    for experiment, metrics in curves.items():
        ks = sorted({k for of_one in metrics.values() for k in of_one})
        rows = [
            [escaped(label_of(name)), *(f"{of_one[k]:.1f}" if k in of_one else "–" for k in ks)]
            for name, of_one in metrics.items()
        ]
        lines += ["", *markdown_table([escaped(experiment), *(f"K = {k}" for k in ks)], rows)]
    return lines


def parts_that_fit(columns: Sequence[str], rows: Sequence[Sequence[str]], width: int) -> list[list[int]]:
    """The columns' numbers, in as many tables below one another as a terminal of that width needs."""
    border = 3  # a space on either side, and a line
    names = max((len(row[0]) for row in rows), default=0) + border + 1
    parts: list[list[int]] = []
    left = 0
    for number, title in enumerate(columns):
        words = [title, *(row[1 + number] for row in rows)]
        needed = border + max(len(line) for each in words for line in each.split(" | "))
        if not parts or needed > left:
            parts.append([])
            left = width - names
        parts[-1].append(number)
        left -= needed
    return parts


def write_table(table: str, outputs: Path, folder: Path) -> None:
    """Gather a table, print it, and write <table>.md and <table>.png into `folder`."""
    from rag.reports import plots

    layout, rows, runs = lines_of(table, outputs)
    text = markdown(layout, rows, runs)
    if table == "figure3":
        curves = sweeps(outputs)
        text += "\n".join(sweep_lines(curves)) + "\n" if curves else ""
        figure = plots.sweeps(curves)
    else:
        split = [[row[0], *(cell.replace(" | ", "\n") for cell in row[1:])] for row in rows]
        title = f"{layout.title}\npaper, ours [95 %] with n, difference, in percent"
        figure = plots.text_table(title, ["", *layout.columns], split, NOT_RUN)
    plots.save(figure, folder / f"{table}.png")
    console = Terminal()
    for part in parts_that_fit(layout.columns, rows, console.width):
        columns = [Column("", no_wrap=True), *(layout.columns[number] for number in part)]
        shown = Table(*columns, title=f"{layout.title}: paper, ours, difference", show_lines=True)
        for row in rows:
            shown.add_row(row[0], *(row[1 + number].replace(" | ", "\n") for number in part))
        console.print(shown)
    with write_aside(folder / f"{table}.md") as aside:
        aside.write_text(text, encoding="utf-8")
    say(f"{len(runs)} finished runs under {outputs}; table in {folder / f'{table}.md'} and .png")
