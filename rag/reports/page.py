"""What an analysis gives, and how it is written: a table, a picture, and the words and examples beside them."""

import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rag.files import remove_leftovers, write_aside
from rag.safe_text import fenced
from rag.safe_text import markdown as escaped

if TYPE_CHECKING:  # pandas and matplotlib are imported by what draws, not by what only writes a table
    import pandas as pd
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Analysis:
    """One look at a run. text: what was measured, and how to read it, in Markdown."""

    title: str
    text: str
    table: "pd.DataFrame"
    figure: "Figure"
    examples: "pd.DataFrame | None" = None

    def markdown(self, picture: str, command: Sequence[str]) -> str:
        """The page; `picture` is the address of the plot."""
        parts = [
            f"# {self.title}",
            "",
            self.text,
            "",
            f"![{self.title}]({picture})",
            "",
            *of_frame(self.table),
        ]
        if self.examples is not None and len(self.examples):
            parts += ["", "## Examples", "", *of_frame(self.examples)]
        return "\n".join([*parts, "", "## Command", "", *of_command(command)]) + "\n"

    def write(self, folder: Path, name: str, command: Sequence[str]) -> Path:
        """Write `name`.png and `name`.md into `folder` and return the path of the latter."""
        from rag.reports import plots

        remove_leftovers(folder, f"{name}.*")
        plots.save(self.figure, folder / f"{name}.png")
        page = folder / f"{name}.md"
        with write_aside(page) as aside:
            aside.write_text(self.markdown(f"{name}.png", command), encoding="utf-8")
        return page


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """The lines of a Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return [f"| {' | '.join(cells)} |" for cells in lines]


def of_frame(frame: "pd.DataFrame") -> list[str]:
    """A table with its index as the first column, where that has a name."""
    if frame.index.name is not None:
        frame = frame.reset_index()
    rows = [[escaped(cell(value)) for value in row] for row in frame.itertuples(index=False)]
    return table([escaped(str(name)) for name in frame.columns], rows)


def cell(value: Any) -> str:
    """A number as it stands in a table: three decimals, thousands apart, a dash where there is none."""
    if value is None or value != value:  # NaN
        return "–"
    if isinstance(value, bool) or not isinstance(value, Real):
        return str(value)
    return f"{value:,}" if isinstance(value, Integral) else f"{value:.3f}"


def of_command(command: Sequence[str]) -> list[str]:
    return fenced(shlex.join(command))


def shortened(text: str, length: int) -> str:
    """The text, or its beginning and an ellipsis where it is longer than `length` characters."""
    return text if len(text) <= length else text[: length - 1].rstrip() + "…"


def excerpt(text: str, words: Sequence[str], length: int) -> str:
    """`length` characters of the text around the first of the words that occurs, or its beginning."""
    first_match = next((position for word in words if (position := text.lower().find(word.lower())) >= 0), 0)
    start = max(0, min(first_match - length // 3, len(text) - length))
    return "…" * (start > 0) + shortened(text[start:], length)
