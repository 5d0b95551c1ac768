"""Harvest and training on one CUDA device, at the sizes of Llama-3.2-3B. Part of `make gpu-check`.

    python -m benchmarks.gpu [--peers .venv-peers/bin/python] [--small --device cpu]

The model has random weights: what is in them does not change the time. SAEs are trained on sums of a few planted
directions with noise, with other packages' trainers beside ours where ``--peers`` names their interpreter, all with
bf16 products and fp32 weights. One is trained from the files of the harvest too, to see how long it waits for them. The
device's own limits, a large product and a copy, are measured in the same run.
``--small`` shrinks everything, to try the program itself on a CPU.
"""

import argparse
import itertools
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from transformers import LlamaConfig, LlamaModel

from benchmarks.measuring import save
from benchmarks.peer_process import synchronize
from benchmarks.train_step import GROUPS, compare
from harvest.forward import Forward
from harvest.model import cut_model
from harvest.unit_writer import UnitWriter
from harvest.units import Piece, fill, make_batches
from shared import storage
from shared.format.commits import read_records
from shared.format.layout import Geometry
from shared.format.plan import Pass
from shared.reading.layer_rows import LayerRows
from shared.writing.claims import Work
from shared.writing.writers import writer_folder
from train.architectures import ARCHITECTURES
from train.architectures.base import RunLength
from train.batches import Batches, Pace
from train.config import TrainConfig
from train.trainer import Trainer

_FULL = {"d_model": 3072, "mlp": 8192, "heads": 24, "kv": 8, "layer": 12, "batch_tokens": 32_768, "unit": 262_144,
         "units": 3, "d_sae": 24_576, "batches": (128, 8192), "steps": 20, "product": 8192,
         "rows": 32_768, "held_out": 2048,
         "cases": ("topk-8192", "topk-128", "batchtopk-8192", "matryoshka-8192", "jumprelu-8192", "standard-8192",
                   "gated-8192"), "turns": 4}
_SMALL = {"d_model": 64, "mlp": 128, "heads": 4, "kv": 2, "layer": 2, "batch_tokens": 1024, "unit": 8_192, "units": 2,
          "d_sae": 512, "batches": (128,), "steps": 5, "product": 256, "rows": 1024, "held_out": 128,
          "cases": ("topk-128", "matryoshka-128", "jumprelu-128", "gated-128"), "turns": 2}
_PASS = "benchmark"
_PAPER_STEPS = 320_000
"""Steps of 128 rows in which FAST (arXiv 2506.07691) trains an SAE."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--peers", help="interpreter of the peers' environment")
    parser.add_argument("--small", action="store_true")
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    if device.index is not None:
        torch.cuda.set_device(device)  # where Triton starts kernels
    sizes = _SMALL if arguments.small else _FULL
    limits = device_limits(device, sizes["product"])
    figures = {"sizes": sizes, "limits": limits, "train": train_speed(device, sizes, limits["product_flops"])}
    with tempfile.TemporaryDirectory() as folder:
        figures |= {"harvest": harvest_speed(device, sizes, Path(folder)),
                    "fed": fed_speed(device, sizes, Path(folder)), "peers": {}}
    if not arguments.small:
        save("gpu", figures)
    if arguments.peers:
        for case, result in against_peers(arguments.peers, device, sizes):
            figures["peers"][case] = result
            if not arguments.small:
                save("gpu", figures)


def device_limits(device: torch.device, size: int) -> dict[str, float]:
    """Operations a second of a large bf16 product, and bytes a second of a copy, read and written ones counted."""
    a, b = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    source = torch.randn(4 * size * size, device=device)
    target = torch.empty_like(source)

    def repeated(action: Callable[[], object]) -> float:
        def run() -> None:
            for _ in range(10):
                action()
            synchronize(device.type)
        return median_seconds(run, 3) / 10

    limits = {"product_flops": 2 * size**3 / repeated(lambda: a @ b),
              "copy_bytes": 8 * len(source) / repeated(lambda: target.copy_(source))}
    print(f"limits: {limits['product_flops'] / 1e12:.0f} TFLOP/s, {limits['copy_bytes'] / 1e12:.2f} TB/s")
    return limits


def geometry_of(sizes: dict[str, Any]) -> Geometry:
    """All units, each a shard."""
    rows = sizes["units"] * sizes["unit"]
    return Geometry(rows, rows, sizes["d_model"], sizes["unit"], 1)


def harvest_speed(device: torch.device, sizes: dict[str, Any], folder: Path) -> dict[str, float]:
    """Tokens a second of one layer: forward and copy alone; with writing, checksums and commits, of some units, which
    stay in ``folder``; and bytes a second of plain writing to the same disk, with fsync."""
    config = LlamaConfig(hidden_size=sizes["d_model"], intermediate_size=sizes["mlp"], vocab_size=32_000,
                         num_hidden_layers=sizes["layer"] + 1, num_attention_heads=sizes["heads"],
                         num_key_value_heads=sizes["kv"], attn_implementation="sdpa")
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    with torch.device(device):
        model = LlamaModel._from_config(config, dtype=dtype)
    forward = Forward(cut_model(model, sizes["layer"]), [sizes["layer"]], device)
    units, geometry = sizes["units"], geometry_of(sizes)
    generator = np.random.default_rng(0)
    lengths = np.minimum(np.exp(generator.normal(6.3, 1.0, sizes["unit"] // 64)).astype(int) + 8, 8192)
    ends = np.cumsum(lengths)
    ends = ends[ends < sizes["unit"]]
    bounds = [0, *ends.tolist(), sizes["unit"]]
    pieces = [Piece(a, a, b) for a, b in itertools.pairwise(bounds)]
    batches = make_batches(pieces, sizes["batch_tokens"])
    ids = [generator.integers(0, 32_000, (len(batch), len(batch[0]))) for batch in batches]

    def compute() -> None:
        for batch, tokens in zip(batches, ids, strict=True):
            for captured in forward.run(batch, tokens):
                captured.wait()

    def end_to_end() -> None:
        with writer_folder(folder) as writer:
            storage.make_folder(folder / "activations.zarr")
            output = UnitWriter(folder, geometry, "0" * 32, _PASS, [sizes["layer"]], writer, "keep")
            for unit in range(units):
                output.begin(Work(unit))
                start = unit * sizes["unit"]
                for batch, tokens in zip(batches, ids, strict=True):
                    moved = [Piece(start + piece.start, start + piece.keep, start + piece.stop) for piece in batch]
                    for captured in forward.run(moved, tokens):
                        output.put(captured)
                output.end({})
            output.close()

    def plain_write() -> None:
        rows = torch.zeros(sizes["unit"] // 16, sizes["d_model"], dtype=torch.bfloat16).view(torch.uint8).numpy()
        with tempfile.TemporaryFile(buffering=0) as file:
            for _ in range(16):
                file.write(rows.data)
            os.fsync(file.fileno())

    compute_seconds, write_seconds = median_seconds(compute, 3), median_seconds(plain_write, 1)
    figures = {
        "fill": fill(batches), "compute_tokens_per_second": sizes["unit"] / compute_seconds,
        "end_to_end_tokens_per_second": units * sizes["unit"] / seconds(end_to_end),
        "plain_write_bytes_per_second": 2 * sizes["unit"] * sizes["d_model"] / write_seconds,
    }
    print(f"harvest: {figures['compute_tokens_per_second']:,.0f} tokens/s computed, "
          f"{figures['end_to_end_tokens_per_second']:,.0f} to the disk, which takes plain files at "
          f"{figures['plain_write_bytes_per_second'] / 1e9:.2f} GB/s")
    return figures


def train_speed(device: torch.device, sizes: dict[str, Any], product_flops: float) -> dict[str, dict[str, float]]:
    """Each architecture's step, data on the device already: tokens a second, and the share of the device's speed in
    products that the five of a dense step would have (10 * d_in * d_sae operations a token)."""
    figures = {}
    for batch_size in sizes["batches"]:
        x = torch.randn(batch_size, sizes["d_model"], device=device)
        variance = x.var()
        for name, architecture in ARCHITECTURES.items():
            table = architecture.Config.model_validate({"d_sae": sizes["d_sae"]})
            length = RunLength(10_000, batch_size)
            trainer = Trainer(name, architecture(table, sizes["d_model"], length), 1e-4, TrainConfig(), device)
            steps = iter(range(10_000))

            def run(trainer: Trainer = trainer, steps: Iterator[int] = steps, x: torch.Tensor = x,
                    variance: torch.Tensor = variance) -> None:
                for _ in range(sizes["steps"]):
                    trainer.step(x, variance, next(steps))
                synchronize(device.type)

            step = median_seconds(run, 3) / sizes["steps"]
            rate = batch_size / step
            figures[f"{name}_batch{batch_size}"] = {
                "milliseconds": 1000 * step, "tokens_per_second": rate,
                "share_of_products": 10 * sizes["d_model"] * sizes["d_sae"] * rate / product_flops}
            minutes = f", {_PAPER_STEPS * step / 60:.1f} min for {_PAPER_STEPS:,} steps" if batch_size == 128 else ""
            print(f"train {name}, batch {batch_size}: {1000 * step:.2f} ms, {rate:,.0f} tokens/s, "
                  f"{figures[f'{name}_batch{batch_size}']['share_of_products']:.0%} of the products' speed{minutes}")
    return figures


def fed_speed(device: torch.device, sizes: dict[str, Any], folder: Path) -> dict[str, float]:
    """TopK steps on batches from the files in ``folder``, in the default order and checked block by block: tokens and
    bytes a second over two passes, and the share of the time that was spent in waiting for rows."""
    layer, rows, batch_size = sizes["layer"], sizes["units"] * sizes["unit"], sizes["batches"][-1]
    pass_ = Pass(layers=[layer], compute_dtype="bfloat16", attention="sdpa")
    activations = LayerRows(folder, geometry_of(sizes), layer, pass_, read_records(folder, _PASS))
    cache: Any = SimpleNamespace(path=folder, layers=(layer,), d_model=sizes["d_model"], layer=lambda _: activations)
    num_steps = 2 * rows // batch_size
    batches = Batches(cache, layer, batch_size, mask=np.ones(rows, bool), num_steps=num_steps, device=device)
    table = ARCHITECTURES["topk"].Config.model_validate({"d_sae": sizes["d_sae"]})
    sae = ARCHITECTURES["topk"](table, sizes["d_model"], RunLength(num_steps, batch_size))
    trainer = Trainer("topk", sae, 1e-4, TrainConfig(), device)
    pace = Pace(batches)
    for step, raw in enumerate(batches):
        x = raw.float()
        trainer.step(x, x.var(), step)
    synchronize(device.type)
    found = pace.since_last(num_steps)
    found["bytes_per_second"] = 2 * sizes["d_model"] * found["tokens_per_second"]
    print(f"TopK fed from files, batch {batch_size}: {found['tokens_per_second']:,.0f} tokens/s, "
          f"{found['bytes_per_second'] / 1e9:.2f} GB/s, {found['stall_share']:.1%} of the time spent in waiting")
    return found


def against_peers(interpreter: str, device: torch.device,
                  sizes: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """`benchmarks.train_step` on the device: turns of a few steps on the same rows."""
    with tempfile.TemporaryDirectory() as folder:
        write_planted_rows(sizes, Path(folder))
        for case in sizes["cases"]:
            architecture, _, batch_size = case.partition("-")
            num_steps = sizes["turns"] * sizes["steps"]
            config = {"architecture": architecture, "batch_size": int(batch_size), "device": device.type,
                      "d_sae": sizes["d_sae"], "k": 32, "lr": 1e-3, "num_steps": num_steps,
                      "warmup_steps": num_steps // 20, "decay_steps": num_steps // 5, "threads": 4,
                      "groups": GROUPS, "l1_coefficient": 1.3, "l0_coefficient": 0.1, "gated_coefficient": 1.3}
            print(case, flush=True)
            yield case, compare(Path(folder), config, interpreter, sizes["turns"], sizes["steps"])


def write_planted_rows(sizes: dict[str, Any], folder: Path) -> None:
    """train.npy and held_out.npy: rows ``[rows, d_model]`` that are sums of 32 of d_sae directions, and noise."""
    generator = torch.Generator().manual_seed(0)
    directions = torch.nn.functional.normalize(
        torch.randn(sizes["d_sae"], sizes["d_model"], generator=generator), dim=1)
    for name, rows in (("train", sizes["rows"]), ("held_out", sizes["held_out"])):
        chosen = torch.randint(len(directions), (rows, 32), generator=generator)
        x = torch.nn.functional.embedding_bag(chosen, directions, mode="sum",
                                              per_sample_weights=torch.rand(rows, 32, generator=generator))
        x += 0.1 * x.square().mean().sqrt() * torch.randn(x.shape, generator=generator)
        np.save(folder / f"{name}.npy", ((x - x.mean(0)) * (x - x.mean(0)).square().mean().rsqrt()).numpy())


def seconds(action: Callable[[], None]) -> float:
    """Wall seconds."""
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


def median_seconds(action: Callable[[], None], rounds: int) -> float:
    """Median wall seconds after one warm-up."""
    action()
    return statistics.median(seconds(action) for _ in range(rounds))


if __name__ == "__main__":
    main()
