"""Counts of what really ran in a session, for the report: nothing in it is a number that somebody typed."""

import json
import time
from collections import defaultdict
from contextlib import contextmanager


class Counts:
    """Numbers by piece of the suite and by name within it, and the seconds that each piece took."""

    def __init__(self) -> None:
        self.numbers: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
        self.seconds: dict[str, float] = defaultdict(float)
        self.not_run: list[str] = []
        self.failed = 0

    def add(self, piece: str, name: str, number: int = 1) -> None:
        """Count ``number`` more of something that happened."""
        self.numbers[piece][name] += number

    @contextmanager
    def timed(self, piece: str):
        """Add what runs inside to the piece's seconds."""
        started = time.monotonic()
        try:
            yield
        finally:
            self.seconds[piece] += time.monotonic() - started

    def as_json(self) -> str:
        """Everything, for another process or a file."""
        return json.dumps(vars(self))

    def add_all(self, other: str) -> None:
        """Add what `as_json` gave."""
        found = json.loads(other)
        for piece, numbers in found["numbers"].items():
            for name, number in numbers.items():
                self.add(piece, name, number)
        for piece, seconds in found["seconds"].items():
            self.seconds[piece] += seconds
        self.not_run += found["not_run"]
        self.failed += found["failed"]
