"""Training curves: what metrics.jsonl says against the tokens seen."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from pipelines.plots.style import INK, STYLE, WIDTH, Axes, legend_above, look, plain_log

Lines = Sequence[Mapping[str, float | None]]
"""metrics.jsonl, line by line."""

_PANELS = (("loss", "loss (own units of each SAE)", True),
           ("explained_variance", "explained variance (share of 1)", False),
           ("l0", "L0: active latents per token", True))


@dataclass(frozen=True)
class Training:
    """The runs of one SAE, or of a set over seeds."""

    label: str
    number: int
    """Which look it has."""
    runs: Sequence[Lines]


def training_curves(trained: Sequence[Training]) -> Figure:
    """Loss, explained variance and L0 of the training batches as lines; what was measured on held-out rows as marks."""
    most = max((line["tokens"] or 0 for one in trained for lines in one.runs for line in lines), default=0)
    unit, words = (1e6, "million") if most >= 2e6 else (1e3, "thousand")
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 3.7), layout="constrained")
        for axes, (metric, title, logarithmic) in zip(figure.subplots(1, len(_PANELS)), _PANELS, strict=True):
            for one in trained:
                for place, lines in enumerate(one.runs):
                    _draw(axes, lines, metric, unit, one.number, one.label if place == 0 else None)
            axes.set_title(title)
            axes.set_xlabel(f"{words} tokens seen")
            if logarithmic:
                axes.set_yscale("log")
                plain_log(axes.yaxis)
        axes = figure.axes[1]
        axes.set_ylim(bottom=max(0.0, axes.get_ylim()[0]), top=1.0)
        legend_above(figure, figure.axes[0])
    return figure


def _draw(axes: Axes, lines: Lines, metric: str, unit: float, number: int, label: str | None) -> None:
    style = look(number)
    x, y = _values(lines, metric)
    axes.plot(x / unit, y, color=style["color"], linestyle=style["linestyle"], linewidth=1.4)
    if label is not None:
        axes.plot([], [], color=style["color"], linestyle=style["linestyle"], marker=style["marker"], markersize=6,
                  markeredgecolor=INK, markeredgewidth=0.7, label=label)
    x, y = _values(lines, f"held_out_{metric}")
    axes.plot(x / unit, y, linestyle="none", marker=style["marker"], color=style["color"], markersize=6,
              markeredgecolor=INK, markeredgewidth=0.7)


def _values(lines: Lines, metric: str) -> tuple[np.ndarray, np.ndarray]:
    known = [(line["tokens"], line[metric]) for line in lines if line.get(metric) is not None]
    return np.array([x for x, _ in known], float), np.array([y for _, y in known], float)
