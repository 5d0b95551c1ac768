"""Where everything lies in a cache: names of files, and the geometry of blocks, shards and units.

A file of ``resid_post`` is one Zarr shard and a memory map at once: block i (128 rows) starts at byte
``i * (256 * d_model + 4)``, its bf16 rows followed by the four bytes of their crc32c; after the last block
that holds rows comes the shard's index.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from shared.digests import crc32c_bytes
from shared.errors import CorruptError

FORMAT = "sae-granary cache"
FORMAT_VERSION = 1

BLOCK_ROWS = 128
"""Rows in a block: what is checked, read and shuffled in one piece."""

ROWS_PER_SHARD = 65_536
"""Rows in a shard, unless a plan says otherwise."""

PLAN_CHUNK = 65_536
"""Entries in a chunk of the plan's arrays."""

CRC_BYTES = 4

Tier = Literal["mapped", "archive"]
"""How a pass's rows lie on disk: "mapped" as they are, to be memory-mapped; "archive" each block compressed."""

BLOSC: dict[str, Any] = {"typesize": 2, "cname": "zstd", "clevel": 1, "shuffle": "shuffle", "blocksize": 0}
"""What zarr.json says of an archive's codec. No reader needs it: a frame says all of it itself."""

GROUP = "activations.zarr"
PLAN = "plan.json"
PASSES = "passes"
COMMITS = "commits"
TOKENIZER = "tokenizer"
TMP = "tmp"
CLAIMS = "claims"
HEARTBEAT = "heartbeat"
BURIED = ".dead"
"""Ending of the folder of a writer that died and is being removed: ``tmp/<writer>.dead``."""
ENCODED = "plan"
"""Folder under tmp/ of conversations that are encoded and not in a plan yet."""
SKIPPED = "skipped.jsonl"
PROVENANCE = "provenance.jsonl"

PLAN_ARRAYS = {
    "tokens/token_id": "int32",
    "tokens/token_class": "uint8",
    "tokens/token_type": "uint16",
    "tokens/role": "uint8",
    "tokens/turn": "uint16",
    "conversations/offset": "int64",
    "conversations/key": "uint64",
    "conversations/flags": "uint16",
    "conversations/source": "uint16",
    "sequences/offset": "int64",
}
"""The arrays that the plan writes, by path in the group, with their data types."""

_MISSING = np.iinfo(np.uint64).max
INSIDE = r"^[A-Za-z0-9_-][A-Za-z0-9._-]*(/[A-Za-z0-9_-][A-Za-z0-9._-]*)*$"
"""What a record or a plan may call a file: see `inside`."""
LONGEST_PATH = 512
_INSIDE = re.compile(INSIDE[1:-1])


def shard_file(layer: int, shard: int) -> str:
    """Path of a shard of ``resid_post`` inside the group."""
    return f"layers/{layer}/resid_post/c/{shard}/0"


def norm_file(layer: int, shard: int) -> str:
    """Path of a chunk of ``norm`` inside the group."""
    return f"layers/{layer}/norm/c/{shard}"


def plan_chunk_file(array: str, chunk: int) -> str:
    """Path of a chunk of one of the plan's arrays inside the group."""
    return f"{array}/c/{chunk}"


@dataclass(frozen=True)
class Geometry:
    """The sizes of a cache, and what follows from them."""

    num_rows: int
    """N: tokens of the whole plan, held-out ones included."""
    num_train_rows: int
    """Rows from this one on are held out."""
    d_model: int
    rows_per_shard: int = ROWS_PER_SHARD
    shards_per_unit: int = 1

    @property
    def block_bytes(self) -> int:
        """Bytes of a block's rows, without the checksum."""
        return BLOCK_ROWS * self.d_model * 2

    @property
    def block_stride(self) -> int:
        """Bytes from one block's start to the next's."""
        return self.block_bytes + CRC_BYTES

    @property
    def blocks_per_shard(self) -> int:
        return self.rows_per_shard // BLOCK_ROWS

    @property
    def index_bytes(self) -> int:
        """Bytes of a shard's index: offset and length of every block, and a crc32c."""
        return 16 * self.blocks_per_shard + CRC_BYTES

    @property
    def num_blocks(self) -> int:
        return -(-self.num_rows // BLOCK_ROWS)

    @property
    def num_shards(self) -> int:
        return -(-self.num_rows // self.rows_per_shard)

    @property
    def rows_per_unit(self) -> int:
        return self.rows_per_shard * self.shards_per_unit

    @property
    def num_units(self) -> int:
        return -(-self.num_rows // self.rows_per_unit)

    def unit_rows(self, unit: int) -> range:
        """The rows of a unit."""
        start = unit * self.rows_per_unit
        return range(start, min(start + self.rows_per_unit, self.num_rows))

    def unit_shards(self, unit: int) -> range:
        """The shards of a unit."""
        start = unit * self.shards_per_unit
        return range(start, min(start + self.shards_per_unit, self.num_shards))

    def shard_rows(self, shard: int) -> range:
        """The rows of a shard."""
        start = shard * self.rows_per_shard
        return range(start, min(start + self.rows_per_shard, self.num_rows))

    def shard_blocks(self, shard: int) -> int:
        """Number of blocks of a shard that hold rows; the last of them is padded with zeros."""
        return -(-len(self.shard_rows(shard)) // BLOCK_ROWS)

    def shard_bytes(self, shard: int) -> int:
        """Size of a shard's file."""
        return self.shard_blocks(shard) * self.block_stride + self.index_bytes

    @property
    def norm_bytes(self) -> int:
        """Size of a chunk of ``norm``: always whole, padded with NaN."""
        return 4 * self.rows_per_shard + CRC_BYTES

    def unit_bytes(self, unit: int, num_layers: int) -> int:
        """Bytes on disk of a unit's data files, all layers together."""
        return num_layers * sum(self.shard_bytes(shard) + self.norm_bytes for shard in self.unit_shards(unit))

    def shard_index(self, shard: int, sizes: Sequence[int] | None = None) -> bytes:
        """The index at a shard's end: blocks past the last row are marked missing (Zarr v3 sharding).

        Args:
            sizes: bytes of each stored block, checksum included; by default those of rows as they are.
        """
        index: npt.NDArray[np.uint64] = np.full((self.blocks_per_shard, 2), _MISSING, dtype="<u8")
        present = self.shard_blocks(shard)
        index[:present, 1] = self.block_stride if sizes is None else np.array(sizes, np.uint64)
        index[:present, 0] = np.cumsum(index[:present, 1]) - index[:present, 1]
        return index.tobytes() + crc32c_bytes(index.tobytes())

    def fill_order(self, num_tokens: int | None) -> list[int]:
        """The units to fill for ``num_tokens`` training rows: those with held-out rows first, then by number.

        ``None`` asks for the whole plan. The number is rounded up to whole units.
        """
        first_held_out = self.num_train_rows // self.rows_per_unit
        order = list(range(first_held_out, self.num_units)) if self.num_train_rows < self.num_rows else []
        wanted = self.num_train_rows if num_tokens is None else num_tokens
        have = sum(self.train_rows_of(unit) for unit in order)
        for unit in range(self.num_units):
            if have >= wanted:
                break
            if unit not in order:
                order.append(unit)
                have += self.train_rows_of(unit)
        return order

    def train_rows_of(self, unit: int) -> int:
        """How many of a unit's rows are training rows."""
        rows = self.unit_rows(unit)
        return max(0, min(rows.stop, self.num_train_rows) - rows.start)


def inside(folder: Path, relative: str) -> Path:
    """The path of a file that a record or a plan names, which must lie inside ``folder``.

    Names are those that we give: letters, digits, ``.``, ``_`` and ``-``, none hidden, parted by ``/``.

    Raises:
        CorruptError: it is spelled otherwise, or leads out of the folder.
    """
    if len(relative) > LONGEST_PATH or not _INSIDE.fullmatch(relative):
        raise CorruptError(f"{folder} names a file that cannot be one of its own: {relative[:LONGEST_PATH]!r}.")
    return folder / relative
