"""One layer's activations: rows by number, each block checked on first touch.

In the mapped tier a block is a view of the file's pages, in the archive tier it is decoded when it is asked for;
whoever reads need not know which.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import ml_dtypes
import numpy as np
import numpy.typing as npt

from shared.digests import crc32c, hex_digest
from shared.errors import CorruptError, TryAgainError
from shared.format.commits import FileEntry, Record, locate, record_path
from shared.format.layout import BLOCK_ROWS, CRC_BYTES, GROUP, Geometry, norm_file, shard_file
from shared.format.plan import Pass
from shared.plain_files import file_size, read_known
from shared.reading.mapped_file import MappedFile

if TYPE_CHECKING:
    from shared.reading.archive_shard import ArchiveShard

OpenedT = TypeVar("OpenedT")
Verify = Literal["open", "first-touch", "never"]
Rows = npt.NDArray[np.int64]
Bits = npt.NDArray[np.uint16]
BFloat16Array = npt.NDArray[Any]
"""Arrays of ml_dtypes.bfloat16 (torch: ``torch.from_numpy(x.view("uint16")).view(torch.bfloat16)``)."""


class LayerRows:
    """Rows of ``layers/<L>/resid_post`` of the committed units.

    ``layer[rows]`` is a copy ``[num_rows, d_model]`` in ml_dtypes' bfloat16, rows in any order.
    """

    def __init__(
        self,
        cache: Path,
        geometry: Geometry,
        layer: int,
        pass_: Pass,
        records: Mapping[int, Record],
        verify: Verify = "first-touch",
    ) -> None:
        """Open the layer, and compare the sizes of its files with their records.

        Raises:
            CorruptError: a file is missing or of another size; with verify="open", a block is damaged.
        """
        self.layer = layer
        self.d_model = geometry.d_model
        self._cache = cache
        self._geometry = geometry
        self._blocks_per_unit = geometry.blocks_per_shard * geometry.shards_per_unit
        self._pass = pass_
        self._records = dict(records)
        self._entries = {entry.path: entry for record in records.values() for entry in record.files}
        self._checksums: dict[int, npt.NDArray[np.uint32]] = {}
        self._shards: dict[int, MappedShard | ArchiveShard] = {}
        self._norms: dict[int, npt.NDArray[np.float32]] = {}
        self._verified = np.zeros(geometry.num_blocks, bool)
        if pass_.tier == "archive":
            from shared.reading.archive_shard import DecodedBlocks  # with numcodecs, which takes a tenth of a second

            self._decoded = DecodedBlocks()
        if verify == "never":
            self._verified[:] = True
        for record in records.values():
            for shard in geometry.unit_shards(record.unit):
                self._find(shard_file(layer, shard), record.unit)
                self._find(norm_file(layer, shard), record.unit)
        if verify == "open":
            for record in records.values():
                for block in range(record.rows[0] // BLOCK_ROWS, math.ceil(record.rows[1] / BLOCK_ROWS)):
                    self.stored_block(block)

    @property
    def units(self) -> tuple[int, ...]:
        """The committed units."""
        return tuple(self._records)

    @property
    def nonfinite_rows(self) -> Rows:
        """Rows that hold a NaN or an infinity; `Cache.rows` leaves them out."""
        rows = [row for record in self._records.values() for row in record.nonfinite.get(self.layer, [])]
        return np.array(sorted(rows), np.int64)

    def __getitem__(self, rows: Rows | Sequence[int] | slice) -> BFloat16Array:
        """Copy rows ``[num_rows, d_model]``.

        Raises:
            IndexError: a row is not harvested.
            CorruptError: a block is not what was committed. StorageError: it cannot be read.
        """
        if isinstance(rows, slice):
            rows = np.arange(*rows.indices(self._geometry.num_rows))
        wanted = row_numbers(rows, self._geometry.num_rows)
        if wanted.size and (wanted.min() < 0 or wanted.max() >= self._geometry.num_rows):
            raise IndexError(f"rows must lie in 0..{self._geometry.num_rows - 1}; got {wanted.min()}..{wanted.max()}.")
        out = np.empty((len(wanted), self.d_model), np.uint16)
        if self._pass.tier == "archive":
            self._decode_rows(wanted, out)
        else:
            self._gather_rows(wanted, out)
        return out.view(ml_dtypes.bfloat16)

    def block(self, block: int) -> BFloat16Array:
        """One block's rows ``[<=128, d_model]``, not to be written to; no copy. Safe from several threads."""
        rows = min(BLOCK_ROWS, self._geometry.num_rows - block * BLOCK_ROWS)
        return self.stored_block(block)[:rows].view(ml_dtypes.bfloat16)

    def stored_block(self, block: int) -> Bits:
        """A block as it is stored, bfloat16 bits ``[128, d_model]``, with the padding of the last one."""
        shard, in_shard = divmod(block, self._geometry.blocks_per_shard)
        reader = self._shard(shard)
        verified = bool(self._verified[block])
        if isinstance(reader, MappedShard):
            rows = reader.load(in_shard)
        elif (kept := self._decoded.get(block)) is not None:
            return kept
        else:
            rows = reader.block(in_shard) if verified else reader.load(in_shard)
        if not verified:
            self._verify(block, rows)
        if not isinstance(reader, MappedShard):
            self._decoded.put(block, rows)
        return rows

    def prefetch(self, blocks: Sequence[int]) -> None:
        """Begin to read blocks from disk that will be asked for soon, without waiting for them."""
        for block in blocks:
            shard, in_shard = divmod(block, self._geometry.blocks_per_shard)
            if isinstance(reader := self._shard(shard), MappedShard):
                reader.prefetch(in_shard)

    def release(self, first: int, last: int) -> None:
        """Blocks ``first`` to ``last`` (inclusive) are not needed soon: their pages make room for others first."""
        per_shard = self._geometry.blocks_per_shard
        for shard in range(first // per_shard, last // per_shard + 1):
            if (reader := self._shards.get(shard)) is not None:
                reader.release(max(first - shard * per_shard, 0), min(last - shard * per_shard, per_shard - 1))

    @property
    def num_bytes(self) -> int:
        """Bytes of the files that the committed rows lie in, norms left out."""
        return sum(self._entry(shard_file(self.layer, shard)).size for record in self._records.values()
                   for shard in self._geometry.unit_shards(record.unit))

    def norm(self, rows: Rows | Sequence[int]) -> npt.NDArray[np.float32]:
        """L2 norms of rows ``[num_rows]``, as stored beside them."""
        wanted = row_numbers(rows, self._geometry.num_rows)
        out = np.empty(len(wanted), np.float32)
        shards = wanted // self._geometry.rows_per_shard
        for shard in np.unique(shards):
            here = shards == shard
            out[here] = self._norm_chunk(int(shard))[wanted[here] % self._geometry.rows_per_shard]
        return out

    def _gather_rows(self, wanted: Rows, out: Bits) -> None:
        blocks = wanted // BLOCK_ROWS
        for block in np.unique(blocks):
            if not self._verified[block]:
                self.stored_block(int(block))
        shards = blocks // self._geometry.blocks_per_shard
        for shard in np.unique(shards):
            here = np.flatnonzero(shards == shard)
            reader = self._shard(int(shard))
            assert isinstance(reader, MappedShard)
            out[here] = reader.take(blocks[here] % self._geometry.blocks_per_shard, wanted[here] % BLOCK_ROWS)

    def _decode_rows(self, wanted: Rows, out: Bits) -> None:
        """Decode every block that is asked for once."""
        blocks = wanted // BLOCK_ROWS
        order = np.argsort(blocks, kind="stable")
        numbers, starts = np.unique(blocks[order], return_index=True)
        for block, here in zip(numbers, np.split(order, starts[1:]), strict=False):
            out[here] = self.stored_block(int(block))[wanted[here] % BLOCK_ROWS]

    def _verify(self, block: int, rows: Bits) -> None:
        """Compare a block with its record, the first time it is touched."""
        unit = block // self._blocks_per_unit
        table = self._checksums.get(unit)
        if table is None:
            table = self._block_checksums(unit)
        if crc32c(rows) != table[block - unit * self._blocks_per_unit]:
            self._check_not_repaired(unit)
            raise CorruptError(
                f"{self._cache}: block {block} of layer {self.layer} (unit {unit}) is damaged: its crc32c is not "
                f"the committed one. See all damage: python -m harvest verify {self._cache}"
            )
        self._verified[block] = True

    def _check_not_repaired(self, unit: int) -> None:
        """Raises TryAgainError if what looks like damage is a newer generation of the unit."""
        record = self._records[unit]
        if record_path(self._cache, record.pass_id, unit, record.generation + 1).exists():
            raise TryAgainError(f"Unit {unit} of {self._cache} was repaired, with other bytes, since the cache was "
                                "opened. Open it again: the same command goes on.")

    def _opened(self, relative: str, unit: int, open_: Callable[[Path], OpenedT]) -> OpenedT:
        """Open a file of a unit; once more if a writer gave it its final name meanwhile."""
        path = self._find(relative, unit)
        try:
            return open_(path)
        except CorruptError:
            if path.exists():
                raise
            return open_(self._find(relative, unit))

    def _block_checksums(self, unit: int) -> npt.NDArray[np.uint32]:
        """The committed crc32c of every block of a unit in this layer."""
        entry = self._records[unit].blocks
        path = locate(self._cache, entry)
        data = read_known(path, entry.size, f" of unit {unit}")
        if hex_digest(data) != entry.xxh3:
            raise CorruptError(f"{path} (block checksums of unit {unit}) is damaged.")
        layers = self._pass.layers
        table: npt.NDArray[np.uint32] = np.frombuffer(data, "<u4").reshape(len(layers), -1)[layers.index(self.layer)]
        self._checksums[unit] = table
        return table

    def _shard(self, shard: int) -> "MappedShard | ArchiveShard":
        reader = self._shards.get(shard)
        if reader is None:
            unit = self._unit_of(shard)
            relative = shard_file(self.layer, shard)
            owner, size = f"unit {unit}, layer {self.layer}", self._entry(relative).size
            reader = self._opened(relative, unit, lambda path: self._open_shard(path, shard, size, owner))
            self._shards[shard] = reader
        return reader

    def _open_shard(self, path: Path, shard: int, size: int, owner: str) -> "MappedShard | ArchiveShard":
        if self._pass.tier == "archive":
            from shared.reading.archive_shard import ArchiveShard

            return ArchiveShard(path, self._geometry, shard, size, owner)
        return MappedShard(path, self._geometry, shard, owner)

    def _norm_chunk(self, shard: int) -> npt.NDArray[np.float32]:
        if shard not in self._norms:
            unit = self._unit_of(shard)
            relative, size, whose = norm_file(self.layer, shard), self._geometry.norm_bytes, f" of unit {unit}"
            data = self._opened(relative, unit, lambda path: read_known(path, size, whose))
            if hex_digest(data) != self._entry(relative).xxh3:
                self._check_not_repaired(unit)
                raise CorruptError(f"{relative} of {self._cache} (norms of unit {unit}) is damaged.")
            self._norms[shard] = np.frombuffer(data[:-CRC_BYTES], "<f4")
        return self._norms[shard]

    def _unit_of(self, shard: int) -> int:
        unit = shard // self._geometry.shards_per_unit
        if unit not in self._records:
            raise IndexError(f"unit {unit} of layer {self.layer} is not harvested.")
        return unit

    def _entry(self, relative: str) -> FileEntry:
        return self._entries[f"{GROUP}/{relative}"]

    def _find(self, relative: str, unit: int) -> Path:
        """The file of a record's entry, its size checked."""
        entry = self._entry(relative)
        for _ in range(2):  # a writer may rename it meanwhile
            path = locate(self._cache, entry)
            try:
                found = file_size(path)
            except FileNotFoundError:
                continue
            if found != entry.size:
                raise CorruptError(f"{path} of unit {unit} has {found} bytes, expected {entry.size}. See all damage: "
                                   f"python -m harvest verify {self._cache}")
            return path
        raise CorruptError(f"{self._cache / GROUP / relative} of unit {unit} is missing. See all damage: "
                           f"python -m harvest verify {self._cache}")


class MappedShard:
    """The file of a shard whose rows lie in it as they are, open for reading."""

    def __init__(self, path: Path, geometry: Geometry, shard: int, owner: str) -> None:
        """Map it; raises as `MappedFile`."""
        self._stride = geometry.block_stride
        self._block_bytes = geometry.block_bytes
        self._file = MappedFile(path, geometry.shard_bytes(shard), owner)
        self._blocks: Bits = np.ndarray(  # strided over the checksums between the blocks
            (geometry.shard_blocks(shard), BLOCK_ROWS, geometry.d_model),
            np.uint16,
            self._file.bytes,
            strides=(geometry.block_stride, geometry.d_model * 2, 2),
        )

    def load(self, block: int) -> Bits:
        """A view of a block ``[128, d_model]``, once its pages have been read; raises as `MappedFile.load`."""
        start = block * self._stride
        self._file.load(start, start + self._block_bytes)
        rows: Bits = self._blocks[block]
        return rows

    def prefetch(self, block: int) -> None:
        """As `MappedFile.prefetch`, for a block."""
        start = block * self._stride
        self._file.prefetch(start, start + self._block_bytes)

    def release(self, first: int, last: int) -> None:
        """As `MappedFile.release`, for blocks ``first`` to ``last`` (inclusive)."""
        self._file.release(first * self._stride, min((last + 1) * self._stride, len(self._file.bytes)))

    def take(self, blocks: Rows, rows: Rows) -> Bits:
        """Copies of single rows ``[num_rows, d_model]`` of such blocks, given by block and number in it."""
        self._file.check_size()
        taken: Bits = self._blocks[blocks, rows]
        return taken


def row_numbers(rows: Rows | Sequence[int], num_rows: int) -> Rows:
    """Row numbers as int64, from integers or from a boolean mask of all rows.

    Raises:
        IndexError: something else, or a mask of another length.
    """
    array = np.asarray(rows)
    if array.dtype == np.bool_:
        if array.shape != (num_rows,):
            raise IndexError(f"a mask of rows must have shape ({num_rows},); got {array.shape}.")
        return np.flatnonzero(array)
    if array.size and not np.issubdtype(array.dtype, np.integer):
        raise IndexError(f"rows must be integers or a boolean mask; got {array.dtype}.")
    return array.astype(np.int64)
