"""What an evaluation measured: records, read from this and earlier versions, and rendered for every place alike."""

import json
from io import StringIO

import pytest
from rich.console import Console

from rag.metrics.bootstrap import mean_with_interval
from rag.metrics.record import (
    BM25,
    NOT_RETRIEVED,
    Record,
    best_k,
    by_k,
    find,
    records_of,
    swap_cells,
    swapped,
    training_metrics,
)
from rag.reports.contrast import LEAST, contrast, text_on
from rag.reports.paper_cells import Cell
from rag.reports.result_table import markdown, own_k, sections, sweeps_of, terminal

# As the version before records wrote it: 40 questions asked, K = 5.
OLD = json.loads("""
{"identity": "0123", "seconds": 9.5, "name": "demo/rag_token", "split": "test", "limit": null, "questions": 40,
 "n_docs": 5, "seed": 1, "index": {"type": "Flat", "passages": 7, "recall": {"5": 1.0}},
 "em": 0.5, "f1": 0.625, "em_not_retrieved": null,
 "em_by_k": {"1": 0.25, "5": 0.5}, "em_best_k": 5, "f1_by_k": {"1": 0.25, "5": 0.625}, "f1_best_k": 5,
 "recall": {"1": 0.75, "5": 1.0}, "bm25": {"recall": {"1": 0.5, "5": 0.875}},
 "hot_swap": {"20162016": 0.9, "20162018": 0.1, "20182016": 0.2, "20182018": 0.8},
 "intervals": {"em": [0.25, 0.75], "f1": [0.5, 0.75], "em_not_retrieved": [null, null]},
 "intervals_at": {"em_by_k@1": [0.0, 0.5], "em_by_k@5": [0.25, 0.75], "f1_by_k@1": [0.0, 0.5],
  "f1_by_k@5": [0.5, 0.75], "recall@1": [0.5, 1.0], "recall@5": [1.0, 1.0], "bm25.recall@1": [0.25, 0.75],
  "bm25.recall@5": [0.75, 1.0], "hot_swap@20162016": [0.8, 1.0], "hot_swap@20162018": [0.0, 0.2],
  "hot_swap@20182016": [0.1, 0.3], "hot_swap@20182018": [0.7, 0.9]}}
""")


def test_the_result_of_an_earlier_version_is_read():
    records = records_of(OLD)
    assert records[0] == Record("em", 5, "test", 0.5, 0.25, 0.75, None)
    assert find(records, "em", condition=NOT_RETRIEVED) == Record(
        "em", 5, "test", None, None, None, None, NOT_RETRIEVED
    )
    assert {k: each.value for k, each in by_k(records, "em").items()} == {1: 0.25, 5: 0.5}
    assert find(records, "recall", 1) == Record("recall", 1, "test", 0.75, 0.5, 1.0, None)
    assert find(records, "recall", 5, BM25) == Record("recall", 5, "test", 0.875, 0.75, 1.0, None, BM25)
    cells = swap_cells(records)
    assert {(a, i): each.value for a, row in cells.items() for i, each in row.items()} == {
        ("2016", "2016"): 0.9,
        ("2016", "2018"): 0.1,
        ("2018", "2016"): 0.2,
        ("2018", "2018"): 0.8,
    }
    assert len(records) == len(set(records)) == 3 + 2 + 2 + 2 + 4  # K = 5 of em and f1 once


def test_a_closed_book_of_an_earlier_version_has_no_k():
    old = {"split": "dev", "n_docs": 1, "em": 0.5, "intervals": {"em": [0, 1]}, "intervals_at": {}}
    assert records_of(old) == [Record("em", None, "dev", 0.5, 0, 1, None)]
    assert own_k(old) is None


def test_training_metrics_of_both_versions():
    assert training_metrics({"figures": {"dev/em": 0.5}}) == {"dev/em": 0.5}
    assert training_metrics({"metrics": {"dev/em": None}}) == {"dev/em": None}


def test_records_come_back_from_json():
    measured = Record.of("em", mean_with_interval([1.0, float("nan"), 0.0, 1.0]), 5, "test")
    nothing = Record.of("f1", mean_with_interval([float("nan")]), 5, "test", "a condition")
    assert (measured.n, measured.value, nothing) == (
        3,
        pytest.approx(2 / 3),
        Record("f1", 5, "test", None, None, None, 0, "a condition"),
    )
    written = json.dumps({"metrics": [each.plain() for each in (measured, nothing)]}, allow_nan=False)
    assert records_of(json.loads(written)) == [measured, nothing]


def test_the_best_k_is_the_smallest_of_the_best_and_needs_two():
    def swept(**values):
        return [Record("em", int(k[1:]), "test", v, None, None, 9) for k, v in values.items()]

    assert best_k(swept(k10=0.5, k5=0.5, k1=0.25), "em") == 5
    assert best_k(swept(k5=0.5, k10=None), "em") is None


def result(*records: Record, n_docs: int | None = 5) -> dict:
    written = {"split": "test", "n_docs": n_docs, "questions": 40, "metrics": [r.plain() for r in records]}
    return written if n_docs is None else written | {"index": {"type": "Flat", "passages": 7}}


MEASURED = result(
    Record("em", 5, "test", 0.5, 0.25, 0.75, 24),
    Record("em", 5, "test", 0.25, 0.0, 0.5, 4, NOT_RETRIEVED),
    Record("em", 10, "test", 0.625, 0.5, 0.75, 24),
    Record("recall", 5, "test", 0.75, 0.5, 1.0, 36),
    Record("recall", 5, "test", 0.5, 0.25, 0.75, 36, BM25),
    Record("em", 5, "leaders", 0.875, 0.75, 1.0, 70, swapped("2016", "2018")),
)
CELLS = [
    Cell("t", "r", "c", "em", "test", 44.5),
    Cell("t", "r", "c", "em", "dev", 40.0),  # another split's goes behind
    Cell("t", "r", "c", "em_best_k", "test", 50),
    Cell("t", "r", "c", "em_not_retrieved", "dev", 11.8),
    Cell("t", "r", "c", "hot_swap@20162018", "test", 12),
    Cell("t", "r", "c", "bleu_1", "test", 1.0),  # which was not measured
]


def test_n_and_the_paper_stand_beside_each_metric():
    rows_of = {section.title: section.rows for section in sections(MEASURED, CELLS)}
    assert rows_of == {
        "Answers": [
            ["exact match", "0.500", "0.250 – 0.750", "24", "0.445", "+0.055", ""],
            ["exact match, answer not retrieved", "0.250", "0.000 – 0.500", "4", "0.118 (dev)", "+0.132", ""],
        ],
        "Retrieval": [["recall@5", "0.750", "0.500 – 1.000", "36", "", "", "0.500"]],
        "More passages at test time": [
            ["exact match at K = 5", "0.500", "0.250 – 0.750", "24", "", "", ""],
            ["exact match at K = 10", "0.625", "0.500 – 0.750", "24", "", "", ""],
            ["K of the highest exact match", "10", "–", "24", "50", "−40", ""],
        ],
        "Hot-swap": [
            ["exact match, asked 2016, indexed 2018", "0.875", "0.750 – 1.000", "70", "0.120", "+0.755", ""]
        ],
    }


def test_the_terminal_and_markdown_say_the_same():
    parts = sections(MEASURED, CELLS)
    console = Console(file=StringIO(), width=160)
    console.print(terminal("a title", parts, [("index", "Flat")]))
    printed = console.file.getvalue()  # type: ignore[attr-defined]
    for section in parts:
        for line in markdown(section)[2:]:
            cells = [cell for cell in line.strip("| ").split(" | ") if cell.strip()]
            assert any(all(cell in row for cell in cells) for row in printed.splitlines()), line
    assert markdown(parts[1])[0] == "| metric | value | 95 % interval | n | BM25 |"


def test_a_closed_book_has_no_k():
    closed = result(Record("em", None, "test", 0.5, 0.25, 0.75, 24), n_docs=None)
    assert sections(closed)[0].rows[0][:4] == ["exact match", "0.500", "0.250 – 0.750", "24"]
    assert sweeps_of(records_of(closed)) == {}


def test_cells_of_the_paper_in_their_units():
    records = records_of(MEASURED)
    assert [cell.ours(records) for cell in CELLS] == [50.0, 50.0, 10, 25.0, 87.5, None]
    assert Cell("t", "r", "c", "recall@5", "test", 1.0).ours(records) == 75.0
    assert Cell("t", "r", "c", "recall@20", "test", 1.0).ours(records) is None


def test_contrast_as_the_standard_defines_it():
    assert contrast((0, 0, 0), (1, 1, 1)) == pytest.approx(21)
    assert contrast((1, 1, 1), (0x77 / 255,) * 3) == pytest.approx(4.48, abs=0.005)  # WCAG's well-known #777
    shades = [(r / 10, g / 10, b / 10) for r in range(11) for g in range(11) for b in range(11)]
    for shade in shades:
        text = (0, 0, 0) if text_on(shade) == "#000000" else (1, 1, 1)
        assert contrast(shade, text) >= LEAST
