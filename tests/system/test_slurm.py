"""A harvest and a training that SLURM preempts are requeued, go on and end with the same bytes."""

import shlex
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests import tiny
from tests.harvest.test_run import arguments, units_there
from tests.system import slurm
from tests.warm import Warm

pytestmark = pytest.mark.system

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    if slurm.missing():
        pytest.skip(f"not installed: {', '.join(slurm.missing())}")
    with ExitStack() as stack:
        try:
            running = stack.enter_context(slurm.running(tmp_path_factory.mktemp("slurm")))
        except (AssertionError, OSError) as error:
            pytest.skip(f"SLURM is installed and does not start here: {error}")
        yield running


def begin_training(cluster, cache, runs, tmp_path):
    """Submit two SAEs for two processes under torchrun, slow enough to be met at work, and wait for them to begin."""
    program = tmp_path / "training.py"
    program.write_text(f"""
import sys, time
sys.path.insert(0, {str(ROOT)!r})
from shared.terminal import run_command
from train.__main__ import main
from train.trainer import Trainer
step = Trainer.step
Trainer.step = lambda *rest: (time.sleep(0.3), step(*rest))[1]
run_command(main)
""")
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = shlex.join(map(str, [*launcher, program, *training_words(cache, runs)]))
    # Not the last command of the script, so that the shell waits for it, as it does for make.
    job = cluster.submit("low", f"cd {shlex.quote(str(ROOT))}\nexport OMP_NUM_THREADS=1 {PATIENCE}\n{command}\necho\n")
    slurm.wait_for(lambda: sum(path.stat().st_size > 0 for path in runs.rglob("metrics.jsonl")) == 2)
    return job


PATIENCE = next(line.removeprefix("export ") for line in (ROOT / "Makefile").read_text().splitlines()
                if line.startswith("export TORCH_ELASTIC_SHUTDOWN_TIMEOUT"))
"""What `make train` tells torchrun."""


def training_words(cache, runs):
    values = ["train.batch_size=64", "train.num_tokens=32000", "train.log_steps=1", "sae.architecture=topk", "sae.k=3",
              "sae.d_sae=32", "sae.seed=[0, 1]"]
    return ["run", "--layer", 2, "--device", "cpu", "--threads", 1, "--cache", cache, "--runs", runs,
            *(word for value in values for word in ("--set", value))]


def saved_steps(runs):
    return sorted(path.name for path in runs.rglob("step-*"))


@pytest.fixture(scope="module")
def train_command(tmp_path_factory):
    """Runs `python -m train ...` in processes of their own."""
    warm = Warm("train", tmp_path_factory.mktemp("commands"), "torch._dynamo")
    yield warm
    warm.close()


@pytest.mark.timeout(1200)
def test_a_preempted_harvest_and_training_are_requeued_and_end_with_the_same_bytes(
        cluster, llama, cache_folder, train_command, tmp_path):
    runs = tmp_path / "runs"
    training = begin_training(cluster, cache_folder, runs, tmp_path)
    chats = tiny.write_jsonl(tmp_path / "chats.jsonl", tiny.chats(1500))
    cache = tmp_path / "cache"
    # Slow enough that it is met at work: half a second a batch.
    slow = ("import time, harvest.forward as f; run = f.Forward.run; "
            "f.Forward.run = lambda *a: (time.sleep(0.5), run(*a))[1]; "
            "from shared.terminal import run_command; from harvest.__main__ import main; run_command(main)")
    words = map(str, arguments(llama, chats, cache, num_tokens=60_000))
    command = shlex.join([sys.executable, "-c", slow, *words])
    job = cluster.submit("low", f"cd {shlex.quote(str(ROOT))}\nexport OMP_NUM_THREADS=1\nexec {command}\n")
    slurm.wait_for(lambda: cache.exists() and units_there(cache) >= 2)
    other = cluster.submit("high", "sleep 3\n", tasks=2)
    slurm.wait_for(lambda: "Waiting for SLURM" in cluster.output(job))
    slurm.wait_for(lambda: cluster.output(training).count("Waiting for SLURM") == 2)
    assert "Traceback" not in cluster.output(job) + cluster.output(training)
    saved = saved_steps(runs)
    assert len(saved) == 2
    stopped_at = units_there(cache)
    assert not [path for path in (cache / "tmp").rglob("*") if path.is_file()]  # all is cleaned up before it waits
    slurm.wait_for(lambda: cluster.state(other)["JobState"] == "COMPLETED")
    slurm.wait_for(lambda: cluster.state(job)["JobState"] == "RUNNING")  # SLURM waits two minutes itself
    assert int(cluster.state(job)["Restarts"]) == 1
    slurm.wait_for(lambda: units_there(cache) > stopped_at)
    slurm.wait_for(lambda: cluster.output(training).count("Going on from step") == 2)
    cluster.run("scancel", job, training)
    for cancelled in job, training:
        slurm.wait_for(lambda cancelled=cancelled: cluster.state(cancelled)["JobState"] == "CANCELLED")
    time.sleep(2)
    assert {cluster.state(cancelled)["JobState"] for cancelled in (job, training)} == {"CANCELLED"}  # not brought back
    tiny.make_cache(cache, llama, chats, num_tokens=60_000)
    whole = tmp_path / "whole"
    tiny.make_cache(whole, llama, chats, num_tokens=60_000)
    assert tiny.promised(cache) == tiny.promised(whole)
    for folder in runs, tmp_path / "whole-runs":
        ended = train_command.run(*training_words(cache_folder, folder))
        assert ended.code == 0, ended.err
    assert sorted(map(Path.read_bytes, runs.rglob("sae_weights.safetensors"))) == sorted(
        map(Path.read_bytes, (tmp_path / "whole-runs").rglob("sae_weights.safetensors")))
