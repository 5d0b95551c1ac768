"""A harvest of three tiny units without a language model: what the crash tests kill, starve and cut off.

`harvest_alone` is the loop of `harvest.run.fill` in one thread and without torch, so that the n-th operation
is the same one every time; `harvest_with_threads` is that loop itself, with numbers in place of a model.
Both go through the real claims, unit files and commits. Rows follow from layer, row and seed alone.
"""

import time
from collections.abc import Callable
from pathlib import Path

import ml_dtypes
import numpy as np

from shared import storage
from shared.format.commits import Record, commit, read_records
from shared.format.layout import PROVENANCE, Geometry
from shared.format.plan import Pass, Plan, read_passes, read_plan
from shared.writing.claims import Claims, Work
from shared.writing.shards import UnitFiles
from shared.writing.writers import Watch, recover, writer_folder

THREE_UNITS = Geometry(num_rows=350, num_train_rows=250, d_model=2, rows_per_shard=128, shards_per_unit=1)
"""Of one shard a layer each; the last one holds 94 rows."""

_POLL_SECONDS = 0.01

np.random.default_rng()  # NumPy loads what this needs at the first call; no test is about that


def rows_of(geometry: Geometry, layer: int, seed: int = 0) -> np.ndarray:
    """A layer's rows: finite bfloat16 bits ``[num_rows, d_model]``; another seed gives other rows."""
    rng = np.random.default_rng([seed, layer])
    return rng.integers(0x3F00, 0x4000, (geometry.num_rows, geometry.d_model), np.uint16)


def norms_of(rows: np.ndarray) -> np.ndarray:
    """L2 norms ``[num_rows]`` of bfloat16 bits."""
    return np.linalg.norm(rows.view(ml_dtypes.bfloat16).astype(np.float32), axis=1)


def new_process(cache: Path) -> None:
    """Forget what a process remembers of the disk, as one that has just been started does.

    The folders above the cache, which it would look at too, are none of a test's business.
    """
    storage._durable_folders.clear()
    storage._durable_folders.update(cache.absolute().parents)


def write_unit(
    cache: Path, plan: Plan, pass_id: str, pass_: Pass, work: Work, writer: str, seed: int,
    compute: Callable[[int], object],
) -> tuple[UnitFiles, Record]:
    """Write and finish a unit's files; nothing is committed. Returns the files and the record to be."""
    files = UnitFiles(cache, plan.geometry, work.unit, pass_.layers, writer)
    for layer in pass_.layers:
        rows = rows_of(plan.geometry, layer, seed)[files.rows.start : files.rows.stop]
        middle = len(rows) // 2
        for start, piece in ((middle, rows[middle:]), (0, rows[:middle])):  # rows come in any order
            files.write(layer, files.rows.start + start, np.ascontiguousarray(piece), norms_of(piece))
    compute(work.unit)
    entries, blocks = files.finish(pass_id, work.generation)
    record = Record(
        cache_id=plan.cache_id, pass_id=pass_id, unit=work.unit, generation=work.generation, writer=writer,
        rows=(files.rows.start, files.rows.stop), files=entries, blocks=blocks, nonfinite={},
        made_with={"batches_halved": 0},
    )
    return files, record


def harvest_alone(
    cache: Path,
    acknowledge: Callable[[int], object] = lambda unit: None,
    seed: int | None = 0,
    watch: Watch | None = None,
    todo: list[Work] | None = None,
    compute: Callable[[int], object] = lambda unit: None,
) -> None:
    """Fill a planned cache, unit after unit, sharing it with any other writer.

    Args:
        acknowledge: called with each unit that this call committed.
        seed: of the rows; None takes one that only this writer has, so that its bytes are its own.
        watch: tells when another writer's claim is dead.
        todo: what to do; every unit by default.
        compute: called with each unit while its files are open; takes the time that computing it would.
    """
    recover(cache)
    plan = read_plan(cache)
    [(pass_id, pass_)] = read_passes(cache).items()
    with writer_folder(cache) as writer:
        own = seed if seed is not None else int.from_bytes(writer.encode()[-8:])
        claims = Claims(cache, pass_id, writer, watch)
        left = todo if todo is not None else [Work(unit) for unit in plan.geometry.fill_order(None)]
        while left := [work for work in left if not claims.is_done(work)]:
            if (work := claims.take(left)) is None:
                time.sleep(_POLL_SECONDS)
                continue
            files, record = write_unit(cache, plan, pass_id, pass_, work, writer, own, compute)
            won = commit(cache, record)
            files.discard()
            storage.append_line(cache / PROVENANCE, f"{writer} {work.unit} {won}")
            if won:
                acknowledge(work.unit)
        claims.release()


def committed_units(cache: Path) -> set[int]:
    """The units of the cache's only pass that have a record."""
    return {unit for pass_id in read_passes(cache) for unit in read_records(cache, pass_id)}
