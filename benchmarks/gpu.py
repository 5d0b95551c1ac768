"""Harvest and training on one CUDA device, at the sizes of Llama-3.2-3B. Part of `make gpu-check`.

    python -m benchmarks.gpu [--small --device cpu]

The model has random weights: what is in them does not change the time. ``--small`` shrinks everything, to
try the program itself on a CPU.
"""

import argparse
import itertools
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import LlamaConfig, LlamaModel

from benchmarks.measuring import save
from harvest.forward import Forward
from harvest.model import cut_model
from harvest.unit_writer import UnitWriter
from harvest.units import Piece, fill, make_batches
from shared import storage
from shared.format.layout import Geometry
from shared.writing.claims import Work
from shared.writing.writers import writer_folder
from train.architectures import ARCHITECTURES
from train.architectures.base import RunLength
from train.config import TrainConfig
from train.trainer import Trainer

_FULL = {"d_model": 3072, "mlp": 8192, "heads": 24, "kv": 8, "layer": 12, "batch_tokens": 32_768, "unit": 262_144,
         "d_sae": 24_576, "batches": (128, 8192), "steps": 50}
_SMALL = {"d_model": 64, "mlp": 128, "heads": 4, "kv": 2, "layer": 2, "batch_tokens": 1024, "unit": 8_192,
          "d_sae": 512, "batches": (128,), "steps": 5}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--small", action="store_true")
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    sizes = _SMALL if arguments.small else _FULL
    figures = {"sizes": sizes, "harvest": harvest_speed(device, sizes), "train": train_speed(device, sizes)}
    if not arguments.small:
        save("gpu", figures)


def harvest_speed(device: torch.device, sizes: dict[str, Any]) -> dict[str, float]:
    """Tokens a second of one layer: forward and copy alone, and with writing and committing-ready files."""
    config = LlamaConfig(hidden_size=sizes["d_model"], intermediate_size=sizes["mlp"], vocab_size=32_000,
                         num_hidden_layers=sizes["layer"] + 1, num_attention_heads=sizes["heads"],
                         num_key_value_heads=sizes["kv"], attn_implementation="sdpa")
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    with torch.device(device):
        model = LlamaModel._from_config(config, dtype=dtype)
    forward = Forward(cut_model(model, sizes["layer"]), [sizes["layer"]], device)
    geometry = Geometry(sizes["unit"], sizes["unit"], sizes["d_model"], sizes["unit"], 1)
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

    def write() -> None:
        with tempfile.TemporaryDirectory() as folder, writer_folder(Path(folder)) as writer:
            storage.make_folder(Path(folder) / "activations.zarr")
            output = UnitWriter(Path(folder), geometry, "0" * 32, "benchmark", [sizes["layer"]], writer, "keep")
            output.begin(Work(0))
            for batch, tokens in zip(batches, ids, strict=True):
                for captured in forward.run(batch, tokens):
                    output.put(captured)
            output.end({})
            output.close()

    figures = {"fill": fill(batches)}
    for name, action in {"compute": compute, "end_to_end": write}.items():
        figures[f"{name}_tokens_per_second"] = sizes["unit"] / median_seconds(action, 3)
        print(f"harvest {name}: {figures[f'{name}_tokens_per_second']:,.0f} tokens/s")
    return figures


def train_speed(device: torch.device, sizes: dict[str, Any]) -> dict[str, float]:
    """Tokens a second of each architecture's step, data on the device already."""
    figures = {}
    for batch_size in sizes["batches"]:
        x = torch.randn(batch_size, sizes["d_model"], device=device)
        for name, architecture in ARCHITECTURES.items():
            table = architecture.Config.model_validate({"d_sae": sizes["d_sae"]})
            length = RunLength(10_000, batch_size)
            trainer = Trainer(name, architecture(table, sizes["d_model"], length), 1e-4, TrainConfig(), device)
            steps = iter(range(10_000))

            def run(trainer: Trainer = trainer, steps: Iterator[int] = steps, x: torch.Tensor = x) -> None:
                for _ in range(sizes["steps"]):
                    trainer.step(x, x.var(), next(steps))
                if device.type == "cuda":
                    torch.cuda.synchronize()

            figures[f"{name}_batch{batch_size}"] = batch_size * sizes["steps"] / median_seconds(run, 3)
            print(f"train {name}, batch {batch_size}: {figures[f'{name}_batch{batch_size}']:,.0f} tokens/s")
    return figures


def median_seconds(action: Callable[[], None], rounds: int) -> float:
    """Median wall seconds after one warm-up."""
    action()
    seconds = []
    for _ in range(rounds):
        started = time.perf_counter()
        action()
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)


if __name__ == "__main__":
    main()
