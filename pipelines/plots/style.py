"""How plots look, and how they are written.

Figures are made without pyplot, so that nothing global is changed, and their SVG and PNG are functions of the data.
"""

import base64
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from shared import storage

STYLE = {
    "font.size": 10.0,
    "font.family": "sans-serif",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#555555",
    "axes.labelcolor": "#222222",
    "axes.titlesize": 10.5,
    "axes.titlelocation": "left",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.8,
    "legend.frameon": False,
    "legend.handlelength": 3.4,
    "lines.linewidth": 1.6,
    "svg.hashsalt": "sae-granary",  # element ids would be random otherwise
}

INK = "#222222"

# Dark, middle and light by turns, so that neighbours differ in grey too; markers and lines differ besides.
LOOKS: tuple[dict[str, Any], ...] = (
    {"color": "#16425b", "marker": "o", "linestyle": "-"},
    {"color": "#d1495b", "marker": "s", "linestyle": "--"},
    {"color": "#8fb8a8", "marker": "^", "linestyle": "-."},
    {"color": "#6d597a", "marker": "D", "linestyle": ":"},
    {"color": "#e0a458", "marker": "v", "linestyle": (0, (6, 1, 1, 1, 1, 1))},
    {"color": "#1c1c1c", "marker": "X", "linestyle": (0, (1, 1))},
    {"color": "#5b9bd5", "marker": "P", "linestyle": (0, (9, 2))},
    {"color": "#b5b5b5", "marker": "*", "linestyle": "-"},
)

WIDTH = 9.2
"""Inches: the page's width."""

LOWEST = -0.05
"""Explained variance below this is drawn here: an SAE that failed must not flatten the others."""

_LEGEND_LINE = 0.19
"""Inches of a line of a legend."""

Axes = Any
"""matplotlib is not typed here."""


def look(number: int) -> dict[str, Any]:
    """Colour, marker and line of the series of a number, the same in all plots of a page."""
    return LOOKS[number % len(LOOKS)]


def legend_columns(labels: Sequence[str]) -> int:
    """How many columns of labels fit over a plot of `WIDTH`, at 9 points."""
    return max(1, min(len(labels), int(WIDTH * 14 / (max(map(len, labels), default=1) + 9))))


def legend_above(figure: Figure, axes: Axes) -> None:
    """A legend over the whole figure, which grows by its lines but for the first."""
    handles, labels = axes.get_legend_handles_labels()
    columns = legend_columns(labels)
    width, height = figure.get_size_inches()
    figure.set_size_inches(width, height + _LEGEND_LINE * max(0, -(-len(labels) // columns) - 1))
    figure.legend(handles, labels, loc="outside upper left", fontsize=9, ncols=columns)


def plain_log(axis: Any) -> None:
    """Ticks at 1, 2 and 5 of every power of ten, or at the powers where there are many, written as plain numbers."""
    low, high = axis.get_view_interval()
    few = high < 1e3 * low
    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if few else (1.0,)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}" if 1e-4 <= value < 1e6 else f"{value:.0e}"))
    axis.set_minor_formatter(NullFormatter())


def as_data_uri(figure: Figure) -> str:
    """The figure as an SVG data URI for an ``<img>``."""
    with mpl.rc_context(STYLE):
        buffer = io.BytesIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return "data:image/svg+xml;base64," + base64.b64encode(buffer.getvalue()).decode()


def write_png(figure: Figure, path: Path) -> None:
    """Write the figure as a PNG file of 150 dots an inch."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150, metadata={"Software": None})
    storage.write_file(path, buffer.getvalue())
