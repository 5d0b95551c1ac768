"""The plots of a report: readable in grey, embedded in a page or written as PNG.

Figures are made without pyplot, so that nothing global is changed, and their SVG is a function of the data.
"""

import base64
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from pipelines.runs import FinishedRun
from shared import storage

_STYLE = {
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
    "hatch.linewidth": 0.6,
    "legend.frameon": False,
    "lines.linewidth": 1.6,
    "svg.hashsalt": "sae-granary",  # element ids would be random otherwise
}

# Dark, middle and light, so that they differ in grey too; markers, lines and hatches differ besides.
_LOOKS: tuple[dict[str, str], ...] = (
    {"color": "#16425b", "marker": "o", "linestyle": "-", "hatch": ""},
    {"color": "#d1495b", "marker": "s", "linestyle": "--", "hatch": "////"},
    {"color": "#8fb8a8", "marker": "^", "linestyle": "-.", "hatch": "...."},
    {"color": "#6d597a", "marker": "D", "linestyle": ":", "hatch": "xxxx"},
    {"color": "#e0a458", "marker": "v", "linestyle": "-", "hatch": "\\\\\\\\"},
)

_CURVE_SUBSETS = (
    ("content", "content", "o"),
    ("class:user", "user", "s"),
    ("class:assistant", "assistant", "^"),
    ("special_without_first", "special, not FIRST", "D"),
    ("class:turn_end", "turn end", "X"),
)
"""Subset of eval.json, its name in the plot, its marker."""

LOWEST = -0.05
"""Explained variance below this is drawn here: an SAE that failed must not flatten the others."""

Axes = Any
"""matplotlib is not typed here."""


def _look(number: int) -> dict[str, str]:
    return _LOOKS[number % len(_LOOKS)]


def explained_variance_l0(runs: Sequence[FinishedRun]) -> Figure:
    """Explained variance against L0: one point an SAE on content rows, and each SAE's curve over subsets."""
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(9.2, 4.1), layout="constrained")
        left, right = figure.subplots(1, 2)
        headlines = [run.figure("content", "explained_variance") or 0.0 for run in runs]
        for number, run in enumerate(runs):
            _draw_headline(left, run, _look(number), label_above=headlines[number] > min(headlines))
            _draw_subsets(right, run, _look(number))
        left.set_title("content tokens: one point an SAE")
        right.set_title("the same SAEs on several subsets")
        for axes in (left, right):
            axes.set_xlabel("L0: active latents per token")
            axes.set_ylabel("explained variance (share of 1)")
            axes.margins(x=0.3 if axes is left else 0.1)
            if axes.dataLim.intervalx[1] > 20 * axes.dataLim.intervalx[0]:
                axes.set_xscale("log")
            lowest, highest = axes.dataLim.intervaly
            axes.set_ylim(min(lowest, highest) - 0.12, min(1.02, highest + 0.12))
        for _, name, marker in _CURVE_SUBSETS:
            right.plot([], [], linestyle="none", marker=marker, color="#555555", label=name)
        figure.legend(*left.get_legend_handles_labels(), loc="outside upper left", fontsize=9, ncols=3)
        right.legend(fontsize=8, loc="best")
    return figure


def _draw_headline(axes: Axes, run: FinishedRun, look: dict[str, str], label_above: bool) -> None:
    l0, variance = run.figure("content", "l0"), run.figure("content", "explained_variance")
    if l0 is None or variance is None:
        return
    axes.plot([l0], [max(variance, LOWEST)], marker=look["marker"], color=look["color"], markersize=9,
              linestyle=look["linestyle"], markeredgecolor="#222222", label=run.label)
    axes.annotate(f"{variance:.3f} at {l0:.1f}", (l0, max(variance, LOWEST)), textcoords="offset points",
                  xytext=(0, 9 if label_above else -18), ha="center", fontsize=9)


def _draw_subsets(axes: Axes, run: FinishedRun, look: dict[str, str]) -> None:
    points = []
    for subset, _, marker in _CURVE_SUBSETS:
        l0, variance = run.figure(subset, "l0"), run.figure(subset, "explained_variance")
        if l0 is not None and variance is not None:
            points.append((l0, max(variance, LOWEST), marker))
    points.sort()
    axes.plot([x for x, _, _ in points], [y for _, y, _ in points], color=look["color"], linestyle=look["linestyle"],
              linewidth=1.2)
    for x, y, marker in points:
        axes.plot([x], [y], marker=marker, color=look["color"], markersize=6, markeredgecolor="#222222",
                  markeredgewidth=0.6)


def explained_variance_by_class(runs: Sequence[FinishedRun]) -> Figure:
    """Explained variance of every token class as grouped bars, each class centred on its own mean."""
    subsets = runs[0].evaluation["subsets"]
    classes = [name for name in subsets if name.startswith("class:")]
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(9.2, 0.9 + 0.2 * len(classes) * (len(runs) + 1)), layout="constrained")
        axes = figure.subplots()
        height = 0.8 / len(runs)
        places = np.arange(len(classes), dtype=np.float64)
        for number, run in enumerate(runs):
            _draw_bars(axes, run, classes, places + (number - (len(runs) - 1) / 2) * height, height, _look(number))
        names = [f"{name.removeprefix('class:').replace('_', ' ')}  ({subsets[name]['num_rows']:,})"
                 for name in classes]
        axes.set_yticks(places, names)
        axes.invert_yaxis()
        axes.set_xlim(0, 1.12)
        axes.set_xticks(np.linspace(0, 1, 6))
        axes.set_xlabel("explained variance (share of 1) of the class's held-out tokens")
        axes.grid(axis="y", visible=False)
        figure.legend(*axes.get_legend_handles_labels(), loc="outside upper left", ncols=3, fontsize=9)
    return figure


def _draw_bars(axes: Axes, run: FinishedRun, classes: Sequence[str], places: Any, height: float,
               look: dict[str, str]) -> None:
    values = [run.figure(name, "explained_variance") for name in classes]
    lengths = [min(1.0, max(0.0, value)) if value is not None else 0.0 for value in values]
    axes.barh(places, lengths, height * 0.92, label=run.label, color=look["color"], hatch=look["hatch"],
              edgecolor="white", linewidth=0)
    for place, length, value in zip(places, lengths, values, strict=True):
        text = "not defined" if value is None else f"{value:.2f}"
        axes.annotate(text, (length, place), textcoords="offset points", xytext=(3, 0), va="center", fontsize=7.5)


def training_curves(runs: Sequence[FinishedRun]) -> Figure:
    """Loss, explained variance and L0 of the training batches against the tokens seen."""
    panels = (("loss", "loss (own units of each SAE)", True),
              ("explained_variance", "explained variance (share of 1)", False),
              ("l0", "L0: active latents per token", True))
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(9.2, 3.4), layout="constrained")
        for axes, (metric, title, logarithmic) in zip(figure.subplots(1, len(panels)), panels, strict=True):
            for number, run in enumerate(runs):
                look = _look(number)
                x = [line["tokens"] for line in run.metrics if line.get(metric) is not None]
                y = [line[metric] for line in run.metrics if line.get(metric) is not None]
                axes.plot(np.array(x) / 1000, y, label=run.label, color=look["color"], linestyle=look["linestyle"])
            axes.set_title(title)
            axes.set_xlabel("thousand tokens seen")
            if logarithmic:
                axes.set_yscale("log")
                axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
                axes.yaxis.set_major_formatter(lambda value, _: f"{value:,g}" if value < 1e6 else f"{value:.0e}")
                axes.yaxis.set_minor_formatter(NullFormatter())
        axes = figure.axes[1]
        axes.set_ylim(bottom=max(0.0, axes.get_ylim()[0]), top=1.0)
        figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=9)
    return figure


def as_data_uri(figure: Figure) -> str:
    """The figure as an SVG data URI for an ``<img>``."""
    with mpl.rc_context(_STYLE):
        buffer = io.BytesIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return "data:image/svg+xml;base64," + base64.b64encode(buffer.getvalue()).decode()


def write_png(figure: Figure, path: Path) -> None:
    """Write the figure as a PNG file of 150 dots an inch."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150, metadata={"Software": None})
    storage.write_file(path, buffer.getvalue())
