"""One shard of an archive: blocks compressed one by one, decoded as they are asked for."""

import threading
from collections import OrderedDict
from pathlib import Path

import numpy as np
import numpy.typing as npt

from shared.digests import crc32c, crc32c_bytes
from shared.errors import CorruptError, StorageError
from shared.format.blosc_frames import Bits, decode
from shared.format.layout import BLOCK_ROWS, CRC_BYTES, Geometry
from shared.reading.mapped_file import MappedFile

DECODED_BYTES = 64 << 20
"""Decoded blocks that a layer keeps."""


class DecodedBlocks:
    """The blocks decoded last, by number, up to a number of bytes. Safe from several threads."""

    def __init__(self, limit: int = DECODED_BYTES) -> None:
        self._limit = limit
        self._size = 0
        self._blocks: OrderedDict[int, Bits] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, block: int) -> Bits | None:
        """A block, if it is still there."""
        with self._lock:
            rows = self._blocks.get(block)
            if rows is not None:
                self._blocks.move_to_end(block)
            return rows

    def put(self, block: int, rows: Bits) -> None:
        """Keep a block, and drop those not asked for longest. Who holds one of them still may."""
        with self._lock:
            if block in self._blocks or rows.nbytes > self._limit:
                return
            self._blocks[block] = rows
            self._size += rows.nbytes
            while self._size > self._limit:
                self._size -= self._blocks.popitem(last=False)[1].nbytes


class ArchiveShard:
    """The file of a shard of an archive, open for reading."""

    def __init__(self, path: Path, geometry: Geometry, shard: int, size: int, owner: str) -> None:
        """Open it and check its index.

        Raises:
            CorruptError: the file or its index is damaged. StorageError: it cannot be read.
        """
        self._path = path
        self._owner = owner
        self._shape = (BLOCK_ROWS, geometry.d_model)
        count = geometry.shard_blocks(shard)
        if size <= geometry.index_bytes:
            raise CorruptError(f"{path} ({owner}) has {size} bytes, which hold no block.")
        self._file = MappedFile(path, size, owner)
        index = self._file.load(size - geometry.index_bytes, size)
        table = index[:-CRC_BYTES].view("<u8").reshape(-1, 2)
        sizes = table[:count, 1]
        fits = bool((sizes > CRC_BYTES).all() and (sizes <= size).all()) and int(sizes.sum()) == size - len(index)
        if not fits or geometry.shard_index(shard, sizes.tolist()) != index.tobytes():
            raise CorruptError(f"The index of {path} ({owner}) is damaged. See all damage: "
                               "python -m harvest verify CACHE")
        self._ends: npt.NDArray[np.int64] = np.cumsum(sizes).astype(np.int64)

    def load(self, block: int) -> Bits:
        """Decode a block ``[128, d_model]``, by its number in the shard, once its own crc32c is found to be right.

        Raises:
            CorruptError: it is not, or it cannot be decoded. StorageError: it cannot be read.
        """
        stored = self._stored(block)
        if crc32c_bytes(stored[:-CRC_BYTES]) != stored[-CRC_BYTES:].tobytes():
            raise self._damage(block, "its crc32c is not the one behind it")
        return self._decode(block, stored)

    def block(self, block: int) -> Bits:
        """Decode a block that was loaded before; raises as `load`."""
        return self._decode(block, self._stored(block))

    def release(self, first: int, last: int) -> None:
        """As `MappedFile.release`, for blocks ``first`` to ``last`` (inclusive)."""
        start = int(self._ends[first - 1]) if first else 0
        self._file.release(start, int(self._ends[min(last, len(self._ends) - 1)]))

    def _stored(self, block: int) -> npt.NDArray[np.uint8]:
        start = int(self._ends[block - 1]) if block else 0
        return self._file.load(start, int(self._ends[block]))

    def _decode(self, block: int, stored: npt.NDArray[np.uint8]) -> Bits:
        rows = np.empty(self._shape, np.uint16)
        try:
            decode(stored[:-CRC_BYTES], rows)
        except ValueError as error:
            raise self._damage(block, str(error)) from None
        rows.flags.writeable = False  # it may be kept, and handed out again
        return rows

    def _damage(self, block: int, what: str) -> CorruptError:
        return CorruptError(f"{self._path}: block {block} of this shard ({self._owner}) is damaged: {what}. See all "
                            "damage: python -m harvest verify CACHE")


def damaged_blocks(
    path: Path, geometry: Geometry, shard: int, size: int, committed: npt.NDArray[np.uint32]
) -> list[int]:
    """The blocks of a shard that cannot be decoded or are not the committed ones, by their number in it.

    Args:
        committed: the crc32c of every block's rows.
    """
    try:
        reader = ArchiveShard(path, geometry, shard, size, f"shard {shard}")
    except (CorruptError, StorageError):
        return list(range(len(committed)))
    return [block for block in range(len(committed)) if not _is_committed(reader, block, int(committed[block]))]


def _is_committed(reader: ArchiveShard, block: int, checksum: int) -> bool:
    try:
        rows = reader.load(block)
    except (CorruptError, StorageError):
        return False
    return crc32c(rows.reshape(-1).view(np.uint8)) == checksum
