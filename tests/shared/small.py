"""Small caches without a model: a plan of any geometry, filled with random rows through the real writer."""

import os
import shutil
from pathlib import Path

import ml_dtypes
import numpy as np

from shared import storage
from shared.digests import hex_digest
from shared.format.commits import Record, commit
from shared.format.layout import GROUP, PASSES, PLAN, PLAN_ARRAYS, TMP, Geometry
from shared.format.plan import Pass, Plan, make_cache_id
from shared.format.plan_arrays import write_plan_array
from shared.format.zarr_metadata import layer_metadata, plan_metadata
from shared.sealed_json import write_sealed
from shared.writing.shards import UnitFiles
from shared.writing.writers import writer_folder

LAYERS = [0, 2]
PASS = Pass(layers=LAYERS, compute_dtype="float32", attention="sdpa")


def write(cache: Path, name: str, data: bytes) -> dict[str, str]:
    storage.make_folder((cache / name).parent)
    storage.write_file(cache / name, data)
    return {name: hex_digest(data)}


def make_plan(cache: Path, geometry: Geometry) -> Plan:
    """Write a plan of conversations of 50 rows with random token kinds, and the pass of `LAYERS`."""
    storage.make_folder(cache / TMP)
    rng = np.random.default_rng(1)
    offset = np.unique(np.append(np.arange(0, geometry.num_rows, 50), geometry.num_rows))
    number = len(offset) - 1
    lengths = {"tokens": geometry.num_rows, "conversations": number, "sequences": number}
    arrays = {
        name: rng.integers(0, 5, lengths[name.split("/")[0]]).astype(dtype) for name, dtype in PLAN_ARRAYS.items()
    }
    arrays["conversations/offset"] = arrays["sequences/offset"] = offset.astype(np.int64)
    digests = {}
    for name, values in arrays.items():
        digests |= write_plan_array(cache, name, values, cache / TMP)
    for name, data in plan_metadata({}, {name: len(values) for name, values in arrays.items()}).items():
        digests |= write(cache, f"{GROUP}/{name}", data)
    identity = {"rows": geometry.num_rows, "d_model": geometry.d_model}
    plan = Plan(
        cache_id=make_cache_id(identity), identity=identity, d_model=geometry.d_model, num_layers=4,
        num_rows=geometry.num_rows, num_train_rows=geometry.num_train_rows, num_conversations=number,
        num_train_conversations=number, num_sequences=number, rows_per_shard=geometry.rows_per_shard,
        shards_per_unit=geometry.shards_per_unit, batch_tokens=512, sources=["random"], num_read=number,
        num_skipped={}, digests=digests,
        units=[(rows.start, rows.stop) for rows in map(geometry.unit_rows, range(geometry.num_units))],
    )
    write_sealed(cache / PLAN, plan.model_dump(mode="json"))
    digests = {}
    for layer in LAYERS:
        for name, data in layer_metadata(geometry, layer).items():
            digests |= write(cache, f"{GROUP}/{name}", data)
    storage.make_folder(cache / PASSES)
    entry = PASS.model_copy(update={"digests": digests})
    write_sealed(cache / PASSES / f"{PASS.pass_id}.json", entry.model_dump(mode="json"))
    return plan


def copy(cache: Path, to: Path) -> Path:
    """Copy a cache on its own file system; the plan's arrays, two megabytes, are linked: nobody changes them."""

    def link_arrays(source: str, target: str) -> None:
        if f"/{GROUP}/" in source and "/layers/" not in source and "/c/" in source:
            os.link(source, target)
        else:
            shutil.copy2(source, target)

    return Path(shutil.copytree(cache, to, copy_function=link_arrays))


def rows_of(geometry: Geometry, layer: int, seed: int = 0):
    """The random rows of a layer: bfloat16 ``[num_rows, d_model]``."""
    rng = np.random.default_rng([seed, layer])
    return rng.standard_normal((geometry.num_rows, geometry.d_model)).astype(ml_dtypes.bfloat16)


def write_unit(
    cache: Path, plan: Plan, unit: int, writer: str, seed: int = 0, generation: int = 0
) -> tuple[UnitFiles, Record]:
    """Write and finish a unit's files, its rows in pieces of 37 in random order; nothing is committed."""
    geometry = plan.geometry
    files = UnitFiles(cache, geometry, unit, LAYERS, writer)
    rows = geometry.unit_rows(unit)
    for layer in LAYERS:
        values = rows_of(geometry, layer, seed)
        norms = np.linalg.norm(values.astype(np.float32), axis=1)
        for start in np.random.default_rng(unit).permutation(np.arange(rows.start, rows.stop, 37)):
            stop = min(start + 37, rows.stop)
            files.write(layer, int(start), values[start:stop].view(np.uint16), norms[start:stop])
    entries, blocks = files.finish(PASS.pass_id, generation)
    record = Record(
        cache_id=plan.cache_id, pass_id=PASS.pass_id, unit=unit, writer=writer, rows=(rows.start, rows.stop),
        files=entries, blocks=blocks, nonfinite={}, made_with={"batches_halved": 0}, generation=generation,
    )
    return files, record


def harvest_unit(cache: Path, plan: Plan, unit: int, seed: int = 0, generation: int = 0) -> bool:
    """Write and commit a unit as the harvest does; with a generation, as repair does."""
    with writer_folder(cache) as writer:
        files, record = write_unit(cache, plan, unit, writer, seed, generation)
        won = commit(cache, record)
        files.discard()
    return won


def make(cache: Path, geometry: Geometry, units: object = None) -> Plan:
    """A cache with the given units committed, all of them by default."""
    plan = make_plan(cache, geometry)
    for unit in range(geometry.num_units) if units is None else units:
        assert harvest_unit(cache, plan, unit)
    return plan
