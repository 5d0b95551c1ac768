"""Programs that work on a cache, each from the first call to the last: what is recorded and cut off."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

from harvest.job import Job
from harvest.opening import open_pass, open_plan
from shared.format.layout import GROUP, shard_file
from shared.upkeep.transcode import transcode
from shared.writing.claims import Work
from shared.writing.writers import writer_folder
from tests import tiny
from tests.crash.small_harvest import harvest_alone
from tests.shared import small

Say = Callable[[object], object]

REPAIRED = [Work(0, 1)]

repair = partial(harvest_alone, todo=REPAIRED)
"""Computes unit 0 of a cache anew, as generation 1, whatever became of the first."""


def damage_unit(cache: Path) -> Path:
    """Flip a byte in a file of unit 0; returns the cache."""
    path = cache / GROUP / shard_file(small.LAYERS[0], 0)
    data = bytearray(path.read_bytes())
    data[100] ^= 1
    path.unlink()
    path.write_bytes(data)
    return cache


def make_job(llama: Path, folder: Path) -> Job:
    """A job of eight chats: some 1,000 rows in three units of four shards."""
    data = tiny.write_jsonl(folder / "eight.jsonl", tiny.chats(8))
    return tiny.make_job(llama, data, layers=[0], rows_per_shard=128)


def plan_and_harvest(cache: Path, say: Say, job: Job) -> None:
    """Plan a cache if it is not planned yet, open its pass, and fill it; tells of "plan" and of each unit."""
    plan = open_plan(job, cache)
    with writer_folder(cache) as writer:
        open_pass(job, cache, plan.geometry, writer)
    say("plan")
    harvest_alone(cache, say)


def compress(cache: Path, say: Say, source: Path) -> None:
    """Write an archive of a cache; tells of "plan" at the end."""
    transcode(source, cache, "archive", threads=1)
    say("plan")
