"""Rounds of contenders in turn, medians and ratios, and a result file with what it was measured on."""

import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path

import torch

from shared.provenance import versions

RESULTS = Path("benchmarks/results")


def interleave(contenders: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Wall seconds of each contender in every round; one round after the other, so that a machine whose
    speed drifts slows all of them."""
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(rounds):
        for name, contender in contenders.items():
            started = time.perf_counter()
            contender()
            seconds[name].append(time.perf_counter() - started)
            print(f"  round {number + 1}  {name:28s} {seconds[name][-1]:8.2f} s", flush=True)
    return seconds


def median_ratio(slower: list[float], faster: list[float]) -> float:
    """Median over the rounds of how many times faster ``faster`` was."""
    return statistics.median(a / b for a, b in zip(slower, faster, strict=True))


def machine() -> dict[str, object]:
    """What the figures were measured on."""
    cuda = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {"cores": os.cpu_count(), "processor": platform.machine(), "cuda": cuda,
            "threads": torch.get_num_threads(), "versions": versions()}


def save(name: str, figures: Mapping[str, object]) -> Path:
    """Write benchmarks/results/<name>.json."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    path = RESULTS / f"{name}.json"
    content = {"date": datetime.now(UTC).date().isoformat(), **machine(), **figures}
    path.write_text(json.dumps(content, indent=1) + "\n")
    print(f"written {path}")
    return path
