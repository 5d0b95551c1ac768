"""Progress of long work: a bar on a terminal, a line every 30 seconds elsewhere."""

import sys
import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress

SECONDS_BETWEEN_LINES = 30.0

_BAR_COLUMNS = 140
"""Columns that a bar, counts, figures and the time left take beside each other; a narrower terminal has two lines and
no bar."""


class Progress:
    """Counts work done and shows it on stderr, with the latest values of some figures beside it.

    Use as a context manager:

        with Progress("harvest", total=200_000, unit="tokens") as progress:
            progress.advance(512, loss=0.3)
    """

    def __init__(self, title: str, total: int, unit: str, done: int = 0, shown: bool = True) -> None:
        self._title = title
        self._total = total
        self._unit = unit
        self._done = self._done_before = done
        self._started = self._last_line = time.monotonic()
        self._figures: dict[str, float] = {}
        console = Console(stderr=True)
        self._bar: RichProgress | None = None
        self._shown = shown
        self._is_narrow = console.width < _BAR_COLUMNS
        if shown and sys.stderr.isatty():
            before = [] if self._is_narrow else [TextColumn("{task.description}"), BarColumn()]
            self._bar = RichProgress(*before, TextColumn("{task.fields[text]}"), TimeRemainingColumn(), console=console)
        self._console = console

    def __enter__(self) -> Self:
        if self._bar:
            self._bar.start()
            self._task = self._bar.add_task(self._title, total=self._total or None, completed=self._done, text="")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar:
            self._bar.stop()
        elif self._shown and kind is None and self._done > self._done_before:
            self._line()

    @property
    def rate(self) -> float:
        """Units of work a second since the start."""
        elapsed = time.monotonic() - self._started
        return (self._done - self._done_before) / elapsed if elapsed > 0 else 0.0

    def advance(self, count: int, **figures: float) -> None:
        """Count ``count`` more units of work done; ``figures`` replace those shown."""
        self._done += count
        self._figures.update(figures)
        if self._bar:
            text = self._two_lines() if self._is_narrow else self._text()
            self._bar.update(self._task, completed=self._done, text=text)
        elif self._shown and time.monotonic() - self._last_line >= SECONDS_BETWEEN_LINES:
            self._line()

    def _text(self) -> str:
        return self._counts() + self._beside()

    def _two_lines(self) -> str:
        share = f"  {self._done / self._total:.0%}" if self._total else ""
        return f"{self._title}{share}  {self._counts()}\n{self._beside()}".rstrip()

    def _counts(self) -> str:
        total = f"/{self._total:,}" if self._total else ""
        return f"{self._done:,}{total} {self._unit}  {self.rate:,.0f}/s"

    def _beside(self) -> str:
        return "".join(f"  {name} {value:.4g}" for name, value in self._figures.items())

    def _line(self) -> None:
        self._last_line = time.monotonic()
        left = (self._total - self._done) / self.rate if self.rate else 0.0
        ending = f"  {left:.0f} s left" if left > 0 else ""
        self._console.print(f"{self._title}: {self._text()}{ending}", highlight=False, soft_wrap=True)
