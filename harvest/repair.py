"""Computing damaged units again, from the plan, as a new generation of their records.

The record of the new generation is created first, then its files replace the damaged ones; whatever else is in
the cache is not touched. Killed at any time and started again, it goes on where it was.
"""

import contextlib
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import torch

from harvest.device import find_device
from harvest.from_plan import compute
from harvest.model import ModelSource
from shared import storage
from shared.digests import hex_digest
from shared.errors import CorruptError
from shared.format.commits import Record, read_record, record_path
from shared.format.identity import Difference, differences
from shared.format.layout import GROUP, PLAN_ARRAYS, TMP
from shared.format.plan import Pass, Plan
from shared.format.zarr_json import group_attributes
from shared.format.zarr_metadata import layer_metadata, plan_metadata
from shared.upkeep.survey import PassSurvey, Survey
from shared.writing.claims import Work
from shared.writing.writers import recover, writer_folder


@dataclass(frozen=True)
class Changed:
    """A unit whose bytes are not those that its damaged record promised."""

    pass_id: str
    unit: int
    made: list[Difference]
    """What its two records say differently of device, threads, versions and batch budget."""


def repair_units(
    found: Survey, units: dict[str, set[int]], source: ModelSource, device: str = "auto", threads: int | None = None
) -> list[Changed]:
    """Compute units again, each as it was made before as far as that is known, and commit the new generation.

    Args:
        units: by pass.
        device: "auto" takes a CPU for units that were made on one.
        threads: CPU threads; None takes those that a unit was made with.

    Returns:
        The units that came out with other bytes than were committed before.

    Raises:
        SystemExit: 130 or 143 after a signal.
    """
    cache, plan = found.path, found.plan
    assert plan is not None
    with contextlib.suppress(CorruptError):  # of a record that is to be repaired
        recover(cache)
    changed: list[Changed] = []
    with writer_folder(cache) as writer:
        for pass_id, numbers in sorted(units.items()):
            one = found.passes[pass_id]
            assert one.entry is not None
            for way, todo in _by_way(one, numbers).items():
                torch.set_num_threads(threads or way.threads or torch.get_num_threads())
                used = find_device("cpu" if device == "auto" and way.device == "cpu" else device)
                compute(cache, plan, one.entry, todo, source, used, writer, way.batch_tokens)
            changed += _changes(cache, one, numbers)
    with contextlib.suppress(CorruptError):  # of a record that nobody asked to repair
        recover(cache)
    return changed


@dataclass(frozen=True)
class _Way:
    """How a unit was made, where its bytes depend on it."""

    device: str | None = None
    threads: int | None = None
    batch_tokens: int | None = None


def _by_way(one: PassSurvey, units: set[int]) -> dict[_Way, list[Work]]:
    """The work to do, by how it was done. Of a unit whose record is damaged: as any other of its pass."""
    ways = {unit: _way(record) for unit, record in one.records.items()}
    usual = next(iter(ways.values()), _Way())
    work = defaultdict(list)
    for unit in sorted(units):
        work[ways.get(unit, usual)].append(Work(unit, one.newest[unit] + 1))
    return work


def _way(record: Record) -> _Way:
    device, threads, batch_tokens = (record.made_with.get(name) for name in ("device", "threads", "batch_tokens"))
    return _Way(
        device if isinstance(device, str) else None,
        threads if isinstance(threads, int) and 0 < threads <= 1024 else None,
        batch_tokens if isinstance(batch_tokens, int) and batch_tokens > 0 else None,
    )


def _changes(cache: Path, one: PassSurvey, units: set[int]) -> list[Changed]:
    """The repaired units whose new records promise other bytes than the old ones did, where those can be read."""
    changed: list[Changed] = []
    for unit in sorted(units & one.records.keys()):
        old = one.records[unit]
        new = read_record(record_path(cache, one.pass_id, unit, one.newest[unit] + 1))
        if {file.path: file.xxh3 for file in old.files} != {file.path: file.xxh3 for file in new.files}:
            changed.append(Changed(one.pass_id, unit, differences(old.made_with, new.made_with)))
    return changed


def restore_metadata(found: Survey, paths: list[Path]) -> list[Path]:
    """Write damaged zarr.json files again, which follow from plan and passes; returns those that could not be.

    They are written only if they are what was written first: another version of zarr may spell them otherwise.
    """
    cache, plan = found.path, found.plan
    assert plan is not None
    digests, contents = dict(plan.digests), _plan_metadata(plan)
    for entry in (one.entry for one in found.passes.values() if one.entry is not None):
        digests |= entry.digests
        contents |= _pass_metadata(plan, entry)
    failed = []
    with writer_folder(cache) as writer:
        for path in paths:
            name = str(path.relative_to(cache))
            if name in contents and hex_digest(contents[name]) == digests.get(name):
                storage.make_folder(path.parent)
                storage.write_file(path, contents[name], cache / TMP / writer)
            else:
                failed.append(path)
    return failed


def _plan_metadata(plan: Plan) -> dict[str, bytes]:
    kinds = {"tokens": plan.num_rows, "conversations": plan.num_conversations, "sequences": plan.num_sequences}
    lengths = {name: kinds[name.split("/")[0]] + name.endswith("/offset") for name in PLAN_ARRAYS}
    return {f"{GROUP}/{name}": data for name, data in plan_metadata(group_attributes(plan), lengths).items()}


def _pass_metadata(plan: Plan, entry: Pass) -> dict[str, bytes]:
    files: dict[str, bytes] = {}
    for layer in entry.layers:
        metadata = layer_metadata(plan.geometry, layer, entry.tier)
        files |= {f"{GROUP}/{name}": data for name, data in metadata.items()}
    return files
