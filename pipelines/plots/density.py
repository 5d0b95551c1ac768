"""How often latents are active: histograms of log10 of the share of tokens."""

from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib as mpl
from matplotlib.figure import Figure

from pipelines.plots.style import STYLE, WIDTH, legend_above, look


@dataclass(frozen=True)
class Density:
    """The histogram of one SAE or set."""

    label: str
    number: int
    """Which look it has."""
    edges: Sequence[float]
    """log10 of the share of tokens, [bins + 1]"""
    shares: Sequence[float]
    """of all latents, [bins]"""
    never: float
    """Share of the latents that are active on no token."""


def density_of(label: str, number: int, latents: dict[str, object]) -> Density:
    """The histogram of eval.json's ``latents``."""
    histogram = latents["density_log10_histogram"]
    assert isinstance(histogram, dict)
    d_sae = sum(histogram["counts"]) + histogram["never_fired"]
    return Density(label, number, histogram["edges"], [count / d_sae for count in histogram["counts"]],
                   histogram["never_fired"] / d_sae)


def densities(found: Sequence[Density]) -> Figure:
    """The histograms as steps; in the legend, which share of the latents is never active."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 3.6), layout="constrained")
        axes = figure.subplots()
        lowest = 0.0
        for place, one in enumerate(found):
            style = look(one.number)
            axes.stairs(one.shares, one.edges, color=style["color"], linestyle=style["linestyle"], linewidth=1.6)
            axes.plot([], [], color=style["color"], linestyle=style["linestyle"], marker=style["marker"],
                      markersize=4.5, label=f"{one.label} (never active: {one.never:.1%})")
            middles = [(low + high) / 2 for low, high in zip(one.edges[:-1], one.edges[1:], strict=True)]
            seen = [(x, y) for x, y in zip(middles, one.shares, strict=True) if y > 0]
            axes.plot([x for x, _ in seen[place % 3::3]], [y for _, y in seen[place % 3::3]], linestyle="none",
                      marker=style["marker"], color=style["color"], markersize=4.5)
            lowest = min([lowest, *(x for x, _ in seen)])
        axes.set_xlim(lowest - 0.375, 0)
        axes.set_ylim(bottom=0)
        ticks = [tick for tick in range(-6, 1) if tick >= lowest - 0.375]
        axes.set_xticks(ticks, [f"{100 * 10.0**tick:g} %" for tick in ticks])
        axes.set_xlabel("share of ordinary held-out tokens that a latent is active on (logarithmic)")
        axes.set_ylabel("share of all latents")
        legend_above(figure, axes)
    return figure
