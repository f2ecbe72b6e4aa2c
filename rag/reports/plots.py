"""What every picture is drawn with: the colours, and one function a kind of plot.

Each function draws on axes that it is given. Colours are Okabe and Ito's, which the colour-blind can tell apart;
lines differ in their marker and width as well, so that one that lies on another is still seen, and legends stand
below the axes, where no curve is. Pictures are made without pyplot, so that nothing is kept between them.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rcParams
from matplotlib.axes import Axes
from matplotlib.colors import Colormap, LinearSegmentedColormap, to_rgb
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.transforms import Bbox

from rag.files import write_aside
from rag.metrics import refusal
from rag.metrics.record import Record
from rag.metrics.refusal import Scored
from rag.reports.contrast import text_on
from rag.reports.result_table import label_of as metric_label
from rag.safe_text import printable

rcParams["text.parse_math"] = False  # a question about $5 is no formula

PALETTE = ("#0072B2", "#009E73", "#E69F00", "#56B4E9", "#CC79A7", "#D55E00", "#F0E442", "#000000")
GREY = "#999999"
MARKERS = "os^vDPX*"
# The models of the paper's comparisons keep their name, colour and marker in all pictures.
COLOURS = {
    "closed_book": GREY,
    "bm25": "#E69F00",
    "frozen": "#56B4E9",
    "rag_token": "#009E73",
    "rag_sequence": "#0072B2",
    "hybrid": "#D55E00",
    "gold": "#CC79A7",
}
NAMES = {
    "closed_book": "closed-book BART",
    "bm25": "RAG-Sequence, BM25",
    "frozen": "RAG-Sequence, frozen",
    "rag_token": "RAG-Token",
    "rag_sequence": "RAG-Sequence",
    "hybrid": "RAG-Sequence, hybrid",
    "gold": "gold passage given",
}
BLUES: Colormap = LinearSegmentedColormap.from_list("blues", ["#FFFFFF", "#6FB1DC", "#08306B"])
DPI = 120


def new_figure(width: float, height: float, rows: int = 1, columns: int = 1) -> tuple[Figure, np.ndarray]:
    """A figure of that many inches and its (rows, columns) axes."""
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False)


def save(figure: Figure, path: Path) -> None:
    """Write a PNG, aside and renamed."""
    for axis in (each for axes in figure.axes for each in (axes.xaxis, axes.yaxis)):
        labels = [label.get_text() for label in axis.get_ticklabels()]
        if (drawn := list(map(_drawn, labels))) != labels:
            axis.set_ticks(axis.get_ticklocs(), drawn)
    for text in figure.findobj(Text):
        text.set_text(_drawn(text.get_text()))
    with write_aside(path) as aside:
        figure.savefig(aside, dpi=DPI, format="png")


def _drawn(text: str) -> str:
    """Without what no font has, and half surrogate pairs, at which drawing fails."""
    return "\n".join(map(printable, text.split("\n")))


def label_of(name: str) -> str:
    return NAMES.get(name, name)


def style_of(name: str, number: int) -> dict[str, Any]:
    """Colour and marker of a model: its own where it is one of the paper's, otherwise by its number."""
    known = list(NAMES).index(name) if name in NAMES else number
    return {
        "color": COLOURS.get(name, PALETTE[number % len(PALETTE)]),
        "marker": MARKERS[known % len(MARKERS)],
    }


def interval_bars(
    axes: Axes,
    labels: Sequence[str],
    values: Sequence[float],
    intervals: Sequence[Sequence[float]],
    colours: Sequence[str],
) -> None:
    """Horizontal bars of scores from 0 to 1, each with its interval and its value."""
    errors = [
        [max(0.0, value - low) for value, (low, _) in zip(values, intervals, strict=True)],
        [max(0.0, high - value) for value, (_, high) in zip(values, intervals, strict=True)],
    ]
    axes.barh(range(len(values)), values, xerr=errors, capsize=3, color=list(colours), height=0.65)
    axes.set_yticks(range(len(values)), list(labels))
    for position, (value, error) in enumerate(zip(values, errors[1], strict=True)):
        axes.text(value + error + 0.02, position, f"{value:.2f}", va="center")
    axes.set_xlim(0, 1.15)
    axes.set_xticks(np.arange(0, 1.01, 0.2))
    _thin(axes, len(values))


def grouped_bars(
    axes: Axes, groups: Sequence[str], series: Mapping[str, Sequence[float]], colours: Sequence[str]
) -> None:
    """For each group one bar of each series, with its value above it; scores from 0 to 1."""
    width = 0.8 / len(series)
    for number, ((name, values), colour) in enumerate(zip(series.items(), colours, strict=True)):
        positions = [group + (number - (len(series) - 1) / 2) * width for group in range(len(groups))]
        axes.bar(positions, values, width * 0.92, label=name, color=colour)
        for position, value in zip(positions, values, strict=True):
            if np.isfinite(value):
                axes.text(
                    position, value + 0.015, f"{value:.2f}", ha="center", fontsize=8 if len(series) < 4 else 6
                )
    axes.set_xticks(range(len(groups)), list(groups))
    axes.set_ylim(0, 1.28)
    axes.set_yticks(np.arange(0, 1.01, 0.2))
    axes.legend(loc="upper left", ncols=len(series) if len(series) < 4 else 2, frameon=False, fontsize=9)


def shares(axes: Axes, label: str) -> None:
    """The y axis of values from 0 to 1, with room for the markers at both ends."""
    axes.set_ylim(-0.03, 1.05)
    axes.set_yticks(np.arange(0, 1.01, 0.2))
    axes.set_ylabel(label)
    axes.grid(axis="y", alpha=0.3)


def legend_below(axes: Axes, entries: int) -> None:
    """The legend under the x axis, in two columns; none for a single entry that says nothing."""
    columns = 1 if entries == 1 else 2
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.17), ncols=columns, frameon=False, fontsize=9)


def _thin(axes: Axes, bars: int) -> None:
    """Room for four horizontal bars, so that one alone is not as high as the picture."""
    beside = max(0.0, (4 - bars) / 2)
    axes.set_ylim(-0.5 - beside, bars - 0.5 + beside)


def _line(number: int, count: int) -> dict[str, Any]:
    """Width and marker of one of `count` lines: those drawn later are thinner, and lie on the earlier ones."""
    later = number / (count - 1) if count > 1 else 0.6
    return {"linewidth": 3.2 - 1.9 * later, "markersize": 9 - 4.5 * later}


def against_k(
    axes: Axes, lines: Mapping[str, Mapping[int, float | None]], label: str = "share of questions"
) -> None:
    """Values from 0 to 1 against the number of passages K: {model: {1: …, 5: …}}, one line a model."""
    lines = {name: {k: v for k, v in of_one.items() if v is not None} for name, of_one in lines.items()}
    lines = {name: of_one for name, of_one in lines.items() if of_one}
    shares(axes, label)
    if not lines:
        return
    shown = sorted({k for of_one in lines.values() for k in of_one})
    beside = (shown[-1] / shown[0]) ** 0.008  # by how much the markers of two lines at one K are set apart
    for number, (name, of_one) in enumerate(lines.items()):
        style = style_of(name, number) | _line(number, len(lines))
        positions = [k * beside ** (number - (len(lines) - 1) / 2) for k in of_one]
        axes.plot(positions, list(of_one.values()), label=label_of(name), **style)
    axes.set_xscale("log")
    axes.set_xticks(shown, [str(k) for k in shown])
    axes.minorticks_off()
    axes.set_xlabel("passages, K (logarithmic)")
    legend_below(axes, len(lines))


def curves(axes: Axes, steps: Mapping[str, tuple[Sequence[float], Sequence[float]]]) -> None:
    """Values against training steps: {name: (steps, values)}, one line each; bars where each has one value only."""
    if all(len(values) == 1 for _, values in steps.values()):
        bars(axes, {name: values[0] for name, (_, values) in steps.items()}, "{:.3g}")
        return
    for number, (name, (steps_of_curve, values)) in enumerate(steps.items()):
        points = MARKERS[number % len(MARKERS)] if len(values) < 40 else ""
        style: dict[str, Any] = _line(number, len(steps)) if points else {"linewidth": 1.5}
        axes.plot(
            steps_of_curve, values, marker=points, label=name, color=PALETTE[number % len(PALETTE)], **style
        )
    axes.set_xlabel("training step")
    axes.grid(axis="y", alpha=0.3)
    legend_below(axes, len(steps))


def diversity_against_support(
    axes: Axes, points: Mapping[str, tuple[float, float]], colours: Sequence[str]
) -> None:
    """{name: (distinct trigrams, supported trigrams)}, each from 0 to 1, a point with its name."""
    for number, (name, (distinct, supported)) in enumerate(points.items()):
        axes.plot(
            distinct,
            supported,
            MARKERS[number % len(MARKERS)],
            color=colours[number % len(colours)],
            label=name,
            markersize=8,
        )
    axes.grid(alpha=0.3)
    axes.margins(0.15)  # around the points alone: their differences are what one looks for
    axes.set_ylabel("trigrams that the passages hold")
    axes.set_xlabel("trigrams that are distinct (both as shares)")
    legend_below(axes, len(points))


def risk_coverage(axes: Axes, scored: Mapping[str, Scored]) -> None:
    """The share of wrong answers against the share of questions that are answered, a line for each score; the lowest
    that any score could reach is grey."""
    for number, (name, each) in enumerate(scored.items()):
        coverage, risk = refusal.risk_coverage(each)
        axes.plot(coverage, risk, label=name, color=PALETTE[number], linewidth=2.6 if number == 0 else 1.2)
    right = next(iter(scored.values())).right
    perfect = refusal.Scored(right.astype(float), next(iter(scored.values())).answerable, right)
    coverage, risk = refusal.risk_coverage(perfect)
    axes.plot([0, *coverage], [0, *risk], label="the best possible", color=GREY, linestyle="dashed")
    shares(axes, "wrong among the answered")
    axes.set_xlim(0, 1.02)
    axes.set_xlabel("questions answered, best score first")
    legend_below(axes, 1 + len(scored))


def refusals(axes: Axes, scored: Mapping[str, Scored], coverage: float) -> None:
    """How many questions without an answer are refused against how many of the others are answered."""
    asked = np.linspace(0, 1, 101)[1:]
    for number, (name, each) in enumerate(scored.items()):
        refused = [refusal.refused_below(each, refusal.threshold_for(each, share)) for share in asked]
        axes.plot(asked, refused, label=name, color=PALETTE[number], linewidth=2.6 if number == 0 else 1.2)
    axes.axvline(coverage, color=GREY, linestyle="dotted")
    shares(axes, "refused of those without an answer")
    axes.set_xlim(0, 1.02)
    axes.set_xlabel("answered of those with one")
    legend_below(axes, len(scored))


def bars(axes: Axes, values: Mapping[str, float], form: str) -> None:
    """Horizontal bars from 0, the first on top, each with its value."""
    axes.barh(range(len(values)), list(values.values()), color=PALETTE[0], height=0.65)
    axes.set_yticks(range(len(values)), list(values))
    _thin(axes, len(values))
    axes.invert_yaxis()
    largest = max([0.0, *(value for value in values.values() if np.isfinite(value))])
    for position, value in enumerate(values.values()):
        axes.text(max(value, 0) + 0.02 * largest, position, form.format(value), va="center")
    axes.set_xlim(0, 1.2 * largest or 1.0)


def sweeps(measured: Mapping[str, Mapping[str, Mapping[int, float]]]) -> Figure:
    """Figure 3: a panel for each metric against K, in percent, a line for each experiment."""
    names = list(dict.fromkeys(name for of_one in measured.values() for name in of_one))
    figure, axes = new_figure(max(4.8, 4.2 * len(names)), 3.8, columns=max(1, len(names)))
    for axis, name in zip(axes[0], names, strict=False):
        lines = {key: of_one[name] for key, of_one in measured.items() if name in of_one}
        against_k(axis, {key: {k: v / 100 for k, v in each.items()} for key, each in lines.items()}, "share")
        axis.set_title(metric_label(name))
    if not names:
        axes[0, 0].set_axis_off()
        axes[0, 0].text(0.5, 0.5, "no run is finished yet", ha="center", va="center")
    return figure


def text_table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]], pale: str) -> Figure:
    """A table of text; cells that hold `pale` are grey."""
    figure, axes = new_figure(2.6 + 1.9 * (len(header) - 1), 1.1 + 0.66 * len(rows))
    only = axes[0, 0]
    only.set_axis_off()
    only.set_title(title, fontsize=11)
    cells = [list(row) for row in rows]
    table = only.table(cellText=cells, colLabels=list(header), cellLoc="center", bbox=Bbox.unit())
    table.auto_set_font_size(False)
    for (row, column), cell in table.get_celld().items():
        cell.set_fontsize(9 if row == 0 or column == 0 else 7.5)
        cell.set_edgecolor("#CCCCCC")
        if row > 0 and column > 0 and pale in cells[row - 1][column]:
            cell.get_text().set_color("#767676")
    return figure


def grid(
    axes: Axes,
    values: Any,
    rows: Sequence[str],
    columns: Sequence[str],
    form: str = "{:.2f}",
    largest: float = 1.0,
    fontsize: float = 9,
) -> Any:
    """A heat map from 0 (white) to `largest` (blue) with the number in each cell; returns the image."""
    values = np.asarray(values, dtype=float)
    image = axes.imshow(values, vmin=0, vmax=largest or 1.0, cmap=BLUES, aspect="auto")
    for (row, column), value in np.ndenumerate(values):
        if np.isfinite(value):
            shade = float(np.asarray(image.norm(value)))  # from 0 to 1
            colour = text_on(to_rgb(image.cmap(shade)))
            text = form.format(value)
            axes.text(column, row, text, ha="center", va="center", color=colour, fontsize=fontsize)
    axes.set_xticks(range(len(columns)), list(columns))
    axes.set_yticks(range(len(rows)), list(rows))
    axes.tick_params(length=0)
    return image


def swap_grid(axes: Axes, cells: Mapping[str, Mapping[str, Record]]) -> None:
    """Section 4.5's 2 × 2 of exact match, as `swap_cells` gives it: {edition asked about: {edition indexed: …}}."""
    indexed = list(next(iter(cells.values())))
    shares = [[of_one[name].value for name in indexed] for of_one in cells.values()]
    counts = {name: next(iter(of_one.values())).n for name, of_one in cells.items()}
    grid(
        axes,
        [[np.nan if share is None else share for share in row] for row in shares],
        [f"asked\nabout {name}\nn = {count:,}" for name, count in counts.items()],
        [f"edition {name} indexed" for name in indexed],
        fontsize=16,
    )
