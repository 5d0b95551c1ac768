"""What a harvest will need, known before it starts: units, bytes, time."""

import contextlib
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from harvest.job import Job
from harvest.model import load_model
from shared import storage
from shared.errors import TryAgainError
from shared.format.commits import read_records
from shared.format.layout import TMP, Geometry
from shared.format.plan import Pass, Plan, read_passes

_RECORD_BYTES = 64 << 10
"""Room for a unit's record, block checksums, folders, and what the file system rounds up: generous, and little."""


def room_for(geometry: Geometry, unit: int, num_layers: int) -> int:
    """Bytes that must be free for a unit to be sure to fit: its data files, and some for what goes with them."""
    return geometry.unit_bytes(unit, num_layers) + _RECORD_BYTES


def missing_units(plan: Plan, pass_: Pass, cache: Path, num_tokens: int) -> list[int]:
    """The units still to do for ``num_tokens`` training rows, held-out units first."""
    done = read_records(cache, pass_.pass_id)
    return [unit for unit in plan.geometry.fill_order(num_tokens) if unit not in done]


def check_space(plan: Plan, units: list[int], num_layers: int, cache: Path) -> None:
    """Stop before the work if its files will not fit on the disk.

    Raises:
        TryAgainError: with the bytes needed and free, and the largest number of tokens that fits.
    """
    geometry = plan.geometry
    needed = sum(room_for(geometry, unit, num_layers) for unit in units)
    free = storage.free_bytes(cache) + _set_aside(plan, units, num_layers, cache)
    if needed > free:
        fits = tokens_that_fit(plan, set(units), num_layers, free)
        raise TryAgainError(
            f"Not enough disk for {cache}: {needed / 1e9:.2f} GB needed, {free / 1e9:.2f} GB free. "
            + (f"{fits:,} training tokens fit: TOKENS={fits}, or put" if fits else "Put")
            + " the cache on a larger disk: CACHE=/scratch/name"
        )


def _set_aside(plan: Plan, units: list[int], num_layers: int, cache: Path) -> int:
    """Bytes of ``units`` that other writers have on the disk already, as temporaries."""
    taken = 0
    for unit in units:
        with contextlib.suppress(OSError):  # committed meanwhile
            files = [path.stat().st_blocks * 512 for path in (cache / TMP).glob(f"*/unit-{unit:06d}/*")]
            taken += min(sum(files), room_for(plan.geometry, unit, num_layers))
    return taken


def tokens_that_fit(plan: Plan, missing: set[int], num_layers: int, free: int) -> int:
    """The most training tokens whose units fit in ``free`` bytes, held-out units first; 0 if those alone do not."""
    geometry = plan.geometry
    order = geometry.fill_order(None)
    num_held_out_units = sum(geometry.unit_rows(unit).stop > geometry.num_train_rows for unit in order)
    used = tokens = 0
    for number, unit in enumerate(order):
        used += room_for(geometry, unit, num_layers) if unit in missing else 0
        if used > free:
            return tokens if number >= num_held_out_units else 0
        tokens += geometry.train_rows_of(unit)
    return tokens


@dataclass(frozen=True)
class Estimate:
    """The cost of the units still to do."""

    units: list[int]
    num_rows: int
    """Rows of those units, held-out ones included."""
    num_train_rows: int
    """Training rows of the cache once they are done."""
    bytes_per_layer: int
    free_bytes: int
    tokens_per_second: float | None = None
    """From a probe; None without one."""

    def with_speed(self, tokens_per_second: float) -> "Estimate":
        """The same estimate with a probe's result."""
        return replace(self, tokens_per_second=tokens_per_second)


def estimate(job: Job, plan: Plan, cache: Path) -> Estimate:
    """What is left to do for this job's tokens, and what it costs."""
    geometry = plan.geometry
    units = missing_units(plan, job.pass_(read_passes(cache).values()), cache, job.num_tokens)
    return Estimate(
        units=units,
        num_rows=sum(len(geometry.unit_rows(unit)) for unit in units),
        num_train_rows=sum(map(geometry.train_rows_of, geometry.fill_order(job.num_tokens))),
        bytes_per_layer=sum(geometry.unit_bytes(unit, 1) for unit in units),
        free_bytes=storage.free_bytes(cache),
    )


def probe(job: Job, length: int, batches: int = 3) -> float:
    """Tokens a second of the forward pass, from a few batches of conversations of a typical length.

    Writes nothing. What is in the tokens does not change the time, so they are random.
    """
    device = job.device.device
    pass_ = job.pass_()
    cut = load_model(job.model, max(pass_.layers), pass_.compute_dtype, pass_.attention, device)
    lines = max(1, job.sizes(None)["batch_tokens"] // length)
    vocabulary = min(1000, cast(Any, cut.model).config.get_text_config().vocab_size)
    ids = torch.from_numpy(np.random.default_rng(0).integers(0, vocabulary, (lines, length))).to(device)
    seconds = []
    for _ in range(batches):
        started = time.monotonic()
        with torch.inference_mode():
            cut.model(input_ids=ids, use_cache=False)
        if job.device.is_cuda:
            torch.cuda.synchronize(device)
        seconds.append(time.monotonic() - started)
    return ids.numel() / min(seconds)
