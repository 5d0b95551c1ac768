"""The loop of stage 1: unit after unit through the model into the cache."""

import sys
from pathlib import Path

import torch

from harvest.estimate import check_space, missing_units
from harvest.forward import Forward
from harvest.job import Job
from harvest.model import load_model
from harvest.opening import open_pass
from harvest.unit_writer import UnitWriter
from harvest.units import UnitReader
from shared.cache import Cache, open_cache
from shared.commits import record_path
from shared.plan import Pass, Plan, read_plan
from shared.progress import Progress
from shared.provenance import versions
from shared.terminal import StopSignal
from shared.writers import recover, writer_folder


def harvest(job: Job, cache: Path, threads: int | None = None) -> Cache:
    """Fill a planned cache up to the job's tokens; what is committed already is not done again.

    Raises:
        SystemExit: 130 or 143 after a signal; the open unit is dropped.
        UserError: a full disk, a layer of another pass, a sequence that does not fit in memory.
    """
    plan = read_plan(cache)
    recover(cache)
    if threads:
        torch.set_num_threads(threads)
    with writer_folder(cache) as writer:
        pass_ = open_pass(job, cache, plan.geometry, writer)
        todo = missing_units(plan, pass_, cache, job.num_tokens)
        if todo:
            check_space(plan, todo, len(pass_.layers), cache)
            _fill(job, cache, plan, pass_, todo, writer)
    return open_cache(cache)


def _fill(job: Job, cache: Path, plan: Plan, pass_: Pass, todo: list[int], writer: str) -> None:
    device = job.device.device
    cut = load_model(job.model, max(pass_.layers), pass_.compute_dtype, pass_.attention, device)
    forward = Forward(cut, pass_.layers, device)
    reader = UnitReader(open_cache(cache))
    geometry = plan.geometry
    rows = sum(len(geometry.unit_rows(unit)) for unit in todo)
    output = UnitWriter(
        cache, geometry, plan.cache_id, pass_.pass_id, pass_.layers, writer, job.config.nonfinite
    )
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
                made_with = {
                    "device": job.device.kind,
                    "threads": torch.get_num_threads(),
                    "batches_halved": forward.num_halved - halved_before,
                    "versions": {name: versions()[name] for name in ("torch", "transformers")},
                }
                output.end(made_with)
            output.close()
        except BaseException:
            output.abandon()
            raise
