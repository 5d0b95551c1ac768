"""Our TopK training step against sae-lens's own trainer, on the same real activations.

    python -m benchmarks.train_step --peers .venv-peers/bin/python [--cache caches/demo --layer 9]

Both take the same batches in the same order, scaled alike, with the same learning-rate schedule, with
decoder norm, gradient clipping and AuxK on, in turns of 20 steps. The gate is explained variance on the
same held-out rows after the same number of steps.
"""

import argparse
import json
import statistics
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.measuring import median_ratio, save
from shared.reading.cache import Cache, open_cache
from train.architectures import ARCHITECTURES
from train.architectures.base import RunLength
from train.batches import Batches
from train.config import TrainConfig
from train.trainer import Trainer

STEPS_A_TURN = 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", required=True, help="interpreter of an environment with sae-lens")
    parser.add_argument("--cache", default="caches/demo")
    parser.add_argument("--layer", type=int, default=9)
    parser.add_argument("--d-sae", type=int, default=4608)
    parser.add_argument("--k", type=int, default=32)
    parser.add_argument("--batch-size", type=int, default=1024)
    parser.add_argument("--turns", type=int, default=40)
    parser.add_argument("--lr", type=float, default=3e-3)
    arguments = parser.parse_args()
    num_steps = arguments.turns * STEPS_A_TURN
    config = {"d_sae": arguments.d_sae, "k": arguments.k, "batch_size": arguments.batch_size, "lr": arguments.lr,
              "num_steps": num_steps, "warmup_steps": num_steps // 20, "decay_steps": num_steps // 5,
              "threads": torch.get_num_threads()}
    with tempfile.TemporaryDirectory() as folder:
        write_rows(open_cache(arguments.cache), arguments.layer, num_steps * arguments.batch_size, Path(folder),
                   arguments.batch_size)
        figures = compare(Path(folder), config, arguments.peers, arguments.turns)
    save(f"train_step_topk_batch{arguments.batch_size}", {"layer": arguments.layer, **config, **figures})


def write_rows(cache: Cache, layer: int, num_rows: int, folder: Path, batch_size: int) -> None:
    """Shuffled training rows and held-out rows, centred and scaled to a mean square of 1 per dimension."""
    train = torch.cat([x.float() for x in Batches(cache, layer=layer, batch_size=batch_size,
                                                  num_steps=num_rows // batch_size)])
    rows = cache.rows(layer=layer, types=["content"], split="held_out")
    rows = rows[cache.position(rows) > 0][:20_000]
    held_out = torch.from_numpy(cache.layer(layer)[rows].view("uint16")).view(torch.bfloat16).float()
    centre = train.mean(0)
    scale = (train - centre).square().mean().rsqrt()
    np.save(folder / "train.npy", ((train - centre) * scale).numpy())
    np.save(folder / "held_out.npy", ((held_out - centre) * scale).numpy())


class Ours:
    """Our contender, in this process."""

    def __init__(self, folder: Path, config: dict[str, Any]) -> None:
        self._train = torch.from_numpy(np.load(folder / "train.npy")).split(config["batch_size"])
        self._held_out = torch.from_numpy(np.load(folder / "held_out.npy"))
        architecture = ARCHITECTURES["topk"]
        table = architecture.Config.model_validate({"d_sae": config["d_sae"], "k": config["k"]})
        sae = architecture(table, self._held_out.shape[1], RunLength(config["num_steps"], config["batch_size"]))
        schedule = TrainConfig(warmup_share=0.05, decay_share=0.2)
        self._trainer = Trainer("ours", sae, config["lr"], schedule, torch.device("cpu"))
        self._step = 0

    def steps(self, count: int) -> float:
        """Train ``count`` more steps; seconds."""
        started = time.perf_counter()
        for _ in range(count):
            x = self._train[self._step]
            self._trainer.step(x, (x - x.mean(0)).square().mean(), self._step)
            self._step += 1
        return time.perf_counter() - started

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """Explained variance and L0 on the held-out rows."""
        x = self._held_out
        latents = self._trainer.sae.encode(x)
        error = (x - self._trainer.sae.decode(latents)).square().sum()
        variance = (x - x.mean(0)).square().sum()
        return {"explained_variance": float(1 - error / variance), "l0": float((latents > 0).sum() / len(x))}


def compare(folder: Path, config: dict[str, Any], interpreter: str, turns: int) -> dict[str, Any]:
    """Train both in turns; seconds of every turn, and both evaluations."""
    script = Path(__file__).with_name("peer_sae_lens.py")
    command = [interpreter, str(script), str(folder), json.dumps(config)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as peer:
        assert peer.stdin is not None
        assert peer.stdout is not None

        def ask(line: str) -> dict[str, Any]:
            if line:
                peer.stdin.write(line + "\n")  # type: ignore[union-attr]
                peer.stdin.flush()  # type: ignore[union-attr]
            answer = peer.stdout.readline()  # type: ignore[union-attr]
            return dict(json.loads(answer))

        versions = ask("")
        ours = Ours(folder, config)
        seconds: dict[str, list[float]] = {"sae-lens": [], "ours": []}
        for turn in range(turns):
            seconds["sae-lens"].append(ask(f"steps {STEPS_A_TURN}")["seconds"])
            seconds["ours"].append(ours.steps(STEPS_A_TURN))
            print(f"  turn {turn + 1}: " + ", ".join(f"{name} {1000 * times[-1] / STEPS_A_TURN:.0f} ms a step"
                                                     for name, times in seconds.items()), flush=True)
        quality = {"sae-lens": ask("evaluate"), "ours": ours.evaluate()}
        peer.stdin.close()
    ratio = median_ratio(seconds["sae-lens"], seconds["ours"])
    milliseconds = {name: 1000 * statistics.median(times) / STEPS_A_TURN for name, times in seconds.items()}
    print(f"median step: {milliseconds}; ours is {ratio:.2f}x as fast; held-out after equal steps: {quality}")
    return {"peer_versions": versions, "seconds_a_turn": seconds, "milliseconds_a_step": milliseconds, "ratio": ratio,
            "quality": quality}


if __name__ == "__main__":
    main()
