"""Harvest of one layer against a plain HF loop and against a bare early-exit loop that writes nothing.

    python -m benchmarks.harvest_speed [--layer 9] [--tokens 16384] [--rounds 3]

The same conversations (embedded chats of four turns and more, cut at 8,192), the same machine, in turns:

- plain: the full model with its language-model head, ``output_hidden_states``, one conversation at a time;
- bare: the cut model over the same sorted batches, rows dropped;
- ours: what `python -m harvest run` does after loading: forward, write, checksum, fsync, commit.
"""

import argparse
import shutil
import statistics
import tempfile
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

from benchmarks.measuring import interleave, median_ratio, save
from harvest.config import HarvestConfig
from harvest.device import find_device
from harvest.forward import Forward
from harvest.job import Job, prepare
from harvest.model import load_model
from harvest.opening import open_pass, open_plan
from harvest.run import fill
from harvest.units import UnitReader
from shared.format.layout import COMMITS, GROUP
from shared.format.plan import Plan
from shared.reading.cache import open_cache
from shared.writing.claims import Work
from shared.writing.writers import writer_folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layer", type=int, default=9)
    parser.add_argument("--tokens", type=int, default=16_384)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        figures = measure(Path(folder) / "cache", arguments.layer, arguments.tokens, arguments.rounds)
    save(f"harvest_speed_layer{arguments.layer}", figures)


def measure(cache: Path, layer: int, tokens: int, rounds: int) -> dict[str, object]:
    """Run the three contenders on one unit of ``tokens`` rows."""
    config = HarvestConfig(model="smollm2-135m-instruct", layers=[layer], num_tokens=tokens, rows_per_shard=tokens,
                           plan_tokens=2 * tokens, held_out_rows=1)
    job = prepare(config, find_device("cpu"))
    plan = open_plan(job, cache)
    cpu = torch.device("cpu")
    forward = Forward(load_model(job.model, layer, "float32", "sdpa", cpu), [layer], cpu)
    full = AutoModelForCausalLM.from_pretrained(
        job.model.folder, dtype=torch.float32, trust_remote_code=False, use_safetensors=True
    )
    reader = UnitReader(open_cache(cache))
    rows = plan.geometry.unit_rows(0)
    pieces = [piece for batch in reader.batches(0) for piece in batch]

    @torch.inference_mode()
    def plain() -> None:
        for piece in sorted(pieces, key=lambda piece: piece.start):
            ids = torch.from_numpy(reader.token_ids([piece]))
            full(ids, output_hidden_states=True).hidden_states[layer + 1][0].to(torch.bfloat16)

    def bare() -> None:
        for batch in reader.batches(0):
            forward.run(batch, reader.token_ids(batch))

    def ours() -> None:
        harvest_unit(job, cache, plan, forward)

    seconds = interleave({"plain HF loop": plain, "bare loop": bare, "harvest": ours}, rounds)
    speed = {name: len(rows) / statistics.median(times) for name, times in seconds.items()}
    against_plain = median_ratio(seconds["plain HF loop"], seconds["harvest"])
    against_bare = median_ratio(seconds["bare loop"], seconds["harvest"])
    for name, value in speed.items():
        print(f"{name:16s} {value:8,.0f} tokens/s")
    print(f"layer {layer}: harvest is {against_plain:.2f}x the plain loop, {against_bare:.2f} of the bare loop")
    return {"layer": layer, "tokens": len(rows), "rounds": rounds, "seconds": seconds, "tokens_per_second": speed,
            "times_plain_loop": against_plain, "share_of_bare_loop": against_bare}


def harvest_unit(job: Job, cache: Path, plan: Plan, forward: Forward) -> None:
    """Harvest unit 0 as if nothing were there yet."""
    for folder in (COMMITS, f"{GROUP}/layers"):
        shutil.rmtree(cache / folder, ignore_errors=True)
    with writer_folder(cache) as writer:
        fill(cache, plan, open_pass(job, cache, plan.geometry, writer), [Work(0)], forward, job.device, writer)


if __name__ == "__main__":
    main()
