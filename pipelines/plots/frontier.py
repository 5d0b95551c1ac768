"""Frontiers: what is kept of a layer, or of the model's predictions, against the number of active latents."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

from pipelines.plots.series import Point
from pipelines.plots.style import INK, STYLE, WIDTH, Axes, legend_above, look


@dataclass
class Curve:
    """SAEs, or sets of them, that differ in sparsity alone."""

    label: str
    number: int
    """Which look it has."""
    points: list[tuple[float, Point]] = field(default_factory=list)
    """L0 and figure of each set."""
    singles: list[tuple[float, float]] = field(default_factory=list)
    """L0 and figure of each SAE of sets of several."""


@dataclass(frozen=True)
class FrontierPanel:
    """One pair of axes."""

    title: str
    axis: str
    curves: Sequence[Curve]


def frontier(panels: Sequence[FrontierPanel]) -> Figure:
    """A panel for each figure: marks with interval bars, joined where they differ in sparsity alone."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 4.3), layout="constrained")
        for axes, panel in zip(np.atleast_1d(figure.subplots(1, len(panels))), panels, strict=True):
            for curve in panel.curves:
                _draw(axes, curve)
            axes.set_title(panel.title)
            axes.set_xlabel("L0: active latents per token")
            axes.set_ylabel(panel.axis)
            _scale(axes, [l0 for curve in panel.curves for l0, _ in curve.points])
        legend_above(figure, figure.axes[0])
    return figure


def _draw(axes: Axes, curve: Curve) -> None:
    style = look(curve.number)
    points = sorted(curve.points, key=lambda point: point[0])
    for l0, point in points:
        if point.low is not None and point.high is not None:
            axes.plot([l0, l0], [point.low, point.high], color=style["color"], linewidth=1.4, marker="_", markersize=7)
    if curve.singles:
        axes.plot(*zip(*curve.singles, strict=True), linestyle="none", marker=style["marker"], color="none",
                  markeredgecolor=style["color"], markersize=4, markeredgewidth=0.8)
    axes.plot([l0 for l0, _ in points], [point.value for _, point in points], color=style["color"],
              linestyle=style["linestyle"], marker=style["marker"], markersize=8, markeredgecolor=INK,
              markeredgewidth=0.7, label=curve.label)


def _scale(axes: Axes, l0s: Sequence[float]) -> None:
    """A logarithmic axis where L0 differ much; never so near that points of one L0 fill the plot."""
    low, high = min(l0s, default=1.0), max(l0s, default=1.0)
    if low > 0 and high > 2.5 * low:
        axes.set_xscale("log", base=2)
        axes.set_xlim(low / 1.3, high * 1.3)
        axes.xaxis.set_major_locator(LogLocator(base=2, subs=(1.0, 1.5)))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_minor_formatter(NullFormatter())
        return
    middle, reach = (low + high) / 2, max((high - low) * 0.65, 0.12 * (low + high) / 2)
    axes.set_xlim(middle - reach, middle + reach)
