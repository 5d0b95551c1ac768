"""A whole cache written anew in the other tier: `python -m harvest compress` and `expand`.

The new cache has the plan, the identity and the ids of the old one, its rows bit for bit, and records of its own.
Units are committed one by one as a harvest commits them, so it can be stopped or killed at any time and the same
call goes on; several at once share the units.
"""

import sys
import time
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from shared import storage
from shared.digests import canonical_json, hex_digest
from shared.errors import CorruptError, IdentityError, RecipeError, TryAgainError
from shared.format.commits import Record, commit, read_records
from shared.format.layout import (
    BLOCK_ROWS,
    CLAIMS,
    COMMITS,
    GROUP,
    PASSES,
    PLAN,
    PROVENANCE,
    SKIPPED,
    TMP,
    TOKENIZER,
    Tier,
    inside,
)
from shared.format.plan import Pass, read_passes, read_plan
from shared.format.zarr_metadata import layer_metadata
from shared.plain_files import read_known
from shared.progress import Progress
from shared.provenance import versions
from shared.reading.cache import Cache, open_cache
from shared.sealed_json import write_sealed
from shared.terminal import StopSignal
from shared.upkeep.transcode_unit import UnitTranscoder
from shared.writing.claims import Claims, Work, only_one
from shared.writing.writers import recover, writer_folder

_OURS = {GROUP, PASSES, COMMITS, TOKENIZER, TMP, CLAIMS, SKIPPED, PROVENANCE}
"""What a copy that was killed may have left before its plan was there."""
_MAX_PLAN_FILE = 1 << 30

_VERBS: dict[Tier, str] = {"archive": "compress", "mapped": "expand"}


@dataclass(frozen=True)
class Outcome:
    """What was done, and the sizes of both caches' activations."""

    units: int
    """Written now."""
    row_bytes: int
    """Bytes of the rows written now, as they are in memory."""
    seconds: float
    source_bytes: int
    """On disk, of all units of the source."""
    target_bytes: int
    """On disk, of the same units of the target."""


def transcode(source: Path, target: Path, tier: Tier, threads: int) -> Outcome:
    """Write all that is committed in ``source`` into ``target``, in a tier.

    Raises:
        CorruptError: a block of the source is not what was committed.
        IdentityError: something else is at ``target``. RecipeError: there is nothing to do it with.
        TryAgainError: the disk is full.
        SystemExit: 130 or 143 after a signal.
    """
    cache = open_cache(source)
    passes = _passes_to_write(cache, tier)
    _check_target(cache, target)
    storage.make_folder(target / TMP)
    started = time.monotonic()
    units = row_bytes = 0
    with writer_folder(target) as writer, StopSignal() as stop:
        with only_one(target, writer):
            _copy_plan(cache, target, writer)
        recover(target)
        with only_one(target, writer):
            entries = _write_passes(cache, target, passes, tier, writer)
        todo = [(entry, _missing(cache, target, entry)) for entry in entries]
        total = sum(_rows(cache, entry, work) for entry, works in todo for work in works)
        with Progress(_VERBS[tier], total=total, unit="rows") as progress:

            def check_stop() -> None:
                if stop.exit_code is not None:
                    sys.exit(stop.exit_code)

            def advance(rows: int) -> None:
                progress.advance(rows, **{"GB/s": progress.rate * cache.d_model * 2 / 1e9})
                check_stop()

            for entry, works in todo:
                with (Claims(target, entry.pass_id, writer) as claims,
                      closing(UnitTranscoder(cache, target, entry, writer, threads)) as transcoder):
                    for work in claims.share(works, check_stop):
                        _check_space(cache, target, entry, work)
                        begun = time.monotonic()
                        record = transcoder.write(work, advance)
                        won = commit(target, record)
                        storage.remove_tree(target / TMP / writer / f"unit-{work.unit:06d}")
                        _note(target, entry, record, won, time.monotonic() - begun)
                        units += 1
                        row_bytes += _rows(cache, entry, work) * cache.d_model * 2
    seconds = time.monotonic() - started
    return Outcome(units, row_bytes, seconds, _bytes(source, passes), _bytes(target, passes))


def _passes_to_write(cache: Cache, tier: Tier) -> list[Pass]:
    """The passes with committed units.

    Raises:
        RecipeError: there is none, or all are of this tier.
    """
    passes = [entry for entry in read_passes(cache.path).values() if cache.records(entry.layers[0])]
    if not passes:
        raise RecipeError(f"{cache.path} holds no activations yet. Fill it first: python -m harvest run --help")
    if all(entry.tier == tier for entry in passes):
        what = "is an archive already" if tier == "archive" else "is no archive: its rows lie there as they are"
        raise RecipeError(f"{cache.path} {what}. There is nothing to {_VERBS[tier]}; to copy a cache: cp -r")
    return passes


def _check_target(cache: Cache, target: Path) -> None:
    """Raises IdentityError where something else than a part of the wanted cache is."""
    if cache.path.resolve() in {target.resolve(), *target.resolve().parents}:
        raise RecipeError(f"{target} is the cache itself, or in it. Expected another folder, for a new cache.")
    if (target / PLAN).exists():
        there = read_plan(target)
        if there != cache.plan:
            raise IdentityError(f"{target} holds another cache (id {there.cache_id[:12]}, {cache.path} has "
                                f"{cache.cache_id[:12]}). Choose another folder.")
    elif target.exists() and (other := sorted({path.name for path in target.iterdir()} - _OURS)):
        raise IdentityError(f"{target} is a folder with other files in it ({other[0]}). Choose another folder.")


def _copy_plan(cache: Cache, target: Path, writer: str) -> None:
    """Copy what the plan wrote, plan.json last: it makes the target a cache."""
    temporaries = target / TMP / writer
    for relative, digest in sorted(cache.plan.digests.items()):
        path = inside(target, relative)
        if path.exists() and hex_digest(read_known(path, _MAX_PLAN_FILE)) == digest:
            storage.fsync_folder(path.parent)  # who wrote it may have been killed before its name was durable
            continue
        data = read_known(inside(cache.path, relative), _MAX_PLAN_FILE)
        if hex_digest(data) != digest:
            raise CorruptError(f"{cache.path / relative} is damaged: its bytes are not those that the plan recorded. "
                               f"See all damage: python -m harvest verify {cache.path}")
        storage.make_folder(path.parent)
        storage.write_file(path, data, temporaries)
    if (target / PLAN).exists():
        return
    if (cache.path / SKIPPED).exists():
        storage.write_file(target / SKIPPED, read_known(cache.path / SKIPPED, _MAX_PLAN_FILE), temporaries)
    storage.write_file(target / PLAN, read_known(cache.path / PLAN, _MAX_PLAN_FILE), temporaries)


def _write_passes(cache: Cache, target: Path, passes: list[Pass], tier: Tier, writer: str) -> list[Pass]:
    """The passes as they are in the target, written now if they are not there yet.

    Raises:
        IdentityError: the target holds one in the other tier.
    """
    there = read_passes(target)
    storage.make_folder(target / PASSES)
    written = []
    for entry in passes:
        digests = {}
        for layer in entry.layers:
            for name, data in layer_metadata(cache.geometry, layer, tier).items():
                path = f"{GROUP}/{name}"
                digests[path] = hex_digest(data)
                if entry.pass_id not in there:
                    storage.make_folder((target / path).parent)
                    storage.write_file(target / path, data, target / TMP / writer)
        wanted = entry.model_copy(update={"tier": tier, "digests": digests})
        found = there.get(entry.pass_id)
        if found is None:
            write_sealed(target / PASSES / f"{entry.pass_id}.json", wanted.model_dump(mode="json"),
                         target / TMP / writer)
        elif found.tier != tier:
            raise IdentityError(f"{target} is {'an archive' if found.tier == 'archive' else 'no archive'}: its layers "
                                f"{entry.layers} cannot be written in the other tier. Choose another folder.")
        written.append(found or wanted)
    storage.fsync_folder(target / PASSES)
    return written


def _missing(cache: Cache, target: Path, entry: Pass) -> list[Work]:
    """The units that the target does not hold, or holds with other rows: the source was repaired since."""
    there = read_records(target, entry.pass_id)
    todo = []
    for unit, record in cache.records(entry.layers[0]).items():
        if unit not in there:
            todo.append(Work(unit))
        elif there[unit].blocks.xxh3 != record.blocks.xxh3:
            todo.append(Work(unit, there[unit].generation + 1))
    return todo


def _check_space(cache: Cache, target: Path, entry: Pass, work: Work) -> None:
    """Raises TryAgainError where a unit might not fit; an archive's is smaller than what is asked for here."""
    needed = cache.geometry.unit_bytes(work.unit, len(entry.layers))
    if (free := storage.free_bytes(target)) < needed:
        raise TryAgainError(f"Not enough disk for {target}: up to {needed / 1e9:.2f} GB needed for the next unit, "
                            f"{free / 1e9:.2f} GB free. What is committed is safe: free some space and run the same "
                            "command again.")


def _note(target: Path, entry: Pass, record: Record, won: bool, seconds: float) -> None:
    line = {
        "unit": record.unit,
        "generation": record.generation,
        "pass": entry.pass_id,
        "writer": record.writer,
        "won": won,
        "seconds": round(seconds, 3),
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "made_by": _VERBS[entry.tier],
        "versions": versions(),
    }
    storage.append_line(target / PROVENANCE, canonical_json(line).decode())


def _rows(cache: Cache, entry: Pass, work: Work) -> int:
    """Rows of all layers that a unit's files hold, the padding of the last block included."""
    blocks = sum(map(cache.geometry.shard_blocks, cache.geometry.unit_shards(work.unit)))
    return blocks * BLOCK_ROWS * len(entry.layers)


def _bytes(path: Path, passes: list[Pass]) -> int:
    records = [record for entry in passes for record in read_records(path, entry.pass_id).values()]
    return sum(file.size for record in records for file in record.files)
