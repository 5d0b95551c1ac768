"""The archive tier on real activations: how much smaller, how fast to write and to read, and against what.

    python -m benchmarks.cache_tiers [--cache caches/demo] [--layers "9 15"] [--blocks 1500] [--rounds 5]

First our frames against other settings of the same codecs, on blocks in memory, on one thread and on two. Then the
first units of the cache as an archive in ``--folder``, read back through `shared.open_cache`, as training reads it:
every block mapped or decoded, checked against its record, and copied, by two threads. Pages are warm: it is the
work that is measured, not the disk. GB are of rows as they are in memory; speeds of one core are by the processor's
time, whatever else the machine does, those of two threads by the clock.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from numcodecs import blosc

from benchmarks.measuring import save
from shared.digests import crc32c
from shared.format.blosc_frames import Bits, decode, encode
from shared.format.layout import BLOCK_ROWS
from shared.reading.cache import Cache, open_cache
from shared.upkeep.transcode import transcode

THREADS = 2

Encode = Callable[[Bits], bytes]


def plain_blosc(name: bytes, level: int) -> Encode:
    """Blosc as numcodecs writes it, with one Blosc block and byte shuffle."""
    return lambda rows: blosc.compress(rows, name, level, blosc.SHUFFLE, rows.nbytes, 2)


OURS = "ours: zstd 1, planes apart"

CONTENDERS: dict[str, Encode] = {
    OURS: encode,
    "blosc zstd 1": plain_blosc(b"zstd", 1),
    "blosc zstd 3": plain_blosc(b"zstd", 3),
    "blosc zstd 5": plain_blosc(b"zstd", 5),
    "blosc zstd 7": plain_blosc(b"zstd", 7),
    "blosc lz4 5": plain_blosc(b"lz4", 5),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", default="caches/demo")
    parser.add_argument("--layers", default="9 15")
    parser.add_argument("--blocks", type=int, default=1500, help="blocks of each layer, evenly over the cache")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", help="where the archive is made and removed; default: the system's")
    arguments = parser.parse_args()
    cache = open_cache(arguments.cache)
    layers = [int(layer) for layer in arguments.layers.split()]
    figures: dict[str, object] = {"cache": arguments.cache, "d_model": cache.d_model, "threads_of_readers": THREADS}
    for layer in layers:
        blocks = some_blocks(cache, layer, arguments.blocks)
        figures[f"layer {layer}"] = compare(blocks, arguments.rounds)
        print()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        figures |= whole_archive(cache, layers, Path(folder) / "archive", arguments.rounds)
    save("cache_tiers", figures)


def some_blocks(cache: Cache, layer: int, number: int) -> list[Bits]:
    """Whole blocks of a layer in memory, evenly over what is harvested."""
    there = whole_blocks(cache, layer)
    chosen = there[:: max(1, len(there) // number)][:number]
    return [np.array(cache.layer(layer).block(block).view(np.uint16)) for block in chosen]


def whole_blocks(cache: Cache, layer: int) -> list[int]:
    """The blocks of the committed units without padding."""
    return [block for unit in cache.committed_units(layer) for rows in [cache.unit_rows(unit)]
            for block in range(rows.start // BLOCK_ROWS, rows.stop // BLOCK_ROWS)]


def compare(blocks: Sequence[Bits], rounds: int) -> dict[str, dict[str, float]]:
    """Ratio and speeds of every contender, medians over the rounds; one after the other in each round."""
    size = sum(block.nbytes for block in blocks)
    frames: dict[str, list[bytes]] = {}
    seconds: dict[str, dict[str, list[float]]] = {}
    for _ in range(rounds):
        for name, contender in CONTENDERS.items():
            times = seconds.setdefault(name, {"encode": [], "decode": [], "decode on 2 threads": []})
            few = blocks if name == OURS else blocks[::10]  # others take long, and their ratio is as exact
            scale = len(blocks) / len(few)
            started = time.process_time()
            frames[name] = [contender(block) for block in few]
            times["encode"].append((time.process_time() - started) * scale)
            mine = decode_ours if name == OURS else decode_blosc
            started = time.process_time()
            mine(frames[name], blocks[0])
            times["decode"].append((time.process_time() - started) * scale)
            started = time.perf_counter()
            with ThreadPoolExecutor(THREADS) as pool:
                list(pool.map(mine, [frames[name][start::THREADS] for start in range(THREADS)], [blocks[0]] * THREADS))
            times["decode on 2 threads"].append((time.perf_counter() - started) * scale)
    found = {}
    for name, times in seconds.items():
        stored = sum(map(len, frames[name])) / sum(block.nbytes for block in blocks[: len(frames[name])])
        speeds = {f"{key} GB/s": size / statistics.median(each) / 1e9 for key, each in times.items()}
        found[name] = {"ratio": 1 / stored, **speeds}
        print(f"{name:28s} {1 / stored:.3f}x  " + "  ".join(f"{key} {speed:.2f}" for key, speed in speeds.items()))
    checksums = []
    for _ in range(rounds):
        started = time.process_time()
        for frame in frames[OURS]:
            crc32c(frame)
        checksums.append(time.process_time() - started)
    share = statistics.median(checksums) / statistics.median(seconds[OURS]["decode"])
    print(f"{'crc32c of our frames':28s} {share:.1%} of the time to decode them")
    found["crc32c of our frames"] = {"share of decoding": share}
    return found


def decode_ours(frames: Sequence[bytes], like: Bits) -> None:
    rows = np.empty_like(like)
    for frame in frames:
        decode(np.frombuffer(frame, np.uint8), rows)


def decode_blosc(frames: Sequence[bytes], like: Bits) -> None:
    rows = np.empty_like(like)
    for frame in frames:
        blosc.decompress(frame, rows)


def whole_archive(cache: Cache, layers: Sequence[int], target: Path, rounds: int) -> dict[str, object]:
    """Compress the cache, and read the layers of both as training does."""
    done = transcode(cache.path, target, "archive", THREADS)
    ratio = done.source_bytes / done.target_bytes
    print(f"archive: {ratio:.3f}x smaller, written at {done.row_bytes / done.seconds / 1e9:.2f} GB/s")
    speeds: dict[str, dict[str, list[float]]] = {}
    for _ in range(rounds):
        for name, path in (("cache", cache.path), ("archive", target)):
            for layer in layers:
                for key, speed in read_layer(path, layer).items():
                    speeds.setdefault(name, {}).setdefault(key, []).append(speed)
    medians = {name: {key: statistics.median(each) for key, each in found.items()} for name, found in speeds.items()}
    for name, found in medians.items():
        print(f"reading the {name}, checked and copied: " + ", ".join(f"{key} {x:.2f}" for key, x in found.items()))
    return {"archive": {"ratio": ratio, "write GB/s": done.row_bytes / done.seconds / 1e9, "bytes": done.target_bytes},
            "reading": medians, "reading, all rounds": speeds}


def read_layer(path: Path, layer: int) -> dict[str, float]:
    """GB/s of copying every block of a layer, by two threads, each block checked on its first touch."""
    cache = open_cache(path)
    rows = cache.layer(layer)
    blocks = whole_blocks(cache, layer)

    def read(share: list[int]) -> None:
        buffer = np.empty((BLOCK_ROWS, cache.d_model), np.uint16)
        for block in share:
            buffer[:] = rows.block(block).view(np.uint16)

    with ThreadPoolExecutor(THREADS) as pool:
        started, on_processor = time.perf_counter(), time.process_time()
        list(pool.map(read, [blocks[start::THREADS] for start in range(THREADS)]))
        seconds = {f"GB/s on {THREADS} threads": time.perf_counter() - started,
                   "GB/s a core": time.process_time() - on_processor}
    size = len(blocks) * BLOCK_ROWS * cache.d_model * 2
    return {key: size / each / 1e9 for key, each in seconds.items()}


if __name__ == "__main__":
    main()
