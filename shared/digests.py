"""Checksums: crc32c of blocks (what Zarr's codec writes too), xxh3-128 of files and of JSON.

Neither is a signature: they find damage and mix-ups, not forgery.
"""

import json
from pathlib import Path

import google_crc32c
import numpy as np
import numpy.typing as npt
import xxhash

_CHUNK = 8 << 20


def crc32c(data: "bytes | npt.NDArray[np.generic]") -> int:
    """CRC-32C (Castagnoli) of contiguous bytes, the checksum of Zarr's ``crc32c`` codec."""
    return int(google_crc32c.value(data))


def crc32c_bytes(data: "bytes | npt.NDArray[np.generic]") -> bytes:
    """The checksum as Zarr appends it: four bytes, little endian."""
    return crc32c(data).to_bytes(4, "little")


def hex_digest(data: bytes) -> str:
    """xxh3-128 as 32 hex digits."""
    return xxhash.xxh3_128_hexdigest(data)


def file_digest(path: Path) -> str:
    """xxh3-128 of a file's bytes, read piece by piece."""
    state = xxhash.xxh3_128()
    with path.open("rb") as file:
        while piece := file.read(_CHUNK):
            state.update(piece)
    return state.hexdigest()


def canonical_json(value: object) -> bytes:
    """The one spelling of a JSON value that digests are taken of: sorted keys, no spaces, UTF-8."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()
