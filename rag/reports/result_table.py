"""The records of an evaluation as text: one renderer for the terminal, Markdown and the comparison with the paper.

A row has the metric, its value with the 95 % interval, and n, the examples that it is over; then, where there are any,
the paper's value, the difference, and what BM25 retrieves.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rag.metrics.record import BM25, NOT_RETRIEVED, Record, best_k, by_k, find, records_of, swap_pair
from rag.reports.paper_cells import Cell
from rag.safe_text import markdown as escaped

# How metrics are called in tables and pictures; any other goes by the name that its task gives it.
LABELS = {
    "em": "exact match",
    "f1": "F1",
    "accuracy": "accuracy",
    "bleu_1": "BLEU-1",
    "q_bleu_1": "Q-BLEU-1",
    "rouge_l": "ROUGE-L",
    "distinct_trigrams": "distinct trigrams",
    "distinct_trigrams_gold": "distinct trigrams, reference texts",
    "trigrams_supported": "trigrams that the passages hold",
    "trigrams_supported_gold": "trigrams that the passages hold, reference texts",
    "names_supported": "names that the passages hold",
    "names_supported_gold": "names that the passages hold, reference texts",
    "recall": "recall",
    "answer_recall": "answer recall",
    "title_hit": "title hit",
}
# Those that judge what was retrieved, with what is looked for among the first K.
RETRIEVAL = {
    "recall": "a gold passage",
    "answer_recall": "a passage with an answer",
    "title_hit": "a passage of a gold article",
}
HEADER = ("metric", "value", "95 % interval", "n", "paper", "difference", BM25)
ALWAYS = 4  # columns; the others stand where something is in them
NONE = "–"


@dataclass(frozen=True)
class Section:
    """Rows that belong together; each has a text for every column of HEADER."""

    title: str
    rows: list[list[str]]


def label_of(metric: str) -> str:
    return LABELS.get(metric, metric)


def name_of(record: Record, k_of_run: int | None) -> str:
    """ "exact match", "recall@5", "exact match at K = 20" where `own`, the evaluation's K, is another."""
    name = label_of(record.metric)
    if record.metric in RETRIEVAL:
        name += f"@{record.k}"
    elif record.k not in (None, k_of_run):
        name += f" at K = {record.k}"
    return name if record.condition is None else f"{name}, {record.condition}"


def number(value: float | None) -> str:
    """With three digits; what could not be judged, None or NaN, is NONE."""
    return NONE if value is None or math.isnan(value) else f"{value:.3f}"


def interval(record: Record) -> str:
    if record.low is None or record.high is None:
        return NONE
    return f"{record.low:.3f} – {record.high:.3f}"


def count(record: Record) -> str:
    return NONE if record.n is None else f"{record.n:,}"


def signed(value: float, digits: int = 3) -> str:
    return f"{value:+.{digits}f}".replace("-", "−")


def percent(record: Record) -> str:
    """ "45.0 [44.0–46.0], n = 3,610", as the paper's tables have it; of a record that has a value."""
    spread = ""
    if record.low is not None and record.high is not None:
        spread = f" [{100 * record.low:.1f}–{100 * record.high:.1f}]"
    over = "" if record.n is None else f", n = {record.n:,}"
    return f"{100 * (record.value or 0):.1f}{spread}{over}"


def reads(n_docs: int | None) -> str:
    """ "K = 5", or that there is no K."""
    return "closed book" if n_docs is None else f"K = {n_docs}"


def own_k(result: Mapping[str, Any]) -> int | None:
    """The evaluation's own K; None of a closed book, for which earlier versions wrote 1."""
    return result["n_docs"] if "index" in result else None


def sweeps_of(records: Sequence[Record]) -> dict[str, dict[int, Record]]:
    """{metric: {K: record}} of answers that were judged at several K (figure 3)."""
    names = dict.fromkeys(each.metric for each in records if each.metric not in RETRIEVAL)
    by_metric = {name: by_k(records, name) for name in names}
    return {name: each for name, each in by_metric.items() if len(each) > 1}


def sections(result: Mapping[str, Any], cells: Sequence[Cell] = ()) -> list[Section]:
    """What an evaluation measured, beside the paper's cells; where two are of one metric, this split's goes first."""
    records, k_of_run = records_of(result), own_k(result)
    paper: dict[Record, Cell] = {}
    best: dict[str, Cell] = {}
    for cell in sorted(cells, key=lambda cell: cell.split != result["split"]):
        if cell.is_k:
            best.setdefault(cell.metric.removesuffix("_best_k"), cell)
        elif record := cell.record(records):
            paper.setdefault(record, cell)

    def row(record: Record) -> list[str]:
        cells = [name_of(record, k_of_run), number(record.value), interval(record), count(record)]
        bm25 = find(records, record.metric, record.k, BM25) if record.condition is None else None
        beside = "" if bm25 is None else number(bm25.value)
        return [*cells, *_beside(record.value, paper.get(record), result["split"]), beside]

    def is_own(record: Record) -> bool:
        return record.condition == NOT_RETRIEVED or record.condition is None and record.k in (None, k_of_run)

    answers = [each for each in records if each.metric not in RETRIEVAL and is_own(each)]
    retrieved = [each for each in records if each.metric in RETRIEVAL and each.condition is None]
    parts = [
        Section("Answers", [row(each) for each in answers]),
        Section("Retrieval", [row(each) for each in retrieved]),
    ]
    swept: list[list[str]] = []
    for metric, each in sweeps_of(records).items():
        swept += [
            [f"{label_of(metric)} at K = {k}", *row(record)[1:4], "", "", ""] for k, record in each.items()
        ]
        if (k := best_k(records, metric)) is not None:
            cell = best.get(metric)
            line = [f"K of the highest {label_of(metric)}", str(k), NONE, count(each[k])]
            swept.append([*line, *_beside(k, cell, result["split"], whole=True), ""])
    parts.append(Section("More passages at test time", swept))
    parts.append(Section("Hot-swap", [row(each) for each in records if swap_pair(each)]))
    return [each for each in parts if each.rows]


def _beside(value: float | None, cell: Cell | None, split: str, whole: bool = False) -> list[str]:
    """The paper's value, of another split where it is said, and the difference to it."""
    if cell is None:
        return ["", ""]
    of = "" if cell.split == split else f" ({cell.split})"
    theirs = cell.value if whole else cell.value / 100
    digits = 0 if whole else 3
    return [f"{theirs:.{digits}f}{of}", "" if value is None else signed(value - theirs, digits)]


def columns(rows: Sequence[Sequence[str]]) -> list[int]:
    """The columns of HEADER that are shown: the first ones, and those with something in them."""
    return [n for n in range(len(HEADER)) if n < ALWAYS or any(row[n] for row in rows)]


def markdown(section: Section) -> list[str]:
    """The lines of the section's table."""
    shown = columns(section.rows)
    rows = ([escaped(cell) for cell in row] for row in section.rows)
    lines = [HEADER, ["---"] * len(HEADER), *rows]
    return [f"| {' | '.join(line[n] for n in shown)} |" for line in lines]


def terminal(title: str, parts: Sequence[Section], index: Sequence[tuple[str, str]] = ()) -> Any:
    """All sections as one table of rich, a rule between them; index: what is said of the index below."""
    from rich.table import Table

    shown = columns([row for section in parts for row in section.rows])
    table = Table(*(HEADER[n] for n in shown), title=title)
    for section in parts:
        for row in section.rows:
            table.add_row(*(row[n] for n in shown))
        table.add_section()
    for line in index:
        table.add_row(*line)
    return table
