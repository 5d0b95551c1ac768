"""What plots over named places (classes, positions, subsets) draw: values with their intervals."""

from collections.abc import Sequence
from dataclasses import dataclass

from pipelines.runs import Evaluated


@dataclass(frozen=True)
class Point:
    """A figure with its 95 % interval, where it has one."""

    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Series:
    """The figures of one SAE or set by place; what is not defined is not there."""

    label: str
    points: dict[str, Point]
    number: int
    """Which look it has: the same in all plots of a page."""


def unexplained(series: Sequence[Series]) -> list[Series]:
    """From explained variances the shares that are not explained."""
    return [Series(one.label, {name: Point(1 - point.value, None if point.high is None else 1 - point.high,
                                           None if point.low is None else 1 - point.low)
                               for name, point in one.points.items()}, one.number) for one in series]


def series_of(runs: Sequence[Evaluated], subsets: Sequence[str], metric: str) -> list[Series]:
    """One figure of each SAE's eval.json over subsets."""
    return [_series_of(run, number, subsets, metric) for number, run in enumerate(runs)]


def _series_of(run: Evaluated, number: int, subsets: Sequence[str], metric: str) -> Series:
    points = {}
    for subset in subsets:
        value = run.figure(subset, metric)
        if value is not None:
            points[subset] = Point(value, *(run.interval(subset, metric) or (None, None)))
    return Series(run.label, points, number)
