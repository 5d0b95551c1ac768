"""Our block reader, and `verify`, against a plain sequential read of the same files.

    python -m benchmarks.reader_speed [--cache caches/demo --layer 9] [--rounds 5]

All bring every byte of the layer's rows into memory once; the reader checks each block's crc32c too, and `verify`
(as the command runs it, on every core) that and each file's digest. Cold means that the files' pages were dropped
from the page cache before each turn.
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
from shared.reading.cache import open_cache
from shared.upkeep.verify import files_to_check, verify

_PIECE = 8 << 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", default="caches/demo")
    parser.add_argument("--layer", type=int, default=9)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    cache = open_cache(arguments.cache)
    files = [cache.path / GROUP / shard_file(arguments.layer, shard)
             for unit in cache.committed_units(arguments.layer) for shard in cache.geometry.unit_shards(unit)]
    size = sum(path.stat().st_size for path in files)
    figures: dict[str, object] = {"bytes": size, "rounds": arguments.rounds}
    for state in ("cold", "warm"):
        contenders: dict[str, Callable[[], object]] = {
            "sequential read": partial(read_files, files),
            "block reader": partial(read_blocks, Path(arguments.cache), arguments.layer),
            "verify": partial(verify_layer, Path(arguments.cache), arguments.layer),
        }
        seconds: dict[str, list[float]] = {name: [] for name in contenders}
        for _ in range(arguments.rounds):
            for name, work in contenders.items():
                if state == "cold":
                    drop_pages(files)
                started = time.perf_counter()
                work()
                seconds[name].append(time.perf_counter() - started)
        speeds = {name: size / statistics.median(times) / 1e9 for name, times in seconds.items()}
        shares = {name: median_ratio(seconds["sequential read"], seconds[name]) for name in ("block reader", "verify")}
        print(f"{state}: " + ", ".join(f"{name} {speed:.2f} GB/s" for name, speed in speeds.items())
              + "; of the sequential read: " + ", ".join(f"{name} {share:.2f}" for name, share in shares.items()))
        figures[state] = {"seconds": seconds, "gb_per_second": speeds, "share_of_sequential_read": shares}
    save("reader_speed", figures)


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


def verify_layer(path: Path, layer: int) -> None:
    """Check what `python -m harvest verify` checks of one layer."""
    for checked in verify(files_to_check(path, layers=[layer]), threads=os.cpu_count() or 1):
        assert checked.problem is None, checked


if __name__ == "__main__":
    main()
