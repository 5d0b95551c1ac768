"""One unit of a cache written anew in the other tier, block by block, its rows the same bit for bit."""

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import xxhash

from shared import storage
from shared.digests import crc32c_bytes, hex_digest
from shared.errors import CorruptError, StorageError
from shared.format.blosc_frames import decode, encode
from shared.format.commits import FileEntry, Record, locate
from shared.format.layout import BLOCK_ROWS, COMMITS, GROUP, TMP, Tier, norm_file, shard_file
from shared.format.plan import Pass
from shared.plain_files import read_file
from shared.reading.cache import Cache
from shared.reading.layer_rows import Bits, LayerRows
from shared.writing.claims import Work

_PIECE = 4 << 20
"""Bytes of rows that a thread takes at once."""
_PIECES_WAITING = 2
"""A thread; with the one above this bounds the memory that is taken."""

Advance = Callable[[int], None]


class UnitTranscoder:
    """Writes units of ``source`` into another cache, a pass of it."""

    def __init__(self, source: Cache, target: Path, entry: Pass, writer: str, threads: int) -> None:
        """Take over one pass.

        Args:
            entry: the pass as it is in the target, with the tier to write.
        """
        self._source = source
        self._target = target
        self._entry = entry
        self._writer = writer
        self._threads = threads
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="transcode")

    def close(self) -> None:
        """Stop the threads."""
        self._pool.shutdown(cancel_futures=True)

    def write(self, work: Work, advance: Advance) -> Record:
        """Write and fsync the files of a unit under temporary names; the record to commit them with.

        Args:
            advance: called now and then with the number of rows done since; may raise to stop.

        Raises:
            CorruptError: a block, norm or checksum of the source is not what was committed; it names the unit.
            TryAgainError: the disk is full.
        """
        geometry, layers = self._source.geometry, self._entry.layers
        record = self._source.records(layers[0])[work.unit]
        shards = geometry.unit_shards(work.unit)
        folder = self._target / TMP / self._writer / f"unit-{work.unit:06d}"
        storage.make_folder(folder)
        there = {entry.path: entry for entry in record.files}
        files = []
        for layer in layers:
            for shard in shards:
                path = folder / f"{layer}-resid_post-{shard}"
                size, digest = self._write_shard(path, self._source.layer(layer), shard, advance)
                files.append(self._file(shard_file(layer, shard), path, size, digest))
            for shard in shards:
                path = folder / f"{layer}-norm-{shard}"
                entry = there[f"{GROUP}/{norm_file(layer, shard)}"]
                storage.write_new_file(path, self._copy(entry, work.unit))
                files.append(self._file(norm_file(layer, shard), path, entry.size, entry.xxh3))
        name = f"{COMMITS}/{self._entry.pass_id}/{work.unit:06d}.g{work.generation}.{self._writer}.crc32c"
        checksums = self._copy(record.blocks, work.unit)  # those of the rows: the same in both tiers
        storage.make_folder((self._target / name).parent)
        storage.write_new_file(self._target / name, checksums)
        storage.fsync_folder((self._target / name).parent)
        storage.fsync_folder(folder)
        blocks = FileEntry(path=name, temporary=name, size=len(checksums), xxh3=hex_digest(checksums))
        changes = {"generation": work.generation, "writer": self._writer, "files": files, "blocks": blocks}
        return record.model_copy(update=changes)

    def _write_shard(self, path: Path, layer: LayerRows, shard: int, advance: Advance) -> tuple[int, str]:
        """Size and xxh3 of the file written."""
        geometry = self._source.geometry
        preallocated = geometry.shard_bytes(shard) if self._entry.tier == "mapped" else 0
        digest = xxhash.xxh3_128()
        sizes: list[int] = []
        with storage.NewFile(path, preallocated) as file:
            for stored in self._stored_blocks(layer, shard):
                file.write(sum(sizes), stored)
                for block in stored:
                    digest.update(block)
                sizes += map(len, stored)
                advance(len(stored) * BLOCK_ROWS)
            index = geometry.shard_index(shard, sizes)
            file.write(sum(sizes), [index])
            digest.update(index)
            file.fsync()
        return sum(sizes) + len(index), digest.hexdigest()

    def _stored_blocks(self, layer: LayerRows, shard: int) -> Iterator[list[bytes]]:
        """The blocks of a shard as they are stored in the target, some at a time, in order."""
        geometry = self._source.geometry
        first = shard * geometry.blocks_per_shard
        blocks = range(first, first + geometry.shard_blocks(shard))
        step = max(1, _PIECE // geometry.block_bytes)
        waiting: deque[Future[list[bytes]]] = deque()
        for start in range(0, len(blocks), step):
            waiting.append(self._pool.submit(_store, layer, blocks[start : start + step], self._entry.tier))
            if len(waiting) > _PIECES_WAITING * self._threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()

    def _copy(self, entry: FileEntry, unit: int) -> bytes:
        """The bytes of a file of the source, checked against its record."""
        path = locate(self._source.path, entry)
        try:
            data = read_file(path, entry.size)
        except OSError as error:
            raise StorageError(f"Cannot read {path} of unit {unit}: {error.strerror}.") from error
        if hex_digest(data) != entry.xxh3:
            raise CorruptError(f"{path} of unit {unit} is damaged. Repair it, then give the same command again: "
                               f"python -m harvest repair {self._source.path}")
        return data

    def _file(self, name: str, path: Path, size: int, digest: str) -> FileEntry:
        temporary = str(path.relative_to(self._target))
        return FileEntry(path=f"{GROUP}/{name}", temporary=temporary, size=size, xxh3=digest)


def _store(layer: LayerRows, blocks: range, tier: Tier) -> list[bytes]:
    """Blocks as a tier stores them, each with its crc32c behind it; checked against the source's record."""
    to_bytes = _compress if tier == "archive" else partial(np.ndarray.tobytes, order="C")
    stored = [to_bytes(layer.stored_block(block)) for block in blocks]
    return [data + crc32c_bytes(data) for data in stored]


def _compress(rows: Bits) -> bytes:
    """A block's frame, decoded again to be sure: the source may be deleted afterwards."""
    frame = encode(rows)
    again = np.empty_like(rows)
    decode(np.frombuffer(frame, np.uint8), again)
    assert np.array_equal(again, rows), "a block is not what it was after compressing and decoding it"
    return frame
