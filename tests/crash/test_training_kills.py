"""The real training command, killed by SIGKILL at random times and at every operation of a checkpoint's save."""

import json
import os
import random
import shutil
import signal
import time

import pytest
import torch

from shared import storage
from tests.warm import Warm
from train import checkpoint
from train.architectures import ARCHITECTURES

KILLS = 30

SLOW_STEPS = """
import time
import train.run
train.run.remove_finished_sets = lambda *_: None     # the last checkpoint stays: it has the optimiser's state
step = train.run.Trainer.step
def slow(self, *rest):
    time.sleep(0.001)                                    # else all kills land before the first step or after the last
    step(self, *rest)
train.run.Trainer.step = slow
"""

KILL_AT = """
import os, signal
from shared import storage
from train import checkpoint
save, count = checkpoint.save, 0
def saved(*arguments):
    global save
    def kill(operation, path):
        global count
        count += 1
        if count == {number}:
            os.kill(os.getpid(), signal.SIGKILL)
    with storage.observe(kill):
        save(*arguments)
checkpoint.save = saved
"""


@pytest.fixture(scope="module")
def command(tmp_path_factory):
    """Runs `python -m train ...` in processes of their own."""
    warm = Warm("train", tmp_path_factory.mktemp("commands"), "torch._dynamo")  # which Adam imports
    yield warm
    warm.close()


@pytest.fixture(scope="module")
def words(cache_folder, tmp_path_factory):
    """A training of an SAE of each architecture of 60 steps, without the folder for results."""
    recipe = tmp_path_factory.mktemp("recipe") / "every.toml"
    train = ["layer = 2", "batch_size = 64", "num_tokens = 3840", "checkpoint_steps = 10", "log_steps = 4",
             "held_out_rows = 64", "held_out_steps = 20"]
    saes = [["[[sae]]", f'architecture = "{name}"', "d_sae = 64",
             "k = 3" if "k" in architecture.Config.model_fields else "l0 = 3.0"]
            for name, architecture in ARCHITECTURES.items()]
    recipe.write_text("\n".join(["[train]", *train, *(line for sae in saes for line in sae)]))
    return ["run", "--recipe", recipe, "--cache", cache_folder, "--device", "cpu", "--threads", 1]


def left(runs):
    """Weights, the last checkpoint's tensors, and figures without times, as bytes and as lines."""
    found = {}
    for path in [*runs.rglob("sae_weights.safetensors"), *runs.rglob("step-000000060/state.safetensors")]:
        found[path.relative_to(runs)] = path.read_bytes()
    for path in runs.rglob("metrics.jsonl"):
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        found[path.relative_to(runs)] = [{key: value for key, value in line.items()
                                          if key not in {"tokens_per_second", "stall_share"}} for line in lines]
    return found


@pytest.fixture(scope="module")
def undisturbed(command, words, memory):
    ended = command.run(*words, "--runs", memory / "training", prelude=SLOW_STEPS)
    assert ended.code == 0, ended.err
    found = left(memory / "training")
    assert len(found) == 2 * len(ARCHITECTURES) + 1
    return found


def steps_saved(runs):
    # Not rglob, which would look into a checkpoint while it is removed.
    found = runs.glob("*/*/checkpoints/*/step-*")
    return max([int(path.name.removeprefix("step-")) for path in found], default=0)


def test_killed_thirty_times_it_ends_with_the_same_bits(command, words, undisturbed, memory, share, counts):
    rng, runs, starts, kills = random.Random(0), memory / "killed", [], 0
    with counts.timed("training"):
        for _ in range(share.number(KILLS, at_least=2)):
            pid = command.start(*words, "--runs", runs, prelude=SLOW_STEPS)
            before, begun = steps_saved(runs), time.monotonic()
            # While it starts, or once it has saved something: a moment later, wherever it is then.
            wait = rng.random() < 0.8 and before < 50
            while wait and steps_saved(runs) == before and time.monotonic() - begun < 60:
                time.sleep(0.002)
            time.sleep(rng.uniform(0, 0.04 if wait else 1.0))
            os.kill(pid, signal.SIGKILL)
            kills += command.wait().code == -signal.SIGKILL
            starts.append(steps_saved(runs))
            if starts[-1] == 60:  # it got to its end: from the start again
                assert command.run(*words, "--runs", runs, prelude=SLOW_STEPS).code == 0
                assert left(runs) == undisturbed
                shutil.rmtree(runs)
        ended = command.run(*words, "--runs", runs, prelude=SLOW_STEPS)
    assert ended.code == 0, ended.err
    assert left(runs) == undisturbed
    assert len({*starts}) > kills // 5, f"the kills all landed at the same step: {starts}"
    counts.add("training", "random kills", kills)
    shutil.rmtree(runs)


def operations_of_saves(folder, count):
    """How many operations so many saves, one after the other, are made of."""
    operations = []
    with storage.observe(lambda operation, path: operations.append(operation)):
        for step in range(count):
            checkpoint.save(folder, step, {"a/w": torch.zeros(2)}, {"a": 0})
    return len(operations)


def test_killed_at_any_operation_of_its_saves_it_ends_with_the_same_bits(command, words, undisturbed, memory, share,
                                                                         counts):
    with counts.timed("training"):
        for number in share.of(range(1, operations_of_saves(memory / "saves", 3) + 1)):  # the third removes the first
            runs = memory / f"killed{number}"
            ended = command.run(*words, "--runs", runs, prelude=SLOW_STEPS + KILL_AT.format(number=number))
            assert ended.code == -signal.SIGKILL, ended.err
            ended = command.run(*words, "--runs", runs, prelude=SLOW_STEPS)
            assert ended.code == 0, ended.err
            assert left(runs) == undisturbed, number
            counts.add("training", "kills at an operation of a save")
            shutil.rmtree(runs)
