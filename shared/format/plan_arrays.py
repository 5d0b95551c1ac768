"""The plan's arrays (tokens, conversations, sequences): Zarr chunks of 65,536 entries, raw plus crc32c."""

from pathlib import Path

import numpy as np
import numpy.typing as npt

from shared import storage
from shared.digests import crc32c_bytes, hex_digest
from shared.errors import CorruptError
from shared.format.layout import CRC_BYTES, GROUP, PLAN_ARRAYS, PLAN_CHUNK, TOKENIZER, inside, plan_chunk_file
from shared.format.plan import Plan
from shared.format.tokens import Role, TokenClass, TokenType
from shared.format.zarr_json import check_plan_array
from shared.plain_files import file_size, read_known

AnyArray = npt.NDArray[np.generic]

_LARGEST = {
    "tokens/token_id": np.iinfo(np.int32).max,
    "tokens/token_class": max(TokenClass),
    "tokens/token_type": sum(TokenType),
    "tokens/role": max(Role),
}
"""The largest value of arrays whose values are looked up; the smallest is 0."""


class PlanArrayWriter:
    """Writes one array chunk by chunk as its entries come; no more than a chunk is in memory."""

    def __init__(self, cache: Path, name: str, temporary_folder: Path) -> None:
        self._cache = cache
        self._name = name
        self._temporary_folder = temporary_folder
        self._chunk = np.zeros(PLAN_CHUNK, np.dtype(PLAN_ARRAYS[name]).newbyteorder("<"))
        self._filled = 0
        self._digests: dict[str, str] = {}

    def append(self, values: AnyArray) -> None:
        """Add entries at the end."""
        while len(values):
            piece = values[: PLAN_CHUNK - self._filled]
            self._chunk[self._filled : self._filled + len(piece)] = piece
            self._filled += len(piece)
            values = values[len(piece) :]
            if self._filled == PLAN_CHUNK:
                self._write()

    def close(self) -> dict[str, str]:
        """Write the last chunk, padded with zeros to its full length as Zarr asks; the digests of all, by path."""
        if self._filled:
            self._write()
        return self._digests

    def _write(self) -> None:
        data = self._chunk.tobytes()
        data += crc32c_bytes(data)
        relative = f"{GROUP}/{plan_chunk_file(self._name, len(self._digests))}"
        storage.make_folder((self._cache / relative).parent)
        storage.write_file(self._cache / relative, data, self._temporary_folder)
        self._digests[relative] = hex_digest(data)
        self._chunk[:] = 0
        self._filled = 0


def write_plan_array(cache: Path, name: str, values: AnyArray, temporary_folder: Path) -> dict[str, str]:
    """Write a whole array; returns the files' digests by path in the cache."""
    writer = PlanArrayWriter(cache, name, temporary_folder)
    writer.append(values)
    return writer.close()


def chunk_bytes(name: str) -> int:
    """Size of the file of every chunk of an array."""
    return PLAN_CHUNK * np.dtype(PLAN_ARRAYS[name]).itemsize + CRC_BYTES


def check_plan_names(cache: Path, plan: Plan) -> None:
    """Check that the plan vouches for the files that follow from its numbers, and for no others.

    Raises:
        CorruptError: a file is missing or too much.
    """
    wanted = {f"{GROUP}/zarr.json", f"{GROUP}/layers/zarr.json"}
    wanted |= {f"{GROUP}/{name}/zarr.json" for array in PLAN_ARRAYS for name in (array, array.split("/")[0])}
    num_chunks = sum(_num_chunks(plan, name) for name in PLAN_ARRAYS)
    if num_chunks + len(wanted) > len(plan.digests):  # before as many names are made
        raise CorruptError(f"{cache}: the plan vouches for {len(plan.digests):,} files, but its {plan.num_rows:,} rows "
                           f"need {num_chunks + len(wanted):,}.")
    for name in PLAN_ARRAYS:
        wanted |= {f"{GROUP}/{plan_chunk_file(name, chunk)}" for chunk in range(_num_chunks(plan, name))}
    for path in plan.digests.keys() ^ wanted:
        if path in wanted or inside(cache, path).parent != cache / TOKENIZER:
            raise CorruptError(f"{cache}: the plan {'lacks' if path in wanted else 'vouches for'} {path[:300]!r}, "
                               "which does not follow from its numbers.")


def check_plan_sizes(cache: Path, plan: Plan) -> None:
    """Check that the files of the plan's arrays are there, and as large as its numbers say.

    One call a file. After this, what is allocated for the plan is bounded by what lies in the cache.

    Raises:
        CorruptError: one is missing, has another size, or is a link.
    """
    for name in PLAN_ARRAYS:
        size = chunk_bytes(name)
        for chunk in range(_num_chunks(plan, name)):
            path = cache / GROUP / plan_chunk_file(name, chunk)
            try:
                found = file_size(path)
            except FileNotFoundError:
                raise CorruptError(f"{path} is missing.") from None
            if found != size:
                raise CorruptError(f"{path} has {found} bytes, expected {size}.")


def _num_chunks(plan: Plan, name: str) -> int:
    return -(-plan.array_length(name) // PLAN_CHUNK)


class PlanArray:
    """A plan array on disk, read in ranges; each chunk is checked against the plan on first touch."""

    def __init__(self, cache: Path, name: str, plan: Plan) -> None:
        """Checks the array's metadata.

        Raises:
            CorruptError: it is not what the plan implies.
        """
        self._cache = cache
        self._name = name
        self._length = plan.array_length(name)
        self._digests = plan.digests
        self._checked: set[int] = set()
        self._last: tuple[int, AnyArray] | None = None
        self.dtype = np.dtype(PLAN_ARRAYS[name])
        check_plan_array(cache, plan, name)

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

    def take(self, places: npt.NDArray[np.int64]) -> AnyArray:
        """The entries at some places, as a new array; only their chunks are read.

        Raises:
            IndexError: a place is not in the array. StorageError, CorruptError: as `read`.
        """
        values = np.empty(len(places), self.dtype)
        if not len(places):
            return values
        first, last = int(places.min()), int(places.max())
        if not 0 <= first <= last < self._length:
            raise IndexError(f"rows must lie in 0..{self._length - 1}; got {first}..{last}.")
        chunks = places // PLAN_CHUNK
        for chunk in np.unique(chunks) if first // PLAN_CHUNK < last // PLAN_CHUNK else [first // PLAN_CHUNK]:
            here = chunks == chunk
            values[here] = self._chunk(int(chunk))[places[here] % PLAN_CHUNK]
        return values

    def _chunk(self, chunk: int) -> AnyArray:
        if self._last is not None and self._last[0] == chunk:
            return self._last[1]
        relative = f"{GROUP}/{plan_chunk_file(self._name, chunk)}"
        path = self._cache / relative
        size = chunk_bytes(self._name)
        data = read_known(path, size)
        if len(data) != size:
            raise CorruptError(f"{path} has {len(data)} bytes, expected {size}.")
        values = np.frombuffer(data, self.dtype.newbyteorder("<"), PLAN_CHUNK)
        if chunk not in self._checked:
            self._check(chunk, path, data, values)
        self._last = chunk, values
        return values

    def _check(self, chunk: int, path: Path, data: bytes, values: AnyArray) -> None:
        if hex_digest(data) != self._digests.get(f"{GROUP}/{plan_chunk_file(self._name, chunk)}"):
            raise CorruptError(f"{path} is damaged: its bytes are not those that the plan recorded.")
        used = values[: self._length - chunk * PLAN_CHUNK].astype(np.int64)
        if self._name in _LARGEST and not 0 <= used.min() <= used.max() <= _LARGEST[self._name]:
            raise CorruptError(f"{path} holds {used.min()}..{used.max()}, expected 0..{_LARGEST[self._name]}.")
        if self._name.endswith("/offset") and (np.diff(used) < 0).any():
            raise CorruptError(f"{path} holds offsets that do not ascend.")
        self._checked.add(chunk)
