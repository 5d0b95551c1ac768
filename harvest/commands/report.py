"""What `run`, `plan` and `status` print about a plan, an estimate and what is there."""

from collections.abc import Iterable
from pathlib import Path

import click
import numpy as np

from harvest.estimate import Estimate
from harvest.job import Job
from shared.format.plan import Plan
from shared.reading.cache import Cache


def print_plan(job: Job, plan: Plan) -> None:
    """What the plan holds."""
    held_out = plan.num_rows - plan.num_train_rows
    click.echo(f"model    {job.model.name}, layers {job.layers} of {plan.num_layers}, d_model {plan.d_model}")
    data = " + ".join(plan.sources)
    click.echo(f"data     {data}: {plan.num_read:,} conversations read, {plan.num_conversations:,} planned")
    if plan.num_skipped:
        reasons = ", ".join(f"{reason} {count:,}" for reason, count in sorted(plan.num_skipped.items()))
        click.echo(f"skipped  {sum(plan.num_skipped.values()):,} rows ({reasons}), listed in skipped.jsonl")
    click.echo(f"plan     {plan.num_train_rows:,} training tokens, {held_out:,} held out; cache {plan.cache_id[:12]}")
    if held_out == 0:
        click.echo("note     no conversation is held out (4 % are, by hash): there will be no held-out metrics")


def print_estimate(job: Job, plan: Plan, estimate: Estimate) -> None:
    """What is left to do and what it costs."""
    layers = len(job.layers)
    if job.num_tokens > plan.num_train_rows:
        click.echo(f"note     {job.num_tokens:,} tokens asked, but the plan holds {plan.num_train_rows:,}: all of them")
    click.echo(
        f"tokens   {job.num_tokens:,} asked, {estimate.num_train_rows:,} in whole units of "
        f"{plan.geometry.rows_per_unit:,} rows; to do: {len(estimate.units)} units, {estimate.num_rows:,} rows"
    )
    whole = layers * estimate.bytes_per_layer
    scale, unit = (1e9, "GB") if whole >= 1e8 else (1e6, "MB")  # as `status` prints them
    click.echo(
        f"disk     {estimate.bytes_per_layer / scale:.3f} {unit} a layer x {layers} = {whole / scale:.3f} {unit}; "
        f"free {estimate.free_bytes / 1e9:.1f} GB"
    )
    if estimate.tokens_per_second:
        minutes = estimate.num_rows / estimate.tokens_per_second / 60
        where = job.device.kind
        click.echo(f"time     about {minutes:.1f} min on {where} ({estimate.tokens_per_second:,.0f} tokens/s, probed)")
        if not job.device.is_cuda and minutes > 60:
            click.echo("note     no CUDA device: it goes on all the same; stop it when you like, it resumes")


def print_done(cache: Cache, path: Path, layers: list[int]) -> None:
    """What is in the cache now and what to type next."""
    units = cache.committed_units(layers[0])
    rows = sum(len(cache.unit_rows(unit)) for unit in units)
    train = sum(cache.geometry.train_rows_of(unit) for unit in units)
    click.echo(f"{path}: {train:,} training and {rows - train:,} held-out tokens of layers {layers}")
    click.echo(f"next     make train LAYER={layers[len(layers) // 2]} CACHE={path}")


def typical_length(lengths: list[int]) -> int:
    """The length of sequence that an average token stands in: what the time of a forward pass follows."""
    array = np.array(lengths, np.float64)
    return int(max(1, (array**2).sum() / array.sum()))


def number_ranges(numbers: Iterable[int]) -> str:
    """Numbers of units in order, runs of them as ranges: "0-4 7"."""
    runs: list[list[int]] = []
    for number in sorted(set(numbers)):
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return " ".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)
