"""The paper's tables, beside what our own runs gave: python evaluate.py report=table1.

Each experiment says which cells of the paper it fills (its `paper` node: table, row, column, metric, split, value in
percent). A report gathers the finished evaluations under paths.outputs, puts them into those cells and writes Markdown
and PNG. Figures of systems that are not ours stand here.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import matplotlib
import yaml
from rich.console import Console
from rich.table import Table

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402  (the backend comes first)
from matplotlib.transforms import Bbox  # noqa: E402

from rag.errors import UserError  # noqa: E402
from rag.files import read_json, write_aside  # noqa: E402
from rag.runs import CONFIGS  # noqa: E402

EXPERIMENTS = CONFIGS / "experiment"
NOT_RUN = "not run"


@dataclass(frozen=True)
class Cell:
    """One figure of the paper that an experiment reproduces.

    metric: where a result.json has it: "em", "title_hit@1", "hot_swap@20162018", "em_best_k" (a K, no percentage).
    split: the paper's; instead: the split that stands for it where its answers are not public.
    """

    table: str
    row: str
    column: str
    metric: str
    split: str
    value: float
    instead: str = "dev"
    experiment: str = ""


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
        "Figures in the text (sections 4.1 and 4.4)",
        ("NQ EM, answer not retrieved", "FEVER title hit at 1", "FEVER title hit at 10"),
        ("RAG",),
    ),
}


@dataclass(frozen=True)
class Found:
    """A finished evaluation of an experiment."""

    folder: Path
    result: dict[str, Any]

    def figure(self, metric: str) -> float | None:
        """A figure in percent (a K as it is); None where this evaluation has none."""
        name, _, k = metric.partition("@")
        value = self.result.get(name)
        value = value.get(k) if k and isinstance(value, dict) else value
        if not isinstance(value, int | float):
            return None
        return value if metric.endswith("_best_k") else 100 * value

    def interval(self, metric: str) -> tuple[float, float] | None:
        low, high = (self.result["intervals"] | self.result["intervals_at"]).get(metric) or (None, None)
        return None if low is None or high is None else (100 * low, 100 * high)

    @property
    def label(self) -> str:
        """What has to be known beside its figures: another split than the paper's, a sample, other settings."""
        notes = [self.result["split"]] if self.result["split"] != "test" else []
        notes += [f"{self.result['questions']:,} questions"] if self.result["limit"] is not None else []
        return ", ".join([*notes, *self.result["changed"]])


def cells_of(nodes: Iterable[dict[str, Any]], experiment: str) -> list[Cell]:
    """The cells of an experiment's `paper` node."""
    return [Cell(**node, experiment=experiment) for node in nodes]


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
    found: dict[str, list[Found]] = {}
    for file in sorted(outputs.rglob("result.json")):
        result = read_json(file)
        if {"name", "split", "intervals_at", "changed"} <= set(result):
            found.setdefault(result["name"], []).append(Found(file.parent, result))
    return found


def best_of(cell: Cell, candidates: Sequence[Found]) -> Found | None:
    """The evaluation that comes nearest to what the paper measured; None if there is none on a split that counts.

    On the paper's split before the one that stands for it, whole before sampled, with the experiment's own settings
    before others, with most questions.
    """
    fit = [
        each
        for each in candidates
        if each.result["split"] in (cell.split, cell.instead) and each.figure(cell.metric) is not None
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
        raise UserError(f"report={table} does not exist: there are {', '.join(LAYOUTS)}")
    found = finished(outputs)
    filled: dict[tuple[str, str], list[tuple[Cell, Found | None]]] = {}
    for cell in all_cells(table):
        pair = (cell, best_of(cell, found.get(cell.experiment, [])))
        filled.setdefault((cell.row, cell.column), []).append(pair)
    return LAYOUTS[table], filled


def written(cell: Cell, found: Found | None) -> str:
    """ "44.5 | 43.9 | −0.6", with what has to be known in brackets."""
    digits = 0 if cell.metric.endswith("_best_k") else 1
    ours = None if found is None else found.figure(cell.metric)
    if found is None or ours is None:
        return f"{cell.value:.{digits}f} | {NOT_RUN}"
    label = found.label if cell.split == "test" or found.result["split"] != cell.split else ""
    label = label or ", ".join(found.result["changed"])
    interval = found.interval(cell.metric)
    spread = f" [{interval[0]:.1f}–{interval[1]:.1f}]" if interval else ""
    note = f" ({label})" if label else ""
    difference = f"{ours - cell.value:+.{digits}f}".replace("-", "−")
    return f"{cell.value:.{digits}f} | {ours:.{digits}f}{spread}{note} | {difference}"


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
            cell, found = next(
                (pair for pair in pairs if pair[1] is not None), pairs[0] if pairs else (None, None)
            )
            line.append("–" if cell is None else written(cell, found))
            if found is not None:
                runs[found.folder] = describe(found)
        rows.append(line)
    return layout, rows, list(runs.values())


def describe(found: Found) -> str:
    """One line on where a figure comes from."""
    result = found.result
    hours = result.get("training_seconds")
    parts = [
        f"{result['split']}, {result['questions']:,} questions, K = {result['n_docs']}",
        f"seed {result['seed']}, commit {result['commit']}, {result['device']}",
        *([f"trained in {hours / 3600:.1f} h"] if hours else []),
        *([f"with {', '.join(result['changed'])}"] if result["changed"] else []),
    ]
    return f"{result['name']}: {'; '.join(parts)}; {found.folder}"


def markdown(layout: Layout, rows: list[list[str]], runs: list[str]) -> str:
    """The table in Markdown, each cell as paper / ours [95 %] / difference, in percent."""
    header = ["", *layout.columns]
    table = [header, ["---"] * len(header), *([cell.replace(" | ", " / ") for cell in row] for row in rows)]
    lines = [f"# {layout.title}", "", "paper / ours [95 %] / difference; other systems: paper alone.", ""]
    lines += [f"| {' | '.join(row)} |" for row in table]
    lines += ["", "Runs:", *(f"- {run}" for run in runs)] if runs else ["", "No run is finished yet."]
    return "\n".join(lines) + "\n"


def plot(layout: Layout, rows: list[list[str]], path: Path) -> None:
    """The table as a picture: paper, ours and difference under one another in each cell."""
    text = [[row[0], *(cell.replace(" | ", "\n") for cell in row[1:])] for row in rows]
    width = 2.6 + 1.75 * len(layout.columns)
    figure, axis = plt.subplots(figsize=(width, 1.1 + 0.62 * len(rows)), layout="constrained")
    axis.axis("off")
    axis.set_title(f"{layout.title}\npaper, ours, difference", fontsize=11)
    table = axis.table(cellText=text, colLabels=["", *layout.columns], cellLoc="center", bbox=Bbox.unit())
    table.auto_set_font_size(False)
    for (row, column), cell in table.get_celld().items():
        cell.set_fontsize(9 if row == 0 or column == 0 else 7.5)
        cell.set_edgecolor("#CCCCCC")
        if row > 0 and column > 0 and NOT_RUN in text[row - 1][column]:
            cell.get_text().set_color("#888888")
    with write_aside(path) as aside:
        figure.savefig(aside, dpi=150, format="png")
    plt.close(figure)


def sweeps(outputs: Path) -> dict[str, dict[str, dict[int, float]]]:
    """{experiment: {measure: {K: percent}}} of the finished evaluations of figure 3, what was retrieved included."""
    found: dict[str, dict[str, dict[int, float]]] = {}
    for name, each in finished(outputs).items():
        if name.startswith("figure3/"):
            result = max(each, key=lambda one: one.result["questions"]).result
            curves = {key: value for key, value in result.items() if key.endswith(("_by_k", "recall"))}
            found[name] = {
                key.removesuffix("_by_k"): {int(k): 100 * v for k, v in by_k.items() if v is not None}
                for key, by_k in curves.items()
            }
    return found


def plot_sweeps(curves: dict[str, dict[str, dict[int, float]]], path: Path) -> None:
    """Figure 3: every measure against K, a line for each experiment."""
    measures = list(dict.fromkeys(name for of_one in curves.values() for name in of_one))
    width = 1.0 + 3.6 * max(1, len(measures))
    figure, axes = plt.subplots(
        1, max(1, len(measures)), figsize=(width, 3.6), layout="constrained", squeeze=False
    )
    for axis, measure in zip(axes[0], measures or [NOT_RUN], strict=True):
        for experiment, of_one in curves.items():
            if measure in of_one:
                ks = sorted(of_one[measure])
                label = experiment.removeprefix("figure3/")
                axis.plot(ks, [of_one[measure][k] for k in ks], marker="o", markersize=3, label=label)
        axis.set(xlabel="passages at test, K", ylabel="%", title=measure)
        if measures:
            axis.legend(fontsize=7, frameon=False)
    with write_aside(path) as aside:
        figure.savefig(aside, dpi=150, format="png")
    plt.close(figure)


def sweep_lines(curves: dict[str, dict[str, dict[int, float]]]) -> list[str]:
    """The curves in numbers, in Markdown."""
    lines = []
    for experiment, measures in curves.items():
        ks = sorted({k for by_k in measures.values() for k in by_k})
        rows = [[experiment, *(f"K = {k}" for k in ks)], ["---"] * (len(ks) + 1)]
        rows += [
            [name, *(f"{by_k[k]:.1f}" if k in by_k else "–" for k in ks)] for name, by_k in measures.items()
        ]
        lines += ["", *(f"| {' | '.join(row)} |" for row in rows)]
    return lines


def write_table(table: str, outputs: Path, folder: Path) -> None:
    """Gather a table, print it, and write <table>.md and <table>.png into `folder`."""
    layout, rows, runs = lines_of(table, outputs)
    text = markdown(layout, rows, runs)
    if table == "figure3":
        curves = sweeps(outputs)
        text += "\n".join(sweep_lines(curves)) + "\n" if curves else ""
        plot_sweeps(curves, folder / f"{table}.png")
    else:
        plot(layout, rows, folder / f"{table}.png")
    shown = Table("", *layout.columns, title=f"{layout.title}: paper, ours, difference", show_lines=True)
    for row in rows:
        shown.add_row(*(cell.replace(" | ", "\n") for cell in row))
    Console().print(shown)
    with write_aside(folder / f"{table}.md") as aside:
        aside.write_text(text, encoding="utf-8")
    print(f"{len(runs)} finished runs under {outputs}; table in {folder / f'{table}.md'} and .png")
