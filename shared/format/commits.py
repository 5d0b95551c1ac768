"""Commit records: the only truth about which units a cache holds.

A record is created with create-if-absent *before* any final name exists, and so decides the winner among
workers. Only the winner's temporaries are renamed afterwards; whoever works on the cache and meets a
record whose files are still temporary rolls it forward (renames are idempotent). No record, no unit.

Imports neither torch nor zarr: committing and verifying cost milliseconds.
"""

import os
import re
import socket
import uuid
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from shared import storage
from shared.errors import CorruptError
from shared.format.layout import (
    BURIED,
    COMMITS,
    FORMAT_VERSION,
    GROUP,
    INSIDE,
    LONGEST_PATH,
    TMP,
    Geometry,
    inside,
    norm_file,
    shard_file,
)
from shared.format.plan import Pass, Plan, check_format
from shared.plain_files import refuse_link
from shared.sealed_json import read_sealed, seal

_RECORD_NAME = re.compile(r"(\d{6})\.g(0|[1-9]\d*)\.json")

_Inside = Annotated[str, Field(pattern=INSIDE, max_length=LONGEST_PATH)]
"""A path that stays inside the cache. Checked by pydantic itself: a cache may name a hundred thousand of them."""


class FileEntry(BaseModel):
    """One file of a unit."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: _Inside
    """Final path, relative to the cache."""
    temporary: _Inside
    """Where the winner wrote it, relative to the cache."""
    size: int = Field(ge=0)
    xxh3: str = Field(pattern="^[0-9a-f]{32}$")


class Record(BaseModel):
    """The content of commits/<pass>/<unit>.g<generation>.json."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    format_version: int = FORMAT_VERSION
    cache_id: str
    pass_id: str
    unit: int = Field(ge=0)
    generation: int = Field(default=0, ge=0)
    writer: str = Field(pattern="^[A-Za-z0-9][A-Za-z0-9._-]{0,95}$")
    rows: tuple[int, int]
    """First row and end."""
    files: list[FileEntry]
    blocks: FileEntry
    """Binary file with the crc32c of every block as uint32, little endian, layer by layer of the pass."""
    nonfinite: dict[int, list[int]]
    """Rows with a NaN or an infinity, by layer. They are kept in place and skipped by readers."""
    made_with: dict[str, Any]
    """Device, threads, versions and halved batches: what a promise of equal bytes rests on."""


def new_writer_id() -> str:
    """A name that no other writer has: host, process and six random hex digits."""
    host = re.sub(r"[^A-Za-z0-9-]", "-", socket.gethostname())[:32].strip("-") or "host"
    return f"{host}-{os.getpid()}-{uuid.uuid4().hex[:6]}"


def record_path(cache: Path, pass_id: str, unit: int, generation: int = 0) -> Path:
    """Where the record of a unit's generation lies."""
    return cache / COMMITS / pass_id / f"{unit:06d}.g{generation}.json"


def read_record(path: Path) -> Record:
    """Read and check one record.

    Raises:
        CorruptError: it is damaged or names files outside the cache.
        IdentityError: it was written in a newer format.
    """
    content = read_sealed(path)
    check_format(path, content)
    try:
        record = Record.model_validate(content)
    except ValidationError as error:
        raise CorruptError(f"{path} is not a valid record: {error.errors()[0]['msg']}.") from None
    match = _RECORD_NAME.fullmatch(path.name)
    if not match or (record.unit, record.generation) != (int(match[1]), int(match[2])):
        raise CorruptError(f"{path} holds the record of unit {record.unit}, generation {record.generation}.")
    return record


def newest_generations(cache: Path, pass_id: str) -> dict[int, int]:
    """The highest generation that there is of every committed unit of a pass, by unit; no record is read."""
    newest: dict[int, int] = {}
    folder = cache / COMMITS / pass_id
    if folder.is_dir():
        for path in folder.iterdir():
            if match := _RECORD_NAME.fullmatch(path.name):
                unit, generation = int(match[1]), int(match[2])
                newest[unit] = max(newest.get(unit, 0), generation)
    return dict(sorted(newest.items()))


def read_records(cache: Path, pass_id: str) -> dict[int, Record]:
    """The valid record of every committed unit of a pass: the highest generation counts."""
    newest = newest_generations(cache, pass_id)
    return {unit: read_record(record_path(cache, pass_id, unit, newest[unit])) for unit in newest}


def check_record(cache: Path, plan: Plan, pass_id: str, record: Record, entry: Pass | None) -> None:
    """Check that a record speaks of this cache and pass, and of nothing but the rows and files of its unit.

    Args:
        entry: the pass; None where its own file is damaged: final names and sizes are not compared then.

    Raises:
        CorruptError: it does not.
    """
    geometry = plan.geometry
    if not 0 <= record.unit < geometry.num_units:
        raise CorruptError(f"{cache}: a record speaks of unit {record.unit}; the plan has {geometry.num_units}.")
    rows = geometry.unit_rows(record.unit)
    if (record.cache_id, record.pass_id, record.rows) != (plan.cache_id, pass_id, (rows.start, rows.stop)):
        raise CorruptError(f"{cache}: the record of unit {record.unit} belongs to another cache or pass.")
    problem = _problem_of_temporaries(record) or _problem_of_nonfinite(record, entry.layers if entry else None)
    if entry is not None:
        problem = problem or _problem_of_files(record, geometry, entry)
    if problem:
        raise CorruptError(f"{cache}: the record of unit {record.unit} does not fit the plan: {problem}.")


def _problem_of_temporaries(record: Record) -> str | None:
    """What is wrong with the temporary names in a record: each is its writer's and unit's own."""
    folder = f"{TMP}/{record.writer}/unit-{record.unit:06d}/"
    for file in record.files:
        if not file.temporary.startswith(folder):
            return f"{file.temporary} is no temporary of its writer and unit"
    if len({file.temporary for file in record.files}) < len(record.files):
        return "two files have one temporary name"
    table = f"{COMMITS}/{record.pass_id}/{record.unit:06d}.g{record.generation}.{record.writer}.crc32c"
    if (record.blocks.path, record.blocks.temporary) != (table, table):
        return f"its block checksums are in {record.blocks.path}, expected {table}"
    return None


def _problem_of_files(record: Record, geometry: Geometry, entry: Pass) -> str | None:
    """What is wrong with the final names and the sizes in a record: they follow from unit and pass."""
    shards = geometry.unit_shards(record.unit)
    named = {file.path: file.size for file in record.files}
    wanted = {}
    for layer in entry.layers:
        for shard in shards:
            path = f"{GROUP}/{shard_file(layer, shard)}"
            wanted[path] = size = geometry.shard_bytes(shard)
            if entry.tier == "archive" and geometry.index_bytes < named.get(path, 0) < 2 * size:
                wanted[path] = named[path]  # as much as its blocks take
            wanted[f"{GROUP}/{norm_file(layer, shard)}"] = geometry.norm_bytes
    if named != wanted or len(named) < len(record.files):
        different = sorted(set(named.items()) ^ set(wanted.items())) or [("a file", 0)]
        return f"{different[0][0]} is named wrongly, twice or with a size that it cannot have"
    size = 4 * len(entry.layers) * sum(map(geometry.shard_blocks, shards))
    return None if record.blocks.size == size else f"{record.blocks.size} bytes of block checksums, expected {size}"


def _problem_of_nonfinite(record: Record, layers: Sequence[int] | None) -> str | None:
    """What is wrong with a record's list of non-finite rows: each layer's are ascending rows of the unit."""
    first, end = record.rows
    for layer, rows in record.nonfinite.items():
        if layers is not None and layer not in layers:
            return f"non-finite rows of layer {layer}, which its pass has not"
        if any(row >= after for row, after in pairwise([first - 1, *rows, end])):
            return f"the non-finite rows of layer {layer} are not ascending rows of {first}..{end - 1}"
    return None


def commit(cache: Path, record: Record) -> bool:
    """Commit a unit whose files and block checksums are written and fsynced. Says whether we won.

    The loser's temporaries are removed: the unit is there already, from somebody else.
    """
    path = record_path(cache, record.pass_id, record.unit, record.generation)
    storage.make_folder(path.parent)
    temporary = cache / TMP / record.writer / path.name
    storage.write_new_file(temporary, seal(record.model_dump(mode="json")))
    if storage.create_if_absent(temporary, path):
        roll_forward(cache, record)
        return True
    for entry in [*record.files, record.blocks]:
        storage.remove(inside(cache, entry.temporary))
    return False


def roll_forward(cache: Path, record: Record) -> int:
    """Give a committed unit's files their final names where they are still temporary; returns how many.

    Safe to repeat and to run from several processes: a rename whose source is gone was done by another. Files
    of a unit that was repaired meanwhile are left alone.
    """
    repaired = record_path(cache, record.pass_id, record.unit, record.generation + 1)
    folders = set()
    renamed = 0
    for entry in record.files:
        temporary, final = _temporary(cache, entry), inside(cache, entry.path)
        if temporary is None or repaired.exists():
            continue
        refuse_link(final.parent)
        storage.make_folder(final.parent)
        try:
            storage.make_read_only(temporary)
            storage.rename(temporary, final)
        except FileNotFoundError:
            continue
        folders.add(final.parent)
        renamed += 1
    for folder in sorted(folders):
        storage.fsync_folder(folder)
    return renamed


def locate(cache: Path, entry: FileEntry) -> Path:
    """The file of an entry: the temporary one that the record names, or else its final name.

    In that order: under the final name of a repaired unit lies the damaged file, until it is replaced.
    """
    return _temporary(cache, entry) or inside(cache, entry.path)


def _temporary(cache: Path, entry: FileEntry) -> Path | None:
    """The temporary file that an entry names, while it is one: also where its dead writer's folder is being removed."""
    temporary = inside(cache, entry.temporary)
    writer, _, rest = entry.temporary.removeprefix(f"{TMP}/").partition("/")
    buried = inside(cache, f"{TMP}/{writer}{BURIED}/{rest}")
    return next((path for path in (temporary, buried) if path.exists()), None)
