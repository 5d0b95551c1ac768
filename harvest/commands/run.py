"""`python -m harvest run`: plan if need be, then fill the cache."""

import sys
from typing import Any

import click
import numpy as np
import torch

from harvest.commands.options import harvest_options, resolve
from harvest.commands.report import print_done, print_estimate, print_plan, typical_length
from harvest.estimate import estimate, probe
from harvest.opening import check_plan, open_plan, start_plan
from harvest.run import harvest
from harvest.workers import default_threads, default_workers, run_workers, worker_commands
from shared.errors import RecipeError
from shared.format.layout import PLAN
from shared.reading.cache import open_cache


@click.command()
@harvest_options
@click.option("--dry-run", is_flag=True, help="Print tokens, bytes and time; write nothing into the cache.")
@click.option("--workers", type=click.IntRange(min=1), help="Processes that share the work. Default: one a GPU.")
@click.option("--threads", type=click.IntRange(min=1), help="CPU threads of a worker. Default: cores over workers.")
@click.option("--worker", type=int, hidden=True, help="One of several, started by the harvest of this process id.")
def run(
    dry_run: bool, workers: int | None, threads: int | None, worker: int | None, processes: int, **options: Any
) -> None:
    """Fill a cache with activations. The same command again resumes; a larger --num-tokens goes on.

    Any number of these commands may work on one cache at once, on one machine or on several that share a
    file system, started and killed at will: they share the units.

    \b
    Examples:
      python -m harvest run --model llama3.2-3b-instruct
      python -m harvest run --model llama3.2-3b-instruct --workers 8
      python -m harvest run --model smollm2-135m-instruct --dataset my.jsonl --dry-run
    """
    if dry_run and options["fresh"]:
        raise RecipeError("--dry-run writes and removes nothing: use it without --fresh.")
    workers = workers or default_workers(options["device"])
    threads = threads or default_threads(workers)
    torch.set_num_threads(threads)
    job, path = resolve(**options)
    if worker is not None:
        harvest(job, path, parent=worker)
        return
    if dry_run and not (path / PLAN).exists():
        plan, choice, _ = start_plan(job, processes)
        lengths = np.diff(choice.layout.sequence_offset[:1001]).tolist()
    else:
        plan = check_plan(job, path) if dry_run else open_plan(job, path, processes)
        lengths = np.diff(open_cache(path).sequence_offset[:1001]).tolist()
    print_plan(job, plan)
    costs = estimate(job, plan, path)
    if costs.units and (dry_run or not job.device.is_cuda):
        speed = probe(job, min(typical_length(lengths), job.config.max_length))
        costs = costs.with_speed(speed)
    print_estimate(job, plan, costs)
    if dry_run:
        return
    if workers > 1:
        run_workers(job, plan, path, worker_commands(sys.argv[2:], workers, threads, job.device))
    else:
        harvest(job, path)
    print_done(open_cache(path), path, job.layers)
