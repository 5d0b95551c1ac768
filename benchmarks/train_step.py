"""Our training steps against the trainers of other packages, on the same real activations.

    python -m benchmarks.train_step --peers .venv-peers/bin/python [topk-1024 jumprelu-1024 ...]

A case is an architecture and a batch size; without one, all are measured. All contenders of a case take the same
batches in the same order, scaled alike, with the same peak learning rate, with unit decoder norm (or what the package
has for it), gradient clipping and AuxK on, in turns of a few steps. Ours has its default schedule; sae-lens and
dictionary-learning fall over the last fifth, with which they explain more than over four fifths (0.845 and 0.840,
against 0.836 and 0.832, with 128 rows and ``decay_steps`` set to that), and sparsify has one of its own. All cases
see as many rows: with fewer in a batch there are more steps, at a rate that falls with the root of the batch (Malladi
et al. 2022, arXiv 2205.10287). The gate is quality: explained variance on the same held-out rows after the same
number of steps, at an L0 no larger than the peer's or the asked one. The floor is what no step can do without: the
encoder's product and the optimiser's pass over weights and moments.
"""

import argparse
import json
import math
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.measuring import median_ratio, save
from benchmarks.peer_process import explained_variance, load_rows, synchronize
from shared.reading.cache import Cache, open_cache
from train.architectures import ARCHITECTURES
from train.architectures.base import RunLength
from train.batches import Batches
from train.config import TrainConfig
from train.optimizer import Adam
from train.trainer import Trainer

ALL = ("topk-1024", "batchtopk-1024", "matryoshka-1024", "standard-1024", "gated-1024", "jumprelu-1024", "topk-128")
PEERS = {"topk": ("sae_lens", "dictionary_learning", "sparsify"), "batchtopk": ("sae_lens", "dictionary_learning"),
         "matryoshka": ("sae_lens", "dictionary_learning"),
         "standard": ("sae_lens",), "gated": ("sae_lens",), "jumprelu": ("sae_lens",)}
GROUPS = (1 / 32, 2 / 32, 4 / 32, 8 / 32, 17 / 32)
"""What Matryoshka's prefixes add, as shares of the width: our default for all contenders."""
HELD_OUT_ROWS = 8192
Turn = dict[str, float]
"""Wall and CPU seconds of a turn."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", default=ALL, metavar="CASE", help=f"of {', '.join(ALL)}; default: all")
    parser.add_argument("--peers", required=True, help="interpreter of the peers' environment")
    parser.add_argument("--cache", default="caches/demo")
    parser.add_argument("--layer", type=int, default=9)
    parser.add_argument("--d-sae", type=int, default=4608)
    parser.add_argument("--k", type=int, default=32, help="k, or the L0 to come to")
    parser.add_argument("--turns", type=int, default=30)
    parser.add_argument("--steps", type=int, default=10, help="steps a turn, of 1,024 rows")
    parser.add_argument("--lr", type=float, default=3e-3, help="peak learning rate for batches of 1,024 rows")
    parser.add_argument("--l1-coefficient", type=float, default=2.0,
                        help="sae-lens's for standard, which takes no L0: by trial, so that it ends at about 32")
    parser.add_argument("--gated-coefficient", type=float, default=3.0, help="the same for gated")
    parser.add_argument("--l0-coefficient", type=float, default=0.55, help="the same for jumprelu")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        write_rows(open_cache(arguments.cache), arguments.layer, arguments.turns * arguments.steps * 1024, Path(folder))
        for case in arguments.cases:
            architecture, _, batch_size = case.partition("-")
            steps = arguments.steps * 1024 // int(batch_size)
            num_steps = arguments.turns * steps
            config = {"device": "cpu", "d_sae": arguments.d_sae, "k": arguments.k,
                      "lr": arguments.lr * math.sqrt(int(batch_size) / 1024), "num_steps": num_steps,
                      "warmup_steps": num_steps // 20, "decay_steps": num_steps // 5,
                      "threads": torch.get_num_threads(), "groups": GROUPS,
                      "l1_coefficient": arguments.l1_coefficient, "l0_coefficient": arguments.l0_coefficient,
                      "gated_coefficient": arguments.gated_coefficient}
            print(case, flush=True)
            figures = compare(Path(folder), {"architecture": architecture, "batch_size": int(batch_size), **config},
                              arguments.peers, arguments.turns, steps)
            result = {"cache": Path(arguments.cache).name, "layer": arguments.layer, **config, **figures}
            save(f"train_step_{architecture}_batch{batch_size}", result)
            print(readme_row(result))


def write_rows(cache: Cache, layer: int, num_rows: int, folder: Path) -> None:
    """Shuffled training rows (one pass at most) and held-out rows, centred and scaled to a mean square of 1."""
    batches = Batches(cache, layer=layer, batch_size=1024)
    batches.num_steps = min(batches.num_steps, num_rows // 1024)
    train = torch.cat([x.float() for x in batches])
    rows = cache.rows(layer=layer, types=["content"], split="held_out")
    rows = rows[cache.position(rows) > 0][:HELD_OUT_ROWS]
    held_out = torch.from_numpy(cache.layer(layer)[rows].view("uint16")).view(torch.bfloat16).float()
    centre = train.mean(0)
    scale = (train - centre).square().mean().rsqrt()
    np.save(folder / "train.npy", ((train - centre) * scale).numpy())
    np.save(folder / "held_out.npy", ((held_out - centre) * scale).numpy())


def timed(step: Callable[[], None], count: int, device: str) -> Turn:
    """Run ``count`` steps."""
    started = time.perf_counter(), time.process_time()
    for _ in range(count):
        step()
    synchronize(device)
    return {"seconds": time.perf_counter() - started[0], "cpu_seconds": time.process_time() - started[1]}


class Ours:
    """Our contender, in this process."""

    def __init__(self, folder: Path, config: dict[str, Any]) -> None:
        device = config["device"]
        self._batches = load_rows(folder, "train").to(device).split(config["batch_size"])
        self._held_out = load_rows(folder, "held_out").to(device)
        architecture = ARCHITECTURES[config["architecture"]]
        sparsity = "k" if "k" in architecture.Config.model_fields else "l0"
        table = architecture.Config.model_validate({"d_sae": config["d_sae"], sparsity: config["k"],
                                                    **config.get("sae", {})})
        sae = architecture(table, self._held_out.shape[1], RunLength(config["num_steps"], config["batch_size"]))
        self._trainer = Trainer("ours", sae, config["lr"], TrainConfig(), torch.device(device))
        self._done = 0

    def step(self) -> None:
        """One training step."""
        x = self._batches[self._done % len(self._batches)]
        self._trainer.step(x, (x - x.mean(0)).square().mean(), self._done)
        self._done += 1

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """Explained variance and L0 on the held-out rows. Peers' BatchTopK takes the largest of these rows
        together; a threshold set on them does the same. So do those of the others, which are compared at an L0 that
        sae-lens was brought to on these rows."""
        x, sae = self._held_out, self._trainer.sae
        sae.calibrate([x])
        latents = sae.encode(x)
        return {"explained_variance": explained_variance(x, sae.decode(latents)),
                "l0": float((latents > 0).sum() / len(x))}


class Floor:
    """The encoder's product and one pass of the fused optimiser over all weights; nothing else."""

    def __init__(self, d_in: int, config: dict[str, Any]) -> None:
        shapes = {"W_enc": (config["d_sae"], d_in), "b_enc": (config["d_sae"],), "W_dec": (config["d_sae"], d_in),
                  "b_dec": (d_in,)}
        device = config["device"]
        self._weights = {name: torch.nn.Parameter(torch.randn(shape, device=device) / d_in)
                         for name, shape in shapes.items()}
        self._gradients = {name: torch.randn_like(weight) for name, weight in self._weights.items()}
        self._adam = Adam(self._weights.items(), 1e-9, (0.9, 0.999), {})
        self._x = torch.randn(config["batch_size"], d_in, device=device)

    @torch.no_grad()
    def step(self) -> None:
        """What every step must do."""
        with torch.autocast(self._x.device.type, torch.bfloat16, enabled=self._x.is_cuda):
            torch.addmm(self._weights["b_enc"], self._x, self._weights["W_enc"].t())
        for name, weight in self._weights.items():
            weight.grad = self._gradients[name]
        self._adam.step(1.0)


class PeerProcess:
    """A contender in the peers' environment (`benchmarks.peer_process`)."""

    def __init__(self, interpreter: str, peer: str, folder: Path, config: dict[str, Any]) -> None:
        script = Path(__file__).with_name(f"peer_{peer}.py")
        self._process = subprocess.Popen([interpreter, str(script), str(folder), json.dumps(config)],
                                         stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def __enter__(self) -> "PeerProcess":
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()

    def ready(self) -> dict[str, Any]:
        """Wait until it stands there; the versions of its package, which comes first, and of torch."""
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("{"):  # some packages print while they are imported
                return dict(json.loads(line))
        raise RuntimeError(f"{self._process.args} ended; what it said stands above.")

    def ask(self, line: str) -> dict[str, Any]:
        """Send a command, read the answer."""
        assert self._process.stdin is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()
        return self._answer()


def compare(folder: Path, config: dict[str, Any], interpreter: str, turns: int, steps: int) -> dict[str, Any]:
    """Train all contenders of a case in turns; times of every turn, ratios, and the quality reached."""
    with ExitStack() as stack:
        processes = [stack.enter_context(PeerProcess(interpreter, name, folder, config))
                     for name in PEERS[config["architecture"]]]
        versions = [process.ready() for process in processes]  # all start together
        peers = {next(iter(of)): process for of, process in zip(versions, processes, strict=True)}
        ours = Ours(folder, config)
        floor = Floor(load_rows(folder, "train").shape[1], config)
        times: dict[str, list[Turn]] = {name: [] for name in (*peers, "ours", "floor")}
        for turn in range(turns):
            for name, peer in peers.items():
                times[name].append(peer.ask(f"steps {steps}"))
            times["ours"].append(timed(ours.step, steps, config["device"]))
            times["floor"].append(timed(floor.step, steps, config["device"]))
            print(f"  turn {turn + 1}: " + ", ".join(f"{name} {1000 * of[-1]['seconds'] / steps:.0f} ms"
                                                     for name, of in times.items()), flush=True)
        quality = {name: peer.ask("evaluate") for name, peer in peers.items()} | {"ours": ours.evaluate()}
    columns = {kind: {name: [turn[kind] for turn in of] for name, of in times.items()}
               for kind in ("seconds", "cpu_seconds")}
    ratios = {kind: {name: median_ratio(of[name], of["ours"]) for name in peers} for kind, of in columns.items()}
    milliseconds = {kind: {name: 1000 * statistics.median(seconds) / steps for name, seconds in of.items()}
                    for kind, of in columns.items()}
    result = {
        "architecture": config["architecture"], "batch_size": config["batch_size"], "steps_a_turn": steps,
        "peer_versions": {name: found for of in versions for name, found in of.items()}, "turns": columns,
        "milliseconds_a_step": milliseconds["seconds"],
        "cpu_milliseconds_a_step": milliseconds["cpu_seconds"], "ratio": ratios["seconds"],
        "cpu_ratio": ratios["cpu_seconds"], "quality": quality,
        "share_of_floor": median_ratio(columns["seconds"]["floor"], columns["seconds"]["ours"]),
        "cpu_share_of_floor": median_ratio(columns["cpu_seconds"]["floor"], columns["cpu_seconds"]["ours"]),
        "quality_holds": {name: quality_holds(quality["ours"], quality[name], config["k"]) for name in peers},
    }
    print(json.dumps({name: result[name] for name in (
        "milliseconds_a_step", "cpu_milliseconds_a_step", "ratio", "cpu_ratio", "share_of_floor",
        "cpu_share_of_floor", "quality", "quality_holds")}, indent=1), flush=True)
    return result


def readme_row(result: dict[str, Any]) -> str:
    """The line of a result in the README's table of speeds; a test compares them."""
    peers, versions, quality = list(result["ratio"]), result["peer_versions"], result["quality"]
    name = {"topk": "TopK", "batchtopk": "BatchTopK", "matryoshka": "Matryoshka BatchTopK", "standard": "Standard",
            "gated": "Gated", "jumprelu": "JumpReLU"}
    what = f"{name[result['architecture']]} step, batch {result['batch_size']:,}, {result['num_steps']:,} steps"
    floor = f"; {result['share_of_floor']:.0%} of the floor" if "share_of_floor" in result else ""
    explained = ", ".join(f"{quality[of]['explained_variance']:.3f} at L0 {quality[of]['l0']:.0f}"
                          for of in ("ours", *peers))
    against = " / ".join(f"{peer} {versions[peer]}" for peer in peers)
    ratios = " / ".join(f"{result['ratio'][peer]:.1f}x" for peer in peers)
    return f"| {what}{floor} | {against}; variance explained, ours first: {explained} | {ratios} |"


def quality_holds(ours: dict[str, float], peer: dict[str, float], k: int) -> bool:
    """Whether ours explains no less variance (to 0.005) with no more latents than the peer, or than were asked
    for (to 10 %)."""
    return (ours["explained_variance"] >= peer["explained_variance"] - 0.005
            and ours["l0"] <= 1.1 * max(peer["l0"], k))


if __name__ == "__main__":
    main()
