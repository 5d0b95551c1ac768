"""The loop of stage 1: unit after unit through the model into the cache."""

import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from harvest.device import Device
from harvest.estimate import check_space, missing_units
from harvest.forward import Forward
from harvest.job import Job
from harvest.model import load_model
from harvest.opening import open_pass
from harvest.unit_writer import UnitWriter
from harvest.units import UnitReader
from shared.cache import Cache, open_cache
from shared.commits import read_records, record_path
from shared.plan import Pass, Plan, differing_fields, read_plan
from shared.progress import Progress
from shared.provenance import versions
from shared.terminal import StopSignal
from shared.writers import recover, writer_folder


def harvest(job: Job, cache: Path) -> Cache:
    """Fill a planned cache up to the job's tokens; what is committed already is not done again.

    Raises:
        SystemExit: 130 or 143 after a signal; the open unit is dropped.
        UserError: a full disk, a layer of another pass, a sequence that does not fit in memory.
    """
    plan = read_plan(cache)
    recover(cache)
    with writer_folder(cache) as writer:
        pass_ = open_pass(job, cache, plan.geometry, writer)
        todo = missing_units(plan, pass_, cache, job.num_tokens)
        if todo:
            check_space(plan, todo, len(pass_.layers), cache)
            device = job.device
            warn_of_changes(cache, pass_, device)
            cut = load_model(job.model, max(pass_.layers), pass_.compute_dtype, pass_.attention, device.device)
            forward = Forward(cut, pass_.layers, device.device)
            fill(cache, plan, pass_, todo, forward, device, writer, job.config.nonfinite)
    return open_cache(cache)


def warn_of_changes(cache: Path, pass_: Pass, device: Device) -> None:
    """Say so when what is there was made on another device, with other threads or other versions."""
    records = read_records(cache, pass_.pass_id)
    if not records:
        return
    before = {**list(records.values())[-1].made_with, "batches_halved": 0}
    changes = differing_fields(before, _made_with(device, 0))
    if changes:
        sys.stderr.write(f"Warning: units of {cache} were made otherwise; new ones may differ in their last bits: "
                         + "; ".join(changes) + "\n")


def fill(
    cache: Path, plan: Plan, pass_: Pass, todo: Sequence[int], forward: Forward, device: Device, writer: str,
    nonfinite: str = "keep",
) -> None:
    """Compute, write and commit the units ``todo``, in that order.

    Raises:
        SystemExit: 130 or 143 after a signal; the open unit is dropped, what is committed stays.
    """
    reader = UnitReader(open_cache(cache))
    rows = sum(len(plan.geometry.unit_rows(unit)) for unit in todo)
    output = UnitWriter(cache, plan.geometry, plan.cache_id, pass_.pass_id, pass_.layers, writer, nonfinite)
    with StopSignal() as stop, Progress("harvest", total=rows, unit="tokens") as progress:
        try:
            for unit in todo:
                if record_path(cache, pass_.pass_id, unit).exists():
                    continue  # another worker was faster
                halved_before = forward.num_halved
                output.begin(unit)
                for batch in reader.batches(unit):
                    if stop.exit_code is not None:
                        sys.exit(stop.exit_code)
                    for captured in forward.run(batch, reader.token_ids(batch)):
                        output.put(captured)
                    progress.advance(sum(piece.stop - piece.keep for piece in batch))
                output.end(_made_with(device, forward.num_halved - halved_before))
            output.close()
        except BaseException:
            output.abandon()
            raise


def _made_with(device: Device, num_halved: int) -> dict[str, object]:
    """What a promise of equal bytes rests on."""
    return {
        "device": device.kind,
        "threads": torch.get_num_threads(),
        "batches_halved": num_halved,
        "versions": {name: versions()[name] for name in ("torch", "transformers")},
    }
