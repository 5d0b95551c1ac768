"""What a watcher is: somewhere that takes an SAE's figures while it is trained, besides metrics.jsonl."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

PROJECT = "sae-granary"
"""The project that runs are filed under, where a service has projects."""


@dataclass(frozen=True)
class WatchedRun:
    """One SAE in training, as a watcher is told of it."""

    name: str
    """The SAE's name."""
    group: str
    """What it was trained on: "demo/layer9"."""
    folder: Path
    """The SAE's own folder."""
    run_id: str
    """The same each time this training goes on, another one when it is started over."""
    start_step: int
    """Steps done already; what was logged after them will be logged once more."""
    config: Mapping[str, Any]
    """The resolved recipe of the SAE."""


class Watcher(Protocol):
    """Takes figures. Neither method may change them, or draw from torch's or NumPy's random numbers."""

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        """Take the figures of a line of metrics.jsonl; ``step`` is the number of steps done."""

    def close(self) -> None:
        """Write out what is left."""
