"""Writing the files of one unit: rows come in any order, block checksums, index and digests at the end."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import xxhash

from shared import storage
from shared.digests import crc32c, crc32c_bytes, hex_digest
from shared.format.commits import FileEntry
from shared.format.layout import BLOCK_ROWS, COMMITS, CRC_BYTES, GROUP, TMP, Geometry, norm_file, shard_file

Bits = npt.NDArray[np.uint16]
"""bfloat16 values as their bits: NumPy itself has no such type."""

_GAP = bytes(CRC_BYTES)
_BLOCKS_AT_ONCE = 64


class UnitFiles:
    """The files of a unit under temporary names, preallocated at their full size.

    Memory stays at one norm (four bytes) a row and layer: rows go to the files as they come.
    """

    def __init__(self, cache: Path, geometry: Geometry, unit: int, layers: Sequence[int], writer: str) -> None:
        self.unit = unit
        self.rows = geometry.unit_rows(unit)
        self._cache = cache
        self._geometry = geometry
        self._layers = tuple(layers)
        self._writer = writer
        self._folder = cache / TMP / writer / f"unit-{unit:06d}"
        storage.make_folder(self._folder)
        self._files: dict[tuple[int, int], storage.NewFile] = {}
        try:
            for layer in self._layers:
                for shard in geometry.unit_shards(unit):
                    path = self._folder / f"{layer}-resid_post-{shard}"
                    self._files[layer, shard] = storage.NewFile(path, geometry.shard_bytes(shard))
        except BaseException:
            self.discard()
            raise
        self._norms = {layer: np.full(len(self.rows), np.nan, np.float32) for layer in self._layers}
        self._written = {layer: 0 for layer in self._layers}

    def write(self, layer: int, start: int, rows: Bits, norms: npt.NDArray[np.float32]) -> None:
        """Write consecutive rows of a layer.

        Args:
            start: row number of the first.
            rows: bfloat16 bits, C-contiguous ``[num_rows, d_model]``.
            norms: their L2 norms ``[num_rows]``.
        """
        assert self.rows.start <= start
        assert start + len(rows) <= self.rows.stop
        self._norms[layer][start - self.rows.start :][: len(rows)] = norms
        self._written[layer] += len(rows)
        done = 0
        while done < len(rows):
            row = start + done
            shard, in_shard = divmod(row, self._geometry.rows_per_shard)
            count = min(len(rows) - done, self._geometry.rows_per_shard - in_shard)
            self._write_in_shard(self._files[layer, shard], in_shard, rows[done : done + count])
            done += count

    def _write_in_shard(self, file: storage.NewFile, in_shard: int, rows: Bits) -> None:
        """One vectored write: the rows of each block, with a gap where its checksum will stand."""
        block, in_block = divmod(in_shard, BLOCK_ROWS)
        offset = block * self._geometry.block_stride + in_block * self._geometry.d_model * 2
        first = min(len(rows), BLOCK_ROWS - in_block)
        pieces: list[storage.Buffer] = [memoryview(rows[:first]).cast("B")]
        for begin in range(first, len(rows), BLOCK_ROWS):
            pieces += [_GAP, memoryview(rows[begin : begin + BLOCK_ROWS]).cast("B")]
        file.write(offset, pieces)

    def finish(self, pass_id: str, generation: int = 0) -> tuple[list[FileEntry], FileEntry]:
        """Set block checksums and indexes, take digests, fsync: what a record says of the unit.

        Returns:
            The entries of the data files, and that of the binary file with every block's crc32c.
        """
        assert all(count == len(self.rows) for count in self._written.values()), "a unit is committed whole"
        entries = []
        checksums: list[int] = []
        for layer in self._layers:
            for shard in self._geometry.unit_shards(self.unit):
                digest = self._finish_shard(self._files[layer, shard], shard, checksums)
                entries.append(self._entry(shard_file(layer, shard), self._files[layer, shard], digest))
            for shard in self._geometry.unit_shards(self.unit):
                entries.append(self._write_norms(layer, shard))
        self._close()
        blocks = np.array(checksums, "<u4").tobytes()
        path = f"{COMMITS}/{pass_id}/{self.unit:06d}.g{generation}.{self._writer}.crc32c"
        storage.make_folder((self._cache / path).parent)
        storage.write_new_file(self._cache / path, blocks)
        storage.fsync_folder((self._cache / path).parent)
        storage.fsync_folder(self._folder)
        return entries, FileEntry(path=path, temporary=path, size=len(blocks), xxh3=hex_digest(blocks))

    def _finish_shard(self, file: storage.NewFile, shard: int, checksums: list[int]) -> str:
        geometry = self._geometry
        digest = xxhash.xxh3_128()
        num_blocks = geometry.shard_blocks(shard)
        # One buffer for all: fresh memory for each piece took as long as everything else here.
        buffer = np.empty((min(_BLOCKS_AT_ONCE, num_blocks), geometry.block_stride), np.uint8)
        for start in range(0, num_blocks, _BLOCKS_AT_ONCE):
            count = min(_BLOCKS_AT_ONCE, num_blocks - start)
            offset = start * geometry.block_stride
            data = buffer[:count]
            file.read_into(offset, memoryview(data).cast("B"))
            for block in data:
                checksum = crc32c(block[: geometry.block_bytes])
                checksums.append(checksum)
                block[geometry.block_bytes :] = np.frombuffer(checksum.to_bytes(CRC_BYTES, "little"), np.uint8)
            file.write(offset, [memoryview(data)])
            digest.update(data)
        index = geometry.shard_index(shard)
        file.write(num_blocks * geometry.block_stride, [index])
        digest.update(index)
        file.fsync()
        return digest.hexdigest()

    def _write_norms(self, layer: int, shard: int) -> FileEntry:
        rows = self._geometry.shard_rows(shard)
        chunk = np.full(self._geometry.rows_per_shard, np.nan, "<f4")
        chunk[: len(rows)] = self._norms[layer][rows.start - self.rows.start :][: len(rows)]
        data = chunk.tobytes()
        data += crc32c_bytes(data)
        with storage.NewFile(self._folder / f"{layer}-norm-{shard}", 0) as file:
            file.write(0, [data])
            file.fsync()
        return self._entry(norm_file(layer, shard), file, hex_digest(data), len(data))

    def _entry(self, path: str, file: storage.NewFile, digest: str, size: int | None = None) -> FileEntry:
        return FileEntry(
            path=f"{GROUP}/{path}",
            temporary=str(file.path.relative_to(self._cache)),
            size=file.size if size is None else size,
            xxh3=digest,
        )

    def _close(self) -> None:
        for file in self._files.values():
            file.close()
        self._files.clear()

    def discard(self) -> None:
        """Drop the unit: close and remove what was written."""
        self._close()
        storage.remove_tree(self._folder)
