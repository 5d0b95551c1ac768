"""A figure over classes of tokens, positions in the conversation or subsets, with intervals."""

import math
from collections.abc import Sequence

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from pipelines.plots.series import Series, unexplained
from pipelines.plots.style import INK, STYLE, WIDTH, Axes, legend_above, look, plain_log

MAX_BANDS = 4
"""With more series, intervals are bars: bands would cover each other."""


def by_position(explained: Sequence[Series], errors: Sequence[Series], places: Sequence[tuple[str, str]]) -> Figure:
    """Errors over ranges of positions; bands, or bars of many series, are intervals.

    An axis is logarithmic where one range is far above the rest.

    Args:
        explained: explained variances, of which what is left to 1 is drawn.
        errors: normalised errors.
        places: name in the series and label of each range, in order.
    """
    panels = (("variance that is not explained", "1 − explained variance", unexplained(explained)),
              ("normalised error", "share of |x|², mean over tokens", errors))
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 4.0), layout="constrained")
        for axes, (title, words, series) in zip(figure.subplots(1, len(panels)), panels, strict=True):
            if _has_outlier(series):
                axes.set_yscale("log", nonpositive="mask")
            for place, one in enumerate(series):
                shift = 0.0 if len(series) <= MAX_BANDS else (place - (len(series) - 1) / 2) * 0.6 / len(series)
                _draw_line(axes, one, [name for name, _ in places], shift, as_bars=len(series) > MAX_BANDS)
            axes.set_xticks(range(len(places)), [label for _, label in places])
            axes.set_xlim(-0.45, len(places) - 0.55)
            axes.set_title(title)
            axes.set_xlabel("position in the conversation (tokens)")
            axes.set_ylabel(words)
            if axes.get_yscale() == "log":
                plain_log(axes.yaxis)
            else:
                axes.set_ylim(bottom=0)
            axes.grid(axis="x", visible=False)
        legend_above(figure, figure.axes[0])
    return figure


def _has_outlier(series: Sequence[Series]) -> bool:
    """Whether the largest value would press the others flat: position 0, where SAEs are not trained on it."""
    values = [point.value for one in series for point in one.points.values()]
    return bool(values) and max(values) > 8 * float(np.median(values))


def _draw_line(axes: Axes, series: Series, places: Sequence[str], shift: float, as_bars: bool) -> None:
    style = look(series.number)
    values = [series.points[name].value if name in series.points else np.nan for name in places]
    lows, highs = ([np.nan if (point := series.points.get(name)) is None or (end := getattr(point, side)) is None
                    else end for name in places] for side in ("low", "high"))
    x = np.arange(len(places)) + shift
    if as_bars:
        axes.vlines(x, lows, highs, color=style["color"], linewidth=1.4)
    else:
        axes.fill_between(x, lows, highs, color=style["color"], alpha=0.16, linewidth=0)
        for ends in (lows, highs):  # thin edges: bands that overlap are told apart in grey too
            axes.plot(x, ends, color=style["color"], linestyle=style["linestyle"], linewidth=0.5)
    axes.plot(x, values, color=style["color"], linestyle=style["linestyle"], marker=style["marker"], markersize=6,
              markeredgecolor=INK, markeredgewidth=0.6, label=series.label)


def dots(series: Sequence[Series], places: Sequence[tuple[str, str]], axis: str, zero_line: bool = False,
         lowest: float = -math.inf) -> Figure:
    """Points with interval bars, a row a place and the series beside each other in it.

    Args:
        places: name in the series and label of each row, from the top.
        axis: what the figure is, with its unit.
        zero_line: draw a line at 0, for differences.
        lowest: what is below it is drawn there, with its value: it must not flatten the others.
    """
    places = [(name, label) for name, label in places if any(name in one.points for one in series)]
    with mpl.rc_context(STYLE):
        height = 1.1 + len(places) * (0.22 + 0.13 * len(series))
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        axes = figure.subplots()
        step = 0.62 / max(1, len(series) - 1) if len(series) > 1 else 0.0
        for number, one in enumerate(series):
            _draw_dots(axes, one, [name for name, _ in places], (number - (len(series) - 1) / 2) * step, lowest)
        axes.set_yticks(range(len(places)), [label for _, label in places])
        axes.set_ylim(len(places) - 0.5, -0.5)
        for edge in range(1, len(places)):
            axes.axhline(edge - 0.5, color="#e4e4e4", linewidth=0.8)
        if zero_line:
            axes.axvline(0, color=INK, linewidth=0.9)
        axes.margins(x=0.04)
        axes.set_xlabel(axis)
        axes.grid(axis="y", visible=False)
        legend_above(figure, axes)
    return figure


def _draw_dots(axes: Axes, series: Series, places: Sequence[str], shift: float, lowest: float) -> None:
    style = look(series.number)
    there = [(row, series.points[name]) for row, name in enumerate(places) if name in series.points]
    for row, point in there:
        if point.value < lowest:
            axes.annotate(f"{point.value:.3g}", (lowest, row + shift), textcoords="offset points", xytext=(7, 0),
                          va="center", fontsize=7.5)
        elif point.low is not None and point.high is not None:
            axes.plot([max(point.low, lowest), point.high], [row + shift] * 2, color=style["color"], linewidth=1.6,
                      solid_capstyle="butt", marker="|", markersize=5)
    axes.plot([max(point.value, lowest) for _, point in there], [row + shift for row, _ in there], linestyle="none",
              marker=style["marker"], color=style["color"], markersize=6, markeredgecolor=INK, markeredgewidth=0.6,
              label=series.label)
