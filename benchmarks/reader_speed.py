"""Our block reader, shuffled batches, and `verify`, against a plain sequential read of the same files.

    python -m benchmarks.reader_speed [--cache caches/demo --layer 9] [--rounds 5]

All bring every byte of the layer's rows into memory once; the reader checks each block's crc32c too, and `verify`
(as the command runs it, on every core) that and each file's digest. Shuffled batches are those that a training takes,
in the default order, from the opening of the cache to the last batch. Cold means that the files' pages were dropped
from the page cache before each turn.

Beside them, single rows in random order through a plain memory map: a sample of them, its time scaled to all rows. It
is small enough that what the kernel reads around each row is not found again.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from benchmarks.measuring import median_ratio, save
from shared.format.layout import BLOCK_ROWS, GROUP, shard_file
from shared.reading.cache import Cache, open_cache
from shared.upkeep.verify import files_to_check, verify
from train.batches import Batches

_PIECE = 8 << 20
_READ_AROUND = 128 << 10
"""What Linux reads around a page that is not there, by default."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", default="caches/demo")
    parser.add_argument("--layer", type=int, default=9)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    cache = open_cache(arguments.cache)
    files = layer_files(cache, arguments.layer)
    size = sum(path.stat().st_size for path in files)
    figures: dict[str, object] = {"bytes": size, "rounds": arguments.rounds}
    for state in ("cold", "warm"):
        contenders: dict[str, Callable[[], float | None]] = {
            "sequential read": partial(read_files, files),
            "block reader": partial(read_blocks, Path(arguments.cache), arguments.layer),
            "shuffled batches": partial(read_batches, Path(arguments.cache), arguments.layer),
            "verify": partial(verify_layer, Path(arguments.cache), arguments.layer),
            "random rows": partial(read_random_rows, files, cache.d_model),
        }
        seconds: dict[str, list[float]] = {name: [] for name in contenders}
        for _ in range(arguments.rounds):
            for name, work in contenders.items():
                if state == "cold":
                    drop_pages(files)
                started = time.perf_counter()
                share = work()  # of the rows, where it is not all
                seconds[name].append((time.perf_counter() - started) / (share or 1))
        speeds = {name: size / statistics.median(times) / 1e9 for name, times in seconds.items()}
        shares = {name: median_ratio(seconds["sequential read"], seconds[name])
                  for name in ("block reader", "shuffled batches", "verify")}
        times = median_ratio(seconds["random rows"], seconds["block reader"])
        print(f"{state}: " + ", ".join(f"{name} {speed:.3g} GB/s" for name, speed in speeds.items())
              + "; of the sequential read: " + ", ".join(f"{name} {share:.2f}" for name, share in shares.items())
              + f"; block reader {times:.1f} times random rows")
        figures[state] = {"seconds": seconds, "gb_per_second": speeds, "share_of_sequential_read": shares,
                          "times_random_rows": times}
    save("reader_speed", figures)


def layer_files(cache: Cache, layer: int) -> list[Path]:
    """The shards of a layer's committed units."""
    return [cache.path / GROUP / shard_file(layer, shard)
            for unit in cache.committed_units(layer) for shard in cache.geometry.unit_shards(unit)]


def drop_pages(files: list[Path]) -> None:
    """Ask the kernel to forget the files' pages."""
    for path in files:
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def read_files(files: list[Path]) -> None:
    """Read every byte in order, 8 MiB at a time, into one buffer."""
    buffer = bytearray(_PIECE)
    for path in files:
        with path.open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass


def read_blocks(path: Path, layer: int) -> None:
    """Copy every block, in order, through the reader: mapped, checked against its record, copied."""
    cache = open_cache(path)
    rows = cache.layer(layer)
    buffer = np.empty((BLOCK_ROWS, cache.d_model), np.uint16)
    for unit in cache.committed_units(layer):
        span = cache.unit_rows(unit)
        for block in range(span.start // BLOCK_ROWS, -(-span.stop // BLOCK_ROWS)):
            view = rows.block(block).view(np.uint16)
            buffer[: len(view)] = view


def read_batches(path: Path, layer: int) -> None:
    """Take one epoch of batches, of all rows of the layer, in the default order."""
    cache = open_cache(path)
    mask = np.zeros(cache.num_rows, bool)
    mask[cache.rows(layer=layer)] = True
    for _ in Batches(cache, layer, batch_size=1024, mask=mask):
        pass


def read_random_rows(files: list[Path], d_model: int) -> float:
    """Copy single rows in random order from memory maps of the files; returns the share of all rows that it took."""
    stride = BLOCK_ROWS * d_model * 2 + 4
    maps = [np.memmap(path, np.uint8, "r") for path in files]
    blocks = [(number, start) for number, one in enumerate(maps) for start in range(0, len(one) - stride + 1, stride)]
    count = max(64, sum(len(one) for one in maps) // (8 * _READ_AROUND))
    rng = np.random.default_rng()
    buffer = np.empty(d_model * 2, np.uint8)
    for block, row in zip(rng.integers(len(blocks), size=count), rng.integers(BLOCK_ROWS, size=count), strict=True):
        number, start = blocks[block]
        first = start + int(row) * d_model * 2
        buffer[:] = maps[number][first : first + d_model * 2]
    return count / (len(blocks) * BLOCK_ROWS)


def verify_layer(path: Path, layer: int) -> None:
    """Check what `python -m harvest verify` checks of one layer."""
    for checked in verify(files_to_check(path, layers=[layer]), threads=os.cpu_count() or 1):
        assert checked.problem is None, checked


if __name__ == "__main__":
    main()
