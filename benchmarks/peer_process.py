"""How a peer is driven: run by the interpreter of the peers' environment, one process for each contender.

    python benchmarks/peer_sae_lens.py FOLDER CONFIG.json

Reads commands from stdin, one a line, and answers each with one line of JSON: ``steps N`` trains N more
steps and answers with their wall and CPU seconds; ``evaluate`` answers with explained variance and L0 on
held-out rows. FOLDER holds train.npy and held_out.npy, float32 ``[rows, d_in]``, scaled already, which are
taken to the device that the configuration names; step s takes the s-th batch of train.npy and begins again
after the last. The first line of the answers are versions. Imports nothing of this project.
"""

import json
import sys
import time
from abc import ABC, abstractmethod
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor


class Peer(ABC):
    """One contender: its package's own training step."""

    package: str

    def __init__(self, config: dict[str, Any], train: Tensor) -> None:
        """``train`` is ``[rows, d_in]``."""
        self.config = config
        self.batches = train.split(config["batch_size"])
        self.done = 0

    def next_batch(self) -> Tensor:
        """The batch of the next step: ``[batch, d_in]``."""
        self.done += 1
        return self.batches[(self.done - 1) % len(self.batches)]

    @abstractmethod
    def step(self) -> None:
        """One training step, as the package's own loop does it."""

    @abstractmethod
    def reconstruct(self, x: Tensor) -> tuple[Tensor, float]:
        """Reconstruction ``[rows, d_in]`` of x and the mean number of active latents in a row."""


def synchronize(device: str) -> None:
    """Wait until a CUDA device has done what it was asked."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def explained_variance(x: Tensor, x_hat: Tensor) -> float:
    """1 - |x - x_hat|^2 / |x - mean(x)|^2 over all rows."""
    return float(1 - (x - x_hat).square().sum() / (x - x.mean(0)).square().sum())


def load_rows(folder: Path, name: str) -> Tensor:
    """Rows of a .npy file, mapped: contenders share the pages."""
    return torch.from_numpy(np.load(folder / f"{name}.npy", mmap_mode="c"))


def serve(make: type[Peer]) -> None:
    """Answer commands until stdin ends."""
    folder, config = Path(sys.argv[1]), json.loads(sys.argv[2])
    answers = sys.stdout
    sys.stdout = sys.stderr  # packages print
    torch.set_num_threads(config["threads"])
    torch.manual_seed(0)
    peer = make(config, load_rows(folder, "train").to(config["device"]))
    held_out = load_rows(folder, "held_out").to(config["device"])

    def answer(content: dict[str, Any]) -> None:
        print(json.dumps(content), file=answers, flush=True)

    answer({name: version(name) for name in (make.package, "torch")})
    for line in sys.stdin:
        command, *arguments = line.split()
        if command == "steps":
            started = time.perf_counter(), time.process_time()
            for _ in range(int(arguments[0])):
                peer.step()
            synchronize(config["device"])
            answer({"seconds": time.perf_counter() - started[0], "cpu_seconds": time.process_time() - started[1]})
        elif command == "evaluate":
            with torch.no_grad():
                x_hat, l0 = peer.reconstruct(held_out)
            answer({"explained_variance": explained_variance(held_out, x_hat), "l0": l0})
