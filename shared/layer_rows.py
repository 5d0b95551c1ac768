"""One layer's activations, memory-mapped: rows by number, each block checked on first touch."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import ml_dtypes
import numpy as np
import numpy.typing as npt

from shared.commits import FileEntry, Record, locate
from shared.digests import crc32c, hex_digest
from shared.errors import CorruptError, StorageError
from shared.layout import BLOCK_ROWS, CRC_BYTES, GROUP, Geometry, norm_file, shard_file

Verify = Literal["open", "first-touch", "never"]
Rows = npt.NDArray[np.int64]
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
        layers_of_pass: Sequence[int],
        records: Mapping[int, Record],
        verify: Verify = "first-touch",
    ) -> None:
        self.layer = layer
        self.d_model = geometry.d_model
        self._cache = cache
        self._geometry = geometry
        self._layers_of_pass = list(layers_of_pass)
        self._records = dict(records)
        self._entries = {entry.path: entry for record in records.values() for entry in record.files}
        self._checksums: dict[int, npt.NDArray[np.uint32]] = {}
        self._maps: dict[int, npt.NDArray[np.uint16]] = {}
        self._norms: dict[int, npt.NDArray[np.float32]] = {}
        self._verified = np.zeros(geometry.num_blocks, bool)
        if verify == "never":
            self._verified[:] = True
        for record in records.values():
            for shard in geometry.unit_shards(record.unit):
                self._find(shard_file(layer, shard), geometry.shard_bytes(shard))
                self._find(norm_file(layer, shard), geometry.norm_bytes)
        if verify == "open":
            for record in records.values():
                for block in range(record.rows[0] // BLOCK_ROWS, math.ceil(record.rows[1] / BLOCK_ROWS)):
                    self.block(block)

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
            CorruptError: a block is not what was committed.
        """
        if isinstance(rows, slice):
            rows = np.arange(*rows.indices(self._geometry.num_rows))
        wanted = row_numbers(rows, self._geometry.num_rows)
        if wanted.size and (wanted.min() < 0 or wanted.max() >= self._geometry.num_rows):
            raise IndexError(f"rows must lie in 0..{self._geometry.num_rows - 1}; got {wanted.min()}..{wanted.max()}.")
        blocks = wanted // BLOCK_ROWS
        for block in np.unique(blocks):
            self._check(int(block))
        out = np.empty((len(wanted), self.d_model), np.uint16)
        shards = blocks // self._geometry.blocks_per_shard
        for shard in np.unique(shards):
            here = np.flatnonzero(shards == shard)
            view = self._map(int(shard))
            out[here] = view[blocks[here] % self._geometry.blocks_per_shard, wanted[here] % BLOCK_ROWS]
        return out.view(ml_dtypes.bfloat16)

    def block(self, block: int) -> BFloat16Array:
        """A view of one block's rows ``[<=128, d_model]``; no copy. Safe from several threads."""
        self._check(block)
        shard, in_shard = divmod(block, self._geometry.blocks_per_shard)
        rows = min(BLOCK_ROWS, self._geometry.num_rows - block * BLOCK_ROWS)
        return self._map(shard)[in_shard, :rows].view(ml_dtypes.bfloat16)

    def norm(self, rows: Rows | Sequence[int]) -> npt.NDArray[np.float32]:
        """L2 norms of rows ``[num_rows]``, as stored beside them."""
        wanted = row_numbers(rows, self._geometry.num_rows)
        out = np.empty(len(wanted), np.float32)
        shards = wanted // self._geometry.rows_per_shard
        for shard in np.unique(shards):
            here = shards == shard
            out[here] = self._norm_chunk(int(shard))[wanted[here] % self._geometry.rows_per_shard]
        return out

    def _check(self, block: int) -> None:
        """Compare a block with the record the first time it is touched."""
        if self._verified[block]:
            return
        shard, in_shard = divmod(block, self._geometry.blocks_per_shard)
        view = self._map(shard)[in_shard]
        unit = shard // self._geometry.shards_per_unit
        expected = self._block_checksums(unit)[block - self._records[unit].rows[0] // BLOCK_ROWS]
        if crc32c(view.reshape(-1).view(np.uint8)) != expected:
            raise CorruptError(
                f"{self._cache}: block {block} of layer {self.layer} (unit {unit}) is damaged: its crc32c is not "
                f"the committed one. See all damage: python -m harvest verify {self._cache}"
            )
        self._verified[block] = True

    def _block_checksums(self, unit: int) -> npt.NDArray[np.uint32]:
        if unit not in self._checksums:
            record = self._records[unit]
            path = locate(self._cache, record.blocks)
            data = _read(path, unit)
            if hex_digest(data) != record.blocks.xxh3:
                raise CorruptError(f"{path} (block checksums of unit {unit}) is damaged.")
            table = np.frombuffer(data, "<u4").reshape(len(self._layers_of_pass), -1)
            self._checksums[unit] = table[self._layers_of_pass.index(self.layer)]
        return self._checksums[unit]

    def _map(self, shard: int) -> npt.NDArray[np.uint16]:
        """The mapped blocks of a shard ``[blocks, 128, d_model]``, strided over the checksums between them."""
        if shard not in self._maps:
            geometry = self._geometry
            unit = shard // geometry.shards_per_unit
            if unit not in self._records:
                raise IndexError(f"unit {unit} of layer {self.layer} is not harvested.")
            path = self._find(shard_file(self.layer, shard), geometry.shard_bytes(shard))
            raw = np.memmap(path, np.uint8, "r")
            self._maps[shard] = np.ndarray(
                (geometry.shard_blocks(shard), BLOCK_ROWS, geometry.d_model),
                np.uint16,
                raw,
                strides=(geometry.block_stride, geometry.d_model * 2, 2),
            )
        return self._maps[shard]

    def _norm_chunk(self, shard: int) -> npt.NDArray[np.float32]:
        if shard not in self._norms:
            unit = shard // self._geometry.shards_per_unit
            if unit not in self._records:
                raise IndexError(f"unit {unit} of layer {self.layer} is not harvested.")
            relative = norm_file(self.layer, shard)
            path = self._find(relative, self._geometry.norm_bytes)
            data = _read(path, unit)
            if hex_digest(data) != self._entry(relative).xxh3:
                raise CorruptError(f"{path} (norms of unit {unit}) is damaged.")
            self._norms[shard] = np.frombuffer(data[:-CRC_BYTES], "<f4")
        return self._norms[shard]

    def _entry(self, relative: str) -> FileEntry:
        return self._entries[f"{GROUP}/{relative}"]

    def _find(self, relative: str, size: int) -> Path:
        """The file of a record's entry, its size checked against the record and the geometry."""
        unit = int(relative.split("/c/")[1].split("/")[0]) // self._geometry.shards_per_unit
        entry = self._entries.get(f"{GROUP}/{relative}")
        if entry is None or entry.size != size:
            raise CorruptError(f"{self._cache}: the record of unit {unit} does not fit the plan ({relative}).")
        for path in (locate(self._cache, entry), locate(self._cache, entry)):  # a writer may rename it meanwhile
            if path.exists():
                break
        else:
            raise CorruptError(f"{path} of unit {unit} is missing.")
        found = path.stat().st_size
        if found != size:
            raise CorruptError(f"{path} of unit {unit} has {found} bytes, expected {size}.")
        return path


def row_numbers(rows: Any, num_rows: int) -> Rows:
    """Row numbers as int64; a boolean mask over all rows becomes the numbers where it is true.

    Raises:
        IndexError: neither integers nor such a mask.
    """
    array = np.asarray(rows)
    if array.dtype == bool:
        if array.shape != (num_rows,):
            raise IndexError(f"a mask of rows must have shape ({num_rows},); got {array.shape}.")
        return np.flatnonzero(array)
    if array.size and not np.issubdtype(array.dtype, np.integer):
        raise IndexError(f"rows must be integers or a boolean mask; got {array.dtype}.")
    return array.astype(np.int64)


def _read(path: Path, unit: int) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise CorruptError(f"{path} of unit {unit} is missing.") from None
    except OSError as error:
        raise StorageError(f"Cannot read {path} of unit {unit}: {error.strerror}.") from error
