"""How the blocks of a window, which lie all over a file, are best read from a disk that takes long to answer.

    pip install mfusepy                       # as root, with libfuse: see `benchmarks.slow_mount`
    python -m benchmarks.network_disk [--cache caches/quality --layer 9] [--milliseconds 2]

The cache is seen through a mirror that takes so many milliseconds for every request. The training's window loader
loads a window from it, cold, from the opening of the cache on, with its own way to read a block and with others:

- mapped: ours. The kernel is asked for all blocks of a piece, 128 KiB at a time, and each is taken when it is there;
- mapped, block by block: it is asked for each block of a piece as a whole;
- mapped, not asked: each block is touched when its turn comes;
- pread: each block is read into a buffer when its turn comes.

Beside them a plain sequential read of as many bytes.
"""

import argparse
import contextlib
import mmap
import os
import statistics
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import numpy.typing as npt
import torch

from benchmarks.measuring import interleave, median_ratio, save
from benchmarks.reader_speed import drop_pages, layer_files
from benchmarks.slow_mount import slow_mount
from shared.reading import mapped_file
from shared.reading.cache import open_cache
from shared.reading.layer_rows import MappedShard
from shared.reading.mapped_file import MappedFile
from train.order import ShuffledWindows
from train.window_loader import WindowLoader

_thread = threading.local()


def whole_block(file: MappedFile, start: int, stop: int) -> None:
    """One call for all bytes, of which the kernel begins to read no more than the disk's readahead."""
    first = start - start % mmap.PAGESIZE
    mapped_file._libc.madvise(file._address + first, stop - first, mmap.MADV_WILLNEED)


def nothing(file: MappedFile, start: int, stop: int) -> None:
    """Ask for nothing."""


def pread(shard: MappedShard, block: int) -> npt.NDArray[np.uint16]:
    """Read a block into the thread's buffer."""
    descriptors: dict[Path, int] = _thread.__dict__.setdefault("descriptors", {})
    path = shard._file._path
    if path not in descriptors:
        descriptors[path] = os.open(path, os.O_RDONLY)
    shape = shard._blocks.shape[1:]
    buffer: npt.NDArray[np.uint16] = _thread.__dict__.setdefault("buffer", np.empty(shape, np.uint16))
    assert os.preadv(descriptors[path], [buffer], block * shard._stride) == buffer.nbytes
    return buffer


WAYS: dict[str, Callable[[], Any]] = {
    "mapped": contextlib.nullcontext,
    "mapped, block by block": lambda: patch.object(MappedFile, "prefetch", whole_block),
    "mapped, not asked": lambda: patch.object(MappedFile, "prefetch", nothing),
    "pread": lambda: patch.multiple(MappedShard, load=pread, prefetch=lambda shard, block: None),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", default="caches/quality")
    parser.add_argument("--layer", type=int, default=9)
    parser.add_argument("--milliseconds", type=float, default=2.0)
    parser.add_argument("--blocks", type=int, default=2048, help="of 128 rows, in the window")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    with slow_mount(Path(arguments.cache), arguments.milliseconds / 1000) as mirror:
        cache = open_cache(mirror)
        mask = np.zeros(cache.num_rows, bool)
        mask[cache.rows(layer=arguments.layer)] = True
        order = ShuffledWindows(mask, window_blocks=arguments.blocks, data_seed=0)
        files = layer_files(cache, arguments.layer)
        size = len(order.window(0, 0).held) * cache.d_model * 2
        contenders: dict[str, Callable[[], object]] = {}
        for threads in (2, 8):
            for name, way in WAYS.items():
                contenders[f"{name}, {threads} threads"] = partial(load_window, mirror, arguments.layer, order, threads,
                                                                   way)
        contenders["sequential read"] = partial(read_first, files, size)
        seconds = interleave({name: partial(cold, files, work) for name, work in contenders.items()}, arguments.rounds)
    speeds = {name: size / statistics.median(of) / 1e6 for name, of in seconds.items()}
    ours = {name: median_ratio(of, seconds["mapped, 8 threads" if "8 threads" in name else "mapped, 2 threads"])
            for name, of in seconds.items()}
    for name, speed in speeds.items():
        print(f"{name:34s} {speed:6.0f} MB/s, {ours[name]:.2f} times as long as ours of as many threads")
    save("network_disk", {"milliseconds": arguments.milliseconds, "bytes": size, "seconds": seconds,
                          "mb_per_second": speeds, "times_of_ours": ours})


def cold(files: list[Path], work: Callable[[], object]) -> None:
    """Do it with none of the files' pages in memory."""
    drop_pages(files)
    work()


def load_window(cache: Path, layer: int, order: ShuffledWindows, threads: int, way: Callable[[], Any]) -> None:
    """Load an order's first window. The cache is opened anew: pages that are mapped are not dropped."""
    with way():
        loader = WindowLoader(open_cache(cache).layer(layer), order, torch.device("cpu"), threads=threads)
        loader.start(0, 0).result()
        loader.close()


def read_first(files: list[Path], size: int) -> None:
    """Read so many bytes in order, 8 MiB at a time."""
    buffer = bytearray(8 << 20)
    for path in files:
        with path.open("rb", buffering=0) as file:
            while size > 0 and (got := file.readinto(buffer)):
                size -= got


if __name__ == "__main__":
    main()
