"""What every figure here is drawn with: the colours, and one function a kind of plot.

Each function draws on axes that it is given. Colours are Okabe and Ito's, which the colour-blind can tell apart;
lines differ in their marker as well. Figures are made without pyplot, so that nothing is kept between them.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Colormap, LinearSegmentedColormap
from matplotlib.figure import Figure

from rag.files import write_aside

PALETTE = ("#0072B2", "#009E73", "#E69F00", "#56B4E9", "#CC79A7", "#D55E00", "#F0E442", "#000000")
GREY = "#999999"
MARKERS = "os^vDPX*"
# The models of the paper's comparisons keep their name, colour and marker in all figures.
COLOURS = {
    "closed_book": GREY,
    "bm25": "#E69F00",
    "frozen": "#56B4E9",
    "rag_token": "#009E73",
    "rag_sequence": "#0072B2",
}
NAMES = {
    "closed_book": "closed-book BART",
    "bm25": "RAG-Sequence, BM25",
    "frozen": "RAG-Sequence, frozen",
    "rag_token": "RAG-Token",
    "rag_sequence": "RAG-Sequence",
}
# From white to a blue on which white figures can still be read.
BLUES: Colormap = LinearSegmentedColormap.from_list("blues", ["#FFFFFF", "#0072B2"])
DPI = 120


def new_figure(width: float, height: float, rows: int = 1, columns: int = 1) -> tuple[Figure, np.ndarray]:
    """A figure of that many inches and its (rows, columns) axes."""
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False)


def save(figure: Figure, path: Path) -> None:
    """Write a PNG, aside and renamed."""
    with write_aside(path) as aside:
        figure.savefig(aside, dpi=DPI, format="png")


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


def grouped_bars(
    axes: Axes, groups: Sequence[str], series: Mapping[str, Sequence[float]], colours: Sequence[str]
) -> None:
    """For each group one bar of each series, with its value above it; scores from 0 to 1."""
    width = 0.8 / len(series)
    for number, ((name, values), colour) in enumerate(zip(series.items(), colours, strict=True)):
        places = [group + (number - (len(series) - 1) / 2) * width for group in range(len(groups))]
        axes.bar(places, values, width * 0.92, label=name, color=colour)
        for place, value in zip(places, values, strict=True):
            if np.isfinite(value):
                axes.text(place, value + 0.015, f"{value:.2f}", ha="center", fontsize=8)
    axes.set_xticks(range(len(groups)), list(groups))
    axes.set_ylim(0, 1.28)
    axes.set_yticks(np.arange(0, 1.01, 0.2))
    axes.legend(loc="upper left", ncols=min(3, len(series)), frameon=False, fontsize=9)


def against_k(axes: Axes, curves: Mapping[str, Mapping[str, float]]) -> None:
    """Scores from 0 to 1 against the number of passages K: {model: {"1": …, "5": …}}, one line a model."""
    for number, (name, by_k) in enumerate(curves.items()):
        axes.plot([int(k) for k in by_k], list(by_k.values()), label=label_of(name), **style_of(name, number))
    shown = sorted({int(k) for by_k in curves.values() for k in by_k})
    axes.set_xscale("log")
    axes.set_xticks(shown, [str(k) for k in shown])
    axes.minorticks_off()
    axes.set(ylim=(0, 1.02), xlabel="passages retrieved, K (logarithmic)")
    axes.grid(axis="y", alpha=0.3)
    axes.legend(loc="lower right", frameon=False, fontsize=9)


def curves(axes: Axes, steps: Mapping[str, tuple[Sequence[float], Sequence[float]]]) -> None:
    """Figures against training steps: {name: (steps, values)}, one line each."""
    for number, (name, (places, values)) in enumerate(steps.items()):
        points = MARKERS[number % len(MARKERS)] if len(values) < 40 else ""
        axes.plot(
            places, values, marker=points, markersize=4, label=name, color=PALETTE[number % len(PALETTE)]
        )
    axes.set_xlabel("training step")
    axes.grid(axis="y", alpha=0.3)
    axes.legend(frameon=False, fontsize=9)


def grid(
    axes: Axes,
    values: Any,
    rows: Sequence[str],
    columns: Sequence[str],
    form: str = "{:.2f}",
    largest: float = 1.0,
    fontsize: float = 9,
) -> Any:
    """A heat map from 0 (white) to `largest` (blue) with the figure in each cell; returns the image."""
    values = np.asarray(values, dtype=float)
    image = axes.imshow(values, vmin=0, vmax=largest or 1.0, cmap=BLUES, aspect="auto")
    for (row, column), value in np.ndenumerate(values):
        if np.isfinite(value):
            colour = "white" if value > 0.55 * largest else "black"
            text = form.format(value)
            axes.text(column, row, text, ha="center", va="center", color=colour, fontsize=fontsize)
    axes.set_xticks(range(len(columns)), list(columns))
    axes.set_yticks(range(len(rows)), list(rows))
    axes.tick_params(length=0)
    return image


def swap_grid(axes: Axes, cells: Mapping[str, Mapping[str, float]]) -> None:
    """Section 4.5's 2 × 2 of exact match: {edition asked about: {edition indexed: …}}."""
    indexed = list(next(iter(cells.values())))
    grid(
        axes,
        [[own[name] for name in indexed] for own in cells.values()],
        [f"asked about {name}" for name in cells],
        [f"edition {name} indexed" for name in indexed],
        fontsize=16,
    )


def cells_of(by_pair: dict[str, float], editions: Sequence[str]) -> dict[str, dict[str, float]]:
    """{"AB": …}, asked and indexed, as {asked: {indexed: …}}."""
    return {asked: {indexed: by_pair[asked + indexed] for indexed in editions} for asked in editions}
