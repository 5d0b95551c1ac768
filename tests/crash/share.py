"""Which of many crash points a run tries: all of them, or a share spread evenly over them."""

import math
from collections.abc import Sequence
from typing import TypeVar

ItemT = TypeVar("ItemT")


def evenly(points: Sequence[ItemT], most: int) -> list[ItemT]:
    """At most so many of the points, evenly spread, the first and the last among them where there are two."""
    number = min(len(points), most)
    if number <= 1:
        return list(points[:number])
    return [points[index * (len(points) - 1) // (number - 1)] for index in range(number)]


class Share:
    """A share between 0 and 1 of every list of crash points."""

    def __init__(self, share: float) -> None:
        self.share = share

    def of(self, points: Sequence[ItemT], at_least: int = 1) -> list[ItemT]:
        """That share of the points, but at least so many, as `evenly` takes them."""
        return evenly(points, max(at_least, math.ceil(self.share * len(points))))

    def number(self, whole: int, at_least: int = 1) -> int:
        """That share of a number of random trials."""
        return min(whole, max(at_least, math.ceil(self.share * whole)))
