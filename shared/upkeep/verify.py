"""Checking a whole cache against its plan and its records, without torch or zarr.

Files are read with ordinary reads, not through a map: an I/O error is then an error, not a bus error. Threads
read beside each other, as fast as the disk is; checksums give the interpreter away while they run.
"""

import math
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import xxhash

from shared.digests import crc32c, hex_digest
from shared.errors import CorruptError, StorageError
from shared.format.commits import Record, locate, newest_generations, read_record, record_path
from shared.format.layout import GROUP, PLAN_ARRAYS, Geometry, inside, norm_file, shard_file
from shared.format.plan import Pass, Plan
from shared.format.plan_arrays import chunk_bytes
from shared.format.zarr_json import check_layer, check_plan_array, check_root
from shared.plain_files import file_size, open_file, read_file
from shared.upkeep.survey import PassSurvey, Survey, records_of, survey

_PIECE = 8 << 20
_MOST_CHECKSUMS = 1 << 30  # bytes of a unit's block checksums, which the record bounds
_MOST_UNKNOWN = 256 << 20  # bytes of a file whose size nothing says: metadata, or a tokenizer's

Checksums = npt.NDArray[np.uint32]


class FileToCheck(NamedTuple):
    """A file that the plan, a pass or a record vouches for."""

    path: Path
    size: int | None
    """Bytes, where they are known."""
    digest: str
    """xxh3-128 of the whole file."""
    owner: str
    """What vouches for it: "plan", "pass" or "unit 3"."""
    pass_id: str | None = None
    unit: int | None = None
    layer: int | None = None
    blocks: "BlocksToCheck | None" = None
    """Set for a shard of ``resid_post``."""
    meaning: Callable[[], None] | None = None
    """Of a zarr.json: checks that it says what the plan implies; raises CorruptError."""
    now: Callable[[], "FileToCheck"] | None = None
    """Of a unit's file: what is to be checked by now, a writer or a repair having been there meanwhile."""


@dataclass(frozen=True)
class BlocksToCheck:
    """Where the committed checksums of a shard's blocks stand, and where its blocks do."""

    table: Path
    """The unit's block-checksum file."""
    table_digest: str
    first: int
    """Number of the shard's first block in that file."""
    count: int
    stride: int
    """Bytes from one block's start to the next's, the checksum between them included."""
    block_bytes: int
    archived: tuple[Geometry, int] | None = None
    """Geometry and number of the shard, where its blocks are compressed: they are decoded then."""


@dataclass(frozen=True)
class Checked:
    """One file that was looked at."""

    path: Path
    size: int
    problem: str | None
    """What is wrong with it; None if it is what was written."""
    file: FileToCheck | None = None
    """What was expected."""


def files_to_check(
    cache: Path, units: Iterable[int] | None = None, layers: Iterable[int] | None = None
) -> list[FileToCheck]:
    """Every file that plan and records vouch for; of some units or layers only those of their records.

    Raises:
        CorruptError: the plan, a pass or a record is damaged.
    """
    found = survey(cache)
    if found.problems:
        raise CorruptError(found.problems[0].what)
    return surveyed_files(found, units, layers)


def surveyed_files(
    found: Survey, units: Iterable[int] | None = None, layers: Iterable[int] | None = None
) -> list[FileToCheck]:
    """The files of what can be believed of a cache; see `files_to_check`."""
    wanted_units = None if units is None else set(units)
    wanted_layers = None if layers is None else set(layers)
    files: list[FileToCheck] = []
    if wanted_units is None and wanted_layers is None:
        if found.plan is not None:
            files += _plan_files(found.path, found.plan)
        for one in found.passes.values():
            for path, digest in sorted(one.entry.digests.items() if one.entry else ()):
                meaning = _layer_meaning(found, one.entry, path)
                files.append(FileToCheck(inside(found.path, path), None, digest, "pass", one.pass_id, meaning=meaning))
    for one, record in records_of(found):
        if wanted_units is None or record.unit in wanted_units:
            geometry = found.plan.geometry if found.plan is not None else None
            mine = _unit_files(found.path, geometry, one, record)
            files += [file for file in mine if wanted_layers is None or file.layer in {None, *wanted_layers}]
    return files


def _plan_files(cache: Path, plan: Plan) -> Iterator[FileToCheck]:
    sizes = {name: chunk_bytes(name) for name in PLAN_ARRAYS}
    meanings = {f"{GROUP}/{name}/zarr.json": partial(check_plan_array, cache, plan, name) for name in PLAN_ARRAYS}
    meanings[f"{GROUP}/zarr.json"] = partial(check_root, cache, plan)
    for path, digest in sorted(plan.digests.items()):
        size = sizes.get(path.removeprefix(f"{GROUP}/").split("/c/")[0]) if "/c/" in path else None
        yield FileToCheck(inside(cache, path), size, digest, "plan", meaning=meanings.get(path))


def _layer_meaning(found: Survey, entry: Pass | None, path: str) -> Callable[[], None] | None:
    """How to check what a layer's array says of itself; its norms' and its group's file go with it."""
    if found.plan is None or entry is None or not path.endswith("resid_post/zarr.json"):
        return None
    layer = int(path.split("/")[2])
    return partial(check_layer, found.path, found.plan.geometry, entry, layer)


def _unit_files(cache: Path, geometry: Geometry | None, one: PassSurvey, record: Record) -> Iterator[FileToCheck]:
    owner = f"unit {record.unit}"
    shards = _shards(cache, geometry, one, record)
    for number, entry in enumerate([*record.files, record.blocks]):
        layer, blocks = shards.get(entry.path, (None, None))
        now = partial(_as_it_is_now, cache, geometry, one, record, number)
        path = locate(cache, entry)
        yield FileToCheck(path, entry.size, entry.xxh3, owner, one.pass_id, record.unit, layer, blocks, now=now)


def _as_it_is_now(
    cache: Path, geometry: Geometry | None, one: PassSurvey, record: Record, number: int
) -> FileToCheck:
    """A file of a unit by its newest record and where that lies now; files of a unit stand in one order."""
    generation = newest_generations(cache, one.pass_id).get(record.unit, record.generation)
    if generation != record.generation:
        record = read_record(record_path(cache, one.pass_id, record.unit, generation))
    return list(_unit_files(cache, geometry, one, record))[number]


def _shards(
    cache: Path, geometry: Geometry | None, one: PassSurvey, record: Record
) -> dict[str, tuple[int | None, BlocksToCheck | None]]:
    """Layer and blocks of a unit's files, by path; empty where plan or pass is not known."""
    found: dict[str, tuple[int | None, BlocksToCheck | None]] = {}
    if geometry is None or one.entry is None:
        return found
    table, first = locate(cache, record.blocks), 0
    for layer in one.entry.layers:
        for shard in geometry.unit_shards(record.unit):
            count = geometry.shard_blocks(shard)
            archived = (geometry, shard) if one.entry.tier == "archive" else None
            blocks = BlocksToCheck(
                table, record.blocks.xxh3, first, count, geometry.block_stride, geometry.block_bytes, archived
            )
            found[f"{GROUP}/{shard_file(layer, shard)}"] = layer, blocks
            found[f"{GROUP}/{norm_file(layer, shard)}"] = layer, None
            first += count
    return found


def verify(files: Sequence[FileToCheck], threads: int = 1) -> Iterator[Checked]:
    """Check the files, in order: there, of the right size, of the right bytes, every block as committed."""
    if threads == 1 or len(files) == 1:
        yield from map(_check, files)
        return
    pool = ThreadPoolExecutor(threads, thread_name_prefix="verify")
    waiting: deque[Future[Checked]] = deque()
    try:
        for file in files:
            waiting.append(pool.submit(_check, file))
            if len(waiting) > 4 * threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _check(file: FileToCheck) -> Checked:
    found = _check_once(file)
    if found.problem is None or file.now is None:
        return found
    try:
        now = file.now()
    except (CorruptError, StorageError, IndexError):
        return found
    return found if (now.path, now.digest) == (file.path, file.digest) else _check_once(now)


def _check_once(file: FileToCheck) -> Checked:
    try:
        file_size(file.path)
        descriptor = open_file(file.path)
        try:
            size = os.fstat(descriptor).st_size
            problem = _compare(file, descriptor, size)
        finally:
            os.close(descriptor)
        if file.meaning is not None and problem is None:
            file.meaning()
    except OSError as error:
        return Checked(file.path, 0, f"{_whose(file)}: {error.strerror}", file)
    except CorruptError as error:
        return Checked(file.path, 0, f"{_whose(file)}: {error}", file)
    return Checked(file.path, size, problem and f"{_whose(file)}: {problem}", file)


def _whose(file: FileToCheck) -> str:
    return file.owner if file.layer is None else f"{file.owner}, layer {file.layer}"


def _compare(file: FileToCheck, descriptor: int, size: int) -> str | None:
    """What is wrong with an open file."""
    if file.size is None and size > _MOST_UNKNOWN:
        return f"{size} bytes, expected at most {_MOST_UNKNOWN}"
    blocks = file.blocks
    committed = None if blocks is None else _committed_checksums(blocks)
    digest = xxhash.xxh3_128()
    bad: list[int] = []
    stride = blocks.stride if blocks else 1
    step = stride * max(1, _PIECE // stride)
    end = size if file.size is None else min(size, file.size)
    for offset in range(0, end, step):
        piece = _read(descriptor, offset, min(step, end - offset))
        digest.update(piece)
        if blocks is not None and committed is not None and not blocks.archived:
            bad += _bad_blocks(piece, offset // stride, blocks, committed)
    if blocks is not None and committed is not None:
        if not blocks.archived:
            bad += range(math.ceil(end / stride), blocks.count)  # of a file cut short
        elif size == file.size:  # else its index is not where it should be
            from shared.reading.archive_shard import damaged_blocks  # with numcodecs, which takes a tenth of a second

            bad += damaged_blocks(file.path, *blocks.archived, size, committed)
    which = f"{len(bad)} of its {blocks.count} blocks ({_listed(bad)})" if blocks is not None and bad else ""
    if file.size is not None and size != file.size:
        return f"{size} bytes, expected {file.size}" + (f"; damaged: {which}" if which else "")
    if digest.hexdigest() != file.digest or bad:
        return f"damaged: {which}" if which else "damaged, its xxh3 is not the recorded one"
    return None


def _bad_blocks(piece: bytes, first: int, blocks: BlocksToCheck, committed: Checksums) -> list[int]:
    """The blocks of a piece of a shard that are not the committed ones, by their number in the shard."""
    data = np.frombuffer(piece, np.uint8)
    last = min(blocks.count, first + math.ceil(len(piece) / blocks.stride))
    return [
        block for block in range(first, last)
        if crc32c(data[(block - first) * blocks.stride :][: blocks.block_bytes]) != committed[block]
    ]


def _committed_checksums(blocks: BlocksToCheck) -> Checksums | None:
    """The committed crc32c of a shard's blocks; None if they are damaged themselves, which is told elsewhere."""
    try:
        data = read_file(blocks.table, _MOST_CHECKSUMS)
    except (OSError, CorruptError):
        return None
    if hex_digest(data) != blocks.table_digest or len(data) % 4:
        return None
    mine = np.frombuffer(data, "<u4")[blocks.first : blocks.first + blocks.count]
    return mine if len(mine) == blocks.count else None


def _read(descriptor: int, offset: int, size: int) -> bytes:
    """``size`` bytes; fewer only where the file ends."""
    data = os.pread(descriptor, size, offset)
    while len(data) < size and (more := os.pread(descriptor, size - len(data), offset + len(data))):
        data += more
    return data


def _listed(numbers: Sequence[int], at_most: int = 8) -> str:
    shown = ", ".join(map(str, numbers[:at_most]))
    return f"{shown}, ..." if len(numbers) > at_most else shown


def default_threads() -> int:
    """Enough to keep a disk busy."""
    return min(8, max(2, os.cpu_count() or 2))
