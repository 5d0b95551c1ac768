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
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError, field_validator

from shared import storage
from shared.errors import CorruptError
from shared.layout import COMMITS, FORMAT_VERSION, TMP, inside
from shared.plan import Plan
from shared.sealed_json import read_sealed, seal

_RECORD_NAME = re.compile(r"(\d{6})\.g(\d+)\.json")


class FileEntry(BaseModel):
    """One file of a unit."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: str
    """Final path, relative to the cache."""
    temporary: str
    """Where the winner wrote it, relative to the cache."""
    size: int
    xxh3: str

    @field_validator("path", "temporary")
    @classmethod
    def _stays_inside(cls, path: str) -> str:
        inside(Path(), path)
        return path


class Record(BaseModel):
    """The content of commits/<pass>/<unit>.g<generation>.json."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    format_version: int = FORMAT_VERSION
    cache_id: str
    pass_id: str
    unit: int
    generation: int = 0
    writer: str
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
    host = re.sub(r"[^A-Za-z0-9-]", "-", socket.gethostname())[:32] or "host"
    return f"{host}-{os.getpid()}-{uuid.uuid4().hex[:6]}"


def record_path(cache: Path, pass_id: str, unit: int, generation: int = 0) -> Path:
    """Where the record of a unit's generation lies."""
    return cache / COMMITS / pass_id / f"{unit:06d}.g{generation}.json"


def read_record(path: Path) -> Record:
    """Read and check one record.

    Raises:
        CorruptError: it is damaged or names files outside the cache.
    """
    try:
        record = Record.model_validate(read_sealed(path))
    except ValidationError as error:
        raise CorruptError(f"{path} is not a valid record: {error.errors()[0]['msg']}.") from None
    match = _RECORD_NAME.fullmatch(path.name)
    if not match or (record.unit, record.generation) != (int(match[1]), int(match[2])):
        raise CorruptError(f"{path} holds the record of unit {record.unit}, generation {record.generation}.")
    return record


def read_records(cache: Path, pass_id: str) -> dict[int, Record]:
    """The valid record of every committed unit of a pass: the highest generation counts."""
    newest: dict[int, tuple[int, Path]] = {}
    folder = cache / COMMITS / pass_id
    if folder.is_dir():
        for path in folder.iterdir():
            if match := _RECORD_NAME.fullmatch(path.name):
                unit, generation = int(match[1]), int(match[2])
                newest[unit] = max(newest.get(unit, (-1, path)), (generation, path))
    return {unit: read_record(path) for unit, (_, path) in sorted(newest.items())}


def check_record(cache: Path, plan: Plan, pass_id: str, record: Record) -> None:
    """Check that a record speaks of this cache and pass, and of the rows that its unit has.

    Raises:
        CorruptError: it does not.
    """
    rows = plan.geometry.unit_rows(record.unit)
    if (record.cache_id, record.pass_id, record.rows) != (plan.cache_id, pass_id, (rows.start, rows.stop)):
        raise CorruptError(f"{cache}: the record of unit {record.unit} belongs to another cache or pass.")


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

    Safe to repeat and to run from several processes: a rename whose source is gone was done by another.
    """
    folders = set()
    renamed = 0
    for entry in record.files:
        temporary, final = inside(cache, entry.temporary), inside(cache, entry.path)
        if not temporary.exists():
            continue
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
    """The file of an entry: its final name, or the temporary one that the record names."""
    final = inside(cache, entry.path)
    if final.exists():
        return final
    temporary = inside(cache, entry.temporary)
    return temporary if temporary.exists() else final
