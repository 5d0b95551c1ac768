"""Several harvest processes on one machine, which share a cache's units.

Each is an ordinary ``python -m harvest run``, the same that other machines may run on the same cache. This
process only starts them, shows what gets committed, and passes signals on.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from harvest.device import Device
from harvest.estimate import missing_units
from harvest.job import Job
from harvest.opening import open_pass
from shared.errors import TryAgainError
from shared.format.commits import record_path
from shared.format.plan import Plan
from shared.progress import Progress
from shared.terminal import StopSignal
from shared.writing.claims import Work
from shared.writing.writers import recover, writer_folder

_POLL_SECONDS = 0.3


def default_workers(device: str) -> int:
    """One for every visible GPU, where all may be used; else one."""
    return max(1, torch.cuda.device_count()) if device in {"auto", "cuda"} else 1


def default_threads(workers: int) -> int:
    """CPU threads of one of ``workers``: the cores shared out."""
    return max(1, torch.get_num_threads() // workers)


def worker_commands(arguments: Sequence[str], workers: int, threads: int, device: Device) -> list[list[str]]:
    """The commands of the workers, from the arguments that this command was given."""
    kept = [argument for argument in arguments if argument not in {"--fresh", "--yes"}]
    commands = []
    for number in range(workers):
        name = str(device.device)
        if name == "cuda":
            name = f"cuda:{number % torch.cuda.device_count()}"
        own = ["--workers", "1", "--threads", str(threads), "--device", name, "--worker", str(os.getpid())]
        commands.append([sys.executable, "-m", "harvest", "run", *kept, *own])
    return commands


def run_workers(job: Job, plan: Plan, cache: Path, commands: Sequence[Sequence[str]]) -> None:
    """Start the workers and wait until the job's units are committed.

    A worker that dies is not missed: the others take over what it held.

    Raises:
        SystemExit: 130 or 143 after a signal; or the exit code of a worker that failed, if work is left.
        TryAgainError: all workers were killed before the work was done.
    """
    recover(cache)
    with writer_folder(cache) as writer:
        pass_ = open_pass(job, cache, plan.geometry, writer)
    todo = [Work(unit) for unit in missing_units(plan, pass_, cache, job.num_tokens)]
    if not todo:
        return

    def is_done(work: Work) -> bool:
        return record_path(cache, pass_.pass_id, work.unit, work.generation).exists()

    with StopSignal() as stop:
        # Sessions of their own: a Ctrl-C reaches them once, through us, and not a second time by the terminal.
        children: list[subprocess.Popen[bytes]] = []
        try:
            for command in commands:
                children.append(subprocess.Popen(command, start_new_session=True, env=_environment()))
            _watch(children, todo, plan, is_done, stop)
        finally:
            for child in children:
                if child.poll() is None:
                    child.send_signal(signal.SIGTERM)
            codes = [child.wait() for child in children]
    if stop.exit_code is not None:
        sys.exit(stop.exit_code)
    for number, code in enumerate(codes):
        if code != 0:
            how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
            sys.stderr.write(f"Worker {number} of {len(codes)} {how}.\n")
    if not all(map(is_done, todo)):
        failed = [code for code in codes if code > 0]
        if failed:
            sys.exit(failed[0])
        raise TryAgainError(f"All workers were killed; {sum(map(is_done, todo))} of {len(todo)} units are committed.")


def _watch(
    children: Sequence[subprocess.Popen[bytes]], todo: Sequence[Work], plan: Plan, is_done: Callable[[Work], bool],
    stop: StopSignal,
) -> None:
    """Show what gets committed, until the workers have ended or a signal came."""
    rows = sum(len(plan.geometry.unit_rows(work.unit)) for work in todo)
    left = list(todo)
    with Progress(f"harvest ({len(children)} workers)", total=rows, unit="tokens") as progress:
        while stop.exit_code is None:
            running = any(child.poll() is None for child in children)
            for work in [work for work in left if is_done(work)]:
                left.remove(work)
                progress.advance(len(plan.geometry.unit_rows(work.unit)))
            if not running:
                return
            time.sleep(_POLL_SECONDS)


def _environment() -> dict[str, str]:
    """Ours, with the checkout where ``-m harvest`` finds it from any working folder."""
    environment = {name: value for name, value in os.environ.items() if name != "SLURM_JOB_ID"}  # we wait for SLURM
    paths = [str(Path(__file__).resolve().parent.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**environment, "PYTHONPATH": os.pathsep.join(paths)}
