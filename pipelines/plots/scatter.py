"""Explained variance against L0 of the SAEs of a layer: the plot of a run's page, and of ``pipelines evaluate``."""

from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

from pipelines.plots.style import INK, LOWEST, STYLE, WIDTH, Axes, legend_above, look
from pipelines.runs import FinishedRun

_CURVE_SUBSETS = (
    ("content", "content", "o"),
    ("class:user", "user", "s"),
    ("class:assistant", "assistant", "^"),
    ("special_without_first", "special, not FIRST", "D"),
    ("class:turn_end", "turn end", "X"),
)
"""Subset of eval.json, its name in the plot, its marker."""

def explained_variance_l0(runs: Sequence[FinishedRun]) -> Figure:
    """Explained variance against L0: one point an SAE on content rows, and each SAE's curve over subsets."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 4.1), layout="constrained")
        left, right = figure.subplots(1, 2)
        headlines = [run.figure("content", "explained_variance") or 0.0 for run in runs]
        for number, run in enumerate(runs):
            _draw_headline(left, run, look(number), label_above=headlines[number] > min(headlines))
            _draw_subsets(right, run, look(number))
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
        legend_above(figure, left)
        right.legend(fontsize=8, loc="best")
    return figure


def _draw_headline(axes: Axes, run: FinishedRun, style: dict[str, Any], label_above: bool) -> None:
    l0, variance = run.figure("content", "l0"), run.figure("content", "explained_variance")
    if l0 is None or variance is None:
        return
    axes.plot([l0], [max(variance, LOWEST)], marker=style["marker"], color=style["color"], markersize=9,
              linestyle=style["linestyle"], markeredgecolor=INK, label=run.label)
    axes.annotate(f"{variance:.3f} at {l0:.1f}", (l0, max(variance, LOWEST)), textcoords="offset points",
                  xytext=(0, 9 if label_above else -18), ha="center", fontsize=9)


def _draw_subsets(axes: Axes, run: FinishedRun, style: dict[str, Any]) -> None:
    points = []
    for subset, _, marker in _CURVE_SUBSETS:
        l0, variance = run.figure(subset, "l0"), run.figure(subset, "explained_variance")
        if l0 is not None and variance is not None:
            points.append((l0, max(variance, LOWEST), marker))
    points.sort()
    axes.plot([x for x, _, _ in points], [y for _, y, _ in points], color=style["color"], linestyle=style["linestyle"],
              linewidth=1.2)
    for x, y, marker in points:
        axes.plot([x], [y], marker=marker, color=style["color"], markersize=6, markeredgecolor=INK,
                  markeredgewidth=0.6)
