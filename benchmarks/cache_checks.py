"""What it costs to trust a cache: checking blocks on first touch, opening a cache of 1,000 units, and harvesting.

    python -m benchmarks.cache_checks [--cache caches/demo] [--layer 9] [--rounds 5] [--units 1000]

* First touch: every block of a layer through the reader, on one thread with warm pages, with the check and without;
  and the check alone.
* Opening: a cache of 1,000 units of the smallest size, made as a harvest makes them (two layers; with eight shards a
  unit it is 32,000 files): plan, records, and one layer with the sizes of its files. Wall time, imports not counted.
* Harvest: what block checksums and the files' digests take for each byte written, against the rate of the harvest in
  benchmarks/results/harvest_speed_layer9.json. A thread of its own does them, behind the model.

But for opening, seconds are those of a core, whatever else the machine does.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

import ml_dtypes
import numpy as np
import xxhash

from benchmarks.measuring import RESULTS, save
from shared.digests import crc32c
from shared.format.commits import Record, commit
from shared.format.layout import BLOCK_ROWS, Geometry
from shared.format.plan import Plan
from shared.reading.cache import open_cache
from shared.writing.shards import UnitFiles
from shared.writing.writers import writer_folder
from tests.shared import small

_OPEN = """
import sys, time
sys.path.insert(0, ".")
from shared.reading.cache import open_cache
started = time.perf_counter()
cache = open_cache(sys.argv[1])
assert len(cache.layer({layer}).units) == {units}
print(time.perf_counter() - started)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", default="caches/demo")
    parser.add_argument("--layer", type=int, default=9)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--units", type=int, default=1000)
    arguments = parser.parse_args()
    figures: dict[str, object] = {"cache": arguments.cache}
    figures["first touch"] = first_touch(Path(arguments.cache), arguments.layer, arguments.rounds)
    figures["open"] = [opening(arguments.units, shards, arguments.rounds) for shards in (1, 8)]
    figures["harvest"] = harvest_share(arguments.rounds)
    save("cache_checks", figures)


def first_touch(path: Path, layer: int, rounds: int) -> dict[str, float]:
    """GB/s of reading a layer block by block, and of the check alone; medians."""
    speeds: dict[str, list[float]] = {"checked": [], "unchecked": [], "check alone": []}
    for _ in range(rounds):
        for name in speeds:
            cache = open_cache(path, verify="first-touch" if name == "checked" else "never")
            rows = cache.layer(layer)
            blocks = [block for unit in rows.units for span in [cache.unit_rows(unit)]
                      for block in range(span.start // BLOCK_ROWS, span.stop // BLOCK_ROWS)]
            size = len(blocks) * BLOCK_ROWS * cache.d_model * 2
            if name == "check alone":
                views = [rows.block(block).reshape(-1).view(np.uint8) for block in blocks]
                seconds = cpu_seconds(partial(consume, map(crc32c, views)))
            else:
                seconds = cpu_seconds(partial(consume, map(rows.block, blocks)))
            speeds[name].append(size / seconds / 1e9)
    found = {f"{name} GB/s": statistics.median(each) for name, each in speeds.items()}
    print("first touch of every block: " + ", ".join(f"{name} {speed:.1f}" for name, speed in found.items()))
    return found


def consume(items: Iterable[object]) -> None:
    for _ in items:
        pass


def opening(units: int, shards_per_unit: int, rounds: int) -> dict[str, object]:
    """Seconds to open a cache of many units and one of its layers, in a new process after its imports."""
    geometry = Geometry(units * shards_per_unit * BLOCK_ROWS, units * shards_per_unit * BLOCK_ROWS - 500, 2, BLOCK_ROWS,
                        shards_per_unit)
    with tempfile.TemporaryDirectory() as folder:
        cache = Path(folder) / "cache"
        fill(cache, small.make_plan(cache, geometry))
        program = _OPEN.format(layer=small.LAYERS[-1], units=units)
        seconds = [float(subprocess.run([sys.executable, "-c", program, str(cache)], check=True, text=True,
                                        stdout=subprocess.PIPE).stdout) for _ in range(rounds)]
    median = statistics.median(seconds)
    print(f"opening a cache of {units} units of {shards_per_unit} shards and a layer: {median:.2f} s")
    return {"units": units, "shards a unit": shards_per_unit, "layers": len(small.LAYERS), "seconds": median,
            "all": seconds}


def fill(cache: Path, plan: Plan) -> None:
    """Commit every unit as a harvest does, with random rows."""
    geometry = plan.geometry
    rows = np.random.default_rng(0).standard_normal((geometry.rows_per_unit, 2)).astype(ml_dtypes.bfloat16)
    norms = np.linalg.norm(rows.astype(np.float32), axis=1)
    with writer_folder(cache) as writer:
        for unit in range(geometry.num_units):
            span = geometry.unit_rows(unit)
            files = UnitFiles(cache, geometry, unit, small.LAYERS, writer)
            for layer in small.LAYERS:
                files.write(layer, span.start, rows[: len(span)].view(np.uint16), norms[: len(span)])
            entries, blocks = files.finish(small.PASS.pass_id)
            record = Record(cache_id=plan.cache_id, pass_id=small.PASS.pass_id, unit=unit, writer=writer,
                            rows=(span.start, span.stop), files=entries, blocks=blocks, nonfinite={}, made_with={})
            assert commit(cache, record)
            files.discard()


def harvest_share(rounds: int) -> dict[str, float]:
    """The share of a harvest's time that checksums and digests take."""
    data = np.random.default_rng(0).integers(0, 256, (512, BLOCK_ROWS * 576 * 2), dtype=np.uint8)

    def check() -> None:
        for block in data:
            crc32c(block)
            xxhash.xxh3_128(block).digest()

    speed = data.nbytes / statistics.median(cpu_seconds(check) for _ in range(rounds)) / 1e9
    measured = json.loads((RESULTS / "harvest_speed_layer9.json").read_text())
    tokens = measured["tokens_per_second"]["harvest"]
    share = tokens * 576 * 2 / speed / 1e9
    print(f"checksums and digests: {speed:.1f} GB/s of rows, {share:.3%} of the time of a harvest of {tokens:,.0f} "
          f"tokens/s and one layer; 3 % of one core at {0.03 * speed:.2f} GB/s written")
    return {"GB/s": speed, "harvest tokens/s": tokens, "share of its time": share,
            "GB/s written at 3 % of a core": 0.03 * speed}


def cpu_seconds(work: Callable[[], object]) -> float:
    """Processor seconds of this thread: what a core takes, whatever else the machine does."""
    started = time.thread_time()
    work()
    return time.thread_time() - started


if __name__ == "__main__":
    main()
