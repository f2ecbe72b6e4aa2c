"""Section 4.5's table: exact match of each edition's answers over each edition's index."""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from rag.analysis.more_passages import names_of
from rag.analysis.opened import Evaluation
from rag.errors import UserError
from rag.metrics.record import swap_cells
from rag.reports import plots
from rag.reports.page import Analysis


def hot_swap_table(runs: Sequence[Path]) -> Analysis:
    """Exact match of one or more runs with the index exchanged: asked about × indexed (section 4.5)."""
    evaluations = [Evaluation.open(run) for run in runs]
    tables = {
        name: swap_cells(each.records) for name, each in zip(names_of(evaluations), evaluations, strict=True)
    }
    for each, cells in zip(evaluations, tables.values(), strict=True):
        if not cells:
            raise UserError(
                f"{each.folder} was evaluated without a second index: evaluate.py with "
                "hot_swap={questions: FILE, editions: {A: {answers: KEY, index: FOLDER}, B: …}} does it"
            )
    rows = [
        {"model": plots.label_of(name), "asked about": asked, "n": next(iter(row.values())).n}
        | {f"{indexed} indexed": each.value for indexed, each in row.items()}
        for name, cells in tables.items()
        for asked, row in cells.items()
    ]
    figure, axes = plots.new_figure(0.6 + 4.2 * len(tables), 3.4, columns=len(tables))
    for axis, (name, cells) in zip(axes[0], tables.items(), strict=True):
        plots.swap_grid(axis, cells)
        axis.set_title(f"{plots.label_of(name)}: exact match")
    text = (
        "The same questions with the answers of each edition, over the index of each edition; nothing was trained in "
        "between. The paper (heads of state, December 2016 and 2018): 70 % and 68 % where the two agree, 12 % and 4 % "
        "where they do not."
    )
    return Analysis("Hot-swap of the index", text, pd.DataFrame(rows), figure)
