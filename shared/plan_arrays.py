"""The plan's arrays (tokens, conversations, sequences): Zarr chunks of 65,536 entries, raw plus crc32c."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt

from shared import storage
from shared.digests import crc32c_bytes, hex_digest
from shared.errors import CorruptError, StorageError
from shared.layout import CRC_BYTES, GROUP, PLAN_ARRAYS, PLAN_CHUNK, plan_chunk_file

AnyArray = npt.NDArray[np.generic]


def write_plan_array(cache: Path, name: str, values: AnyArray, temporary_folder: Path) -> dict[str, str]:
    """Write one array chunk by chunk; returns the files' digests by path in the cache.

    The last chunk is padded with zeros to its full length, as Zarr asks.
    """
    dtype = np.dtype(PLAN_ARRAYS[name]).newbyteorder("<")
    digests = {}
    for chunk in range(-(-len(values) // PLAN_CHUNK)):
        part = np.zeros(PLAN_CHUNK, dtype)
        piece = values[chunk * PLAN_CHUNK : (chunk + 1) * PLAN_CHUNK]
        part[: len(piece)] = piece
        data = part.tobytes()
        data += crc32c_bytes(data)
        relative = f"{GROUP}/{plan_chunk_file(name, chunk)}"
        storage.make_folder((cache / relative).parent)
        storage.write_file(cache / relative, data, temporary_folder)
        digests[relative] = hex_digest(data)
    return digests


class PlanArray:
    """A plan array on disk, read in ranges; each chunk is checked against the plan on first touch."""

    def __init__(self, cache: Path, name: str, length: int, digests: Mapping[str, str]) -> None:
        self._cache = cache
        self._name = name
        self._length = length
        self._digests = digests
        self._checked: set[int] = set()
        self.dtype = np.dtype(PLAN_ARRAYS[name])

    def __len__(self) -> int:
        return self._length

    def read(self, start: int = 0, stop: int | None = None) -> AnyArray:
        """Entries ``start`` to ``stop`` as a new array.

        Raises:
            StorageError: a chunk's file cannot be read.
            CorruptError: a chunk is missing, or is not what the plan wrote.
        """
        stop = self._length if stop is None else min(stop, self._length)
        values = np.empty(max(0, stop - start), self.dtype)
        for chunk in range(start // PLAN_CHUNK, -(-stop // PLAN_CHUNK)):
            base = chunk * PLAN_CHUNK
            first, last = max(start, base), min(stop, base + PLAN_CHUNK)
            values[first - start : last - start] = self._chunk(chunk)[first - base : last - base]
        return values

    def _chunk(self, chunk: int) -> AnyArray:
        relative = f"{GROUP}/{plan_chunk_file(self._name, chunk)}"
        path = self._cache / relative
        size = PLAN_CHUNK * self.dtype.itemsize
        try:
            if path.stat().st_size != size + CRC_BYTES:
                raise CorruptError(f"{path} has {path.stat().st_size} bytes, expected {size + CRC_BYTES}.")
            data = path.read_bytes()
        except FileNotFoundError:
            raise CorruptError(f"{path} is missing.") from None
        except OSError as error:
            raise StorageError(f"Cannot read {path}: {error.strerror}.") from error
        if chunk not in self._checked:
            if hex_digest(data) != self._digests.get(relative):
                raise CorruptError(f"{path} is damaged: its bytes are not those that the plan recorded.")
            self._checked.add(chunk)
        return np.frombuffer(data, self.dtype.newbyteorder("<"), PLAN_CHUNK)
