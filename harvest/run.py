"""The loop of stage 1: unit after unit through the model into the cache."""

import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from harvest.allocator import keep_memory_flat
from harvest.device import Device
from harvest.estimate import check_space, missing_units
from harvest.forward import Forward
from harvest.job import Job
from harvest.model import load_model
from harvest.opening import open_pass
from harvest.unit_writer import UnitWriter
from harvest.units import UnitReader
from shared.format.commits import read_records
from shared.format.identity import differences, two_columns
from shared.format.plan import Pass, Plan, read_plan
from shared.progress import Progress
from shared.provenance import versions
from shared.reading.cache import Cache, open_cache
from shared.terminal import StopSignal
from shared.upkeep.activity import note_start
from shared.writing.claims import Claims, Work
from shared.writing.writers import recover, writer_folder


def harvest(job: Job, cache: Path, parent: int | None = None) -> Cache:
    """Fill a planned cache up to the job's tokens; what is committed already is not done again.

    Args:
        parent: process that shows the progress of this worker; without it the worker stops.

    Raises:
        SystemExit: 130 or 143 after a signal; the open unit is dropped.
        UserError: a full disk, a layer of another pass, a sequence that does not fit in memory.
    """
    plan = read_plan(cache)
    recover(cache)
    with writer_folder(cache) as writer:
        pass_ = open_pass(job, cache, plan.geometry, writer)
        units = missing_units(plan, pass_, cache, job.num_tokens)
        if units:
            check_space(plan, units, len(pass_.layers), cache)
            note_start(cache, writer, pass_.pass_id, job.num_tokens)
            device = job.device
            keep_memory_flat()
            batch_tokens = job.batch_tokens(plan)
            warn_of_changes(cache, plan, pass_, device, batch_tokens)
            cut = load_model(job.model, max(pass_.layers), pass_.compute_dtype, pass_.attention, device.device)
            forward = Forward(cut, pass_.layers, device.device)
            todo = [Work(unit) for unit in units]
            fill(cache, plan, pass_, todo, forward, device, writer, job.config.nonfinite, parent, batch_tokens)
    return open_cache(cache)


def warn_of_changes(cache: Path, plan: Plan, pass_: Pass, device: Device, batch_tokens: int | None = None) -> None:
    """Say so when what is there was made on another device, with other threads, versions or batch budget."""
    records = read_records(cache, pass_.pass_id)
    if not records:
        return
    planned = {"batch_tokens": plan.batch_tokens}
    before = planned | list(records.values())[-1].made_with | {"batches_halved": 0}
    changes = differences(before, planned | _made_with(plan, device, 0, batch_tokens))
    if changes:
        lines = [f"Warning: units of {cache} were made otherwise; new ones may differ in their last bits:",
                 *two_columns(changes, "there", "now")]
        sys.stderr.write("\n".join(lines) + "\n")


def fill(
    cache: Path, plan: Plan, pass_: Pass, todo: Sequence[Work], forward: Forward, device: Device, writer: str,
    nonfinite: str = "keep", parent: int | None = None, batch_tokens: int | None = None,
) -> None:
    """Compute, write and commit ``todo`` in that order, sharing it with any other writer of the cache.

    Returns when all of it is committed, by us or by others.

    Args:
        batch_tokens: the batch budget of this run, where it is not the plan's.

    Raises:
        SystemExit: 130 or 143 after a signal; the open unit is dropped, what is committed stays.
    """
    reader = UnitReader(open_cache(cache), batch_tokens)
    rows = sum(len(plan.geometry.unit_rows(work.unit)) for work in todo)
    output = UnitWriter(cache, plan.geometry, plan.cache_id, pass_.pass_id, pass_.layers, writer, nonfinite)
    with (Claims(cache, pass_.pass_id, writer) as claims, StopSignal() as stop,
          Progress("harvest", total=rows, unit="tokens", shown=parent is None) as progress):

        def check_stop() -> None:
            if stop.exit_code is not None:
                sys.exit(stop.exit_code)
            if parent is not None and os.getppid() != parent:
                sys.exit(128 + signal.SIGTERM)  # it was killed: nobody would know of us

        def others_did(work: Work) -> None:
            progress.advance(len(plan.geometry.unit_rows(work.unit)))

        def waits_for(others: set[str]) -> None:
            if parent is None:
                sys.stderr.write(f"The last units are held by {', '.join(sorted(others))}: waiting for them.\n")

        try:
            for work in claims.share(todo, check_stop, output.wait, others_did, waits_for):
                halved_before = forward.num_halved
                output.begin(work)
                for batch in reader.batches(work.unit):
                    check_stop()
                    for captured in forward.run(batch, reader.token_ids(batch)):
                        output.put(captured)
                    progress.advance(sum(piece.stop - piece.keep for piece in batch))
                output.end(_made_with(plan, device, forward.num_halved - halved_before, batch_tokens))
            output.close()
        except BaseException:
            output.abandon()
            raise


def _made_with(plan: Plan, device: Device, num_halved: int, batch_tokens: int | None) -> dict[str, object]:
    """What a promise of equal bytes rests on."""
    made_with: dict[str, object] = {
        "device": device.kind,
        "threads": torch.get_num_threads(),
        "batches_halved": num_halved,
        "versions": {name: versions()[name] for name in ("torch", "transformers")},
    }
    if batch_tokens not in {None, plan.batch_tokens}:
        made_with["batch_tokens"] = batch_tokens  # it was allowed to differ from the plan's
    model = plan.identity["model"]
    if model.get("trust_remote_code"):
        made_with["remote_code"] = f"{model['name']}@{model['revision']}"
    return made_with
