"""Four SAEs trained from one pass over a cache, against their steps one after the other with the data in memory.

    python -m benchmarks.shared_pass [--cache caches/demo --layer 9] [--steps 100] [--rounds 3]

The pass is what a training does: batches are read from files whose pages were dropped from the page cache, checked,
shuffled, scaled, and every SAE takes each of them. Against it stands the sum of the SAEs' own steps on the same scaled
batches, which lie in memory. Each round begins with new SAEs, so both do the same sums. Bytes read are what the
kernel brought from the disk for this process (/proc/self/io), in the pass of four SAEs and in one of a single SAE.
"""

import argparse
import statistics
import time
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.measuring import median_ratio, save
from benchmarks.reader_speed import drop_pages, layer_files
from shared.reading.cache import open_cache
from train.architectures import ARCHITECTURES
from train.architectures.base import RunLength
from train.batches import Batches
from train.config import TrainConfig
from train.statistics import InputStatistics, measure
from train.trainer import Trainer

BATCH_SIZE = 1024
SAES = (("batchtopk", {"k": 16}), ("batchtopk", {"k": 32}), ("topk", {"k": 32}), ("jumprelu", {"l0": 32}))
"""Architectures and sparsities, all of the same width."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", default="caches/demo")
    parser.add_argument("--layer", type=int, default=9)
    parser.add_argument("--d-sae", type=int, default=4608)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    path, layer, steps = Path(arguments.cache), arguments.layer, arguments.steps
    scaling, in_memory = read_into_memory(path, layer, steps)

    def make(count: int) -> list[Trainer]:
        return [trainer(number, len(scaling.centre), arguments.d_sae, steps) for number in range(count)]

    passes: list[float] = []
    alone: list[float] = []
    read: dict[str, list[int]] = {"four": [], "one": []}
    for number in range(arguments.rounds):
        four, bytes_of_four = train_from_cache(path, layer, scaling, make(len(SAES)), steps)
        _, bytes_of_one = train_from_cache(path, layer, scaling, make(1), steps)
        passes.append(four)
        alone.append(sum(train_in_memory(in_memory, one) for one in make(len(SAES))))
        read["four"].append(bytes_of_four)
        read["one"].append(bytes_of_one)
        print(f"  round {number + 1}: four SAEs from one pass {four:.1f} s, their steps alone {alone[-1]:.1f} s; read "
              f"{bytes_of_four / 1e6:.0f} MB, for one SAE {bytes_of_one / 1e6:.0f} MB", flush=True)
    ratio = median_ratio(passes, alone)
    read_ratio = statistics.median(read["four"]) / statistics.median(read["one"])
    print(f"one pass takes {ratio:.3f} of the sum of the steps, and reads {read_ratio:.2f} of one SAE's bytes")
    save("shared_pass", {
        "layer": layer, "d_sae": arguments.d_sae, "batch_size": BATCH_SIZE, "steps": steps, "saes": list(SAES),
        "pass_seconds": passes, "alone_seconds": alone, "bytes_read": read, "share_of_sum": ratio,
        "bytes_of_one": read_ratio,
    })


def trainer(number: int, d_in: int, d_sae: int, steps: int) -> Trainer:
    """A new SAE, of `SAES`."""
    name, sparsity = SAES[number]
    architecture = ARCHITECTURES[name]
    sae = architecture(architecture.Config.model_validate({"d_sae": d_sae, **sparsity}), d_in,
                       RunLength(steps, BATCH_SIZE))
    return Trainer(name, sae, 3e-3, TrainConfig(), torch.device("cpu"))


def read_into_memory(path: Path, layer: int, steps: int) -> tuple[InputStatistics, list[Tensor]]:
    """The scaling, and all scaled batches. The cache is closed again: pages that are mapped cannot be dropped."""
    cache = open_cache(path)
    batches = Batches(cache, layer, BATCH_SIZE, num_steps=steps)
    scaling = measure(cache, layer, batches.order, "mean", True)
    return scaling, [scaling.apply(raw) for raw in batches]


def train_from_cache(path: Path, layer: int, scaling: InputStatistics, trainers: list[Trainer],
                     steps: int) -> tuple[float, int]:
    """Seconds and bytes read of a pass, from the opening of the cache on, its files not in memory."""
    drop_pages(layer_files(open_cache(path), layer))
    started, read = time.perf_counter(), bytes_read()
    cache = open_cache(path)
    for step, raw in enumerate(Batches(cache, layer, BATCH_SIZE, num_steps=steps)):
        x = scaling.apply(raw)
        variance = (x - x.mean(0)).square().mean()
        for one in trainers:
            one.step(x, variance, step)
    return time.perf_counter() - started, bytes_read() - read


def train_in_memory(batches: list[Tensor], one: Trainer) -> float:
    """Seconds of an SAE's steps."""
    variance = torch.ones(())
    started = time.perf_counter()
    for step, x in enumerate(batches):
        one.step(x, variance, step)
    return time.perf_counter() - started


def bytes_read() -> int:
    """Bytes that the kernel has brought from disks for this process by now."""
    lines = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(lines["read_bytes"])


if __name__ == "__main__":
    main()
