"""What fits in memory at once, and what is counted."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from train.architectures import ARCHITECTURES
from train.architectures.base import RunLength
from train.config import TrainConfig, plan_saes
from train.memory import MemoryNeed, in_turns, memory_budget, memory_need, set_need
from train.trainer import Trainer


def test_neighbours_are_trained_together_as_far_as_they_fit():
    needs = [MemoryNeed(kept, step) for kept, step in ((10, 5), (10, 9), (30, 5), (90, 20), (1, 1), (1, 1))]
    assert set_need(needs[:2], 7) == 7 + 20 + 9
    assert in_turns(needs, 7, 1000) == [[0, 1, 2, 3, 4, 5]]
    assert in_turns(needs, 7, 36) == [[0, 1], [2], [3], [4, 5]]  # the fourth fits nowhere, and is tried by itself
    assert in_turns(needs, 7, 66) == [[0, 1, 2], [3], [4, 5]]


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_what_is_kept_is_counted_with_room_for_an_architectures_own_vectors(name):
    train = TrainConfig()
    [plan] = plan_saes([{"architecture": name, "d_sae": 512}], train, 9, 96)
    sae = ARCHITECTURES[name](plan.config, 96, RunLength(100, 64))
    trainer = Trainer(name, sae, 1e-3, train, torch.device("cpu"))
    kept = sum(tensor.numel() * tensor.element_size() for tensor in trainer.state().values())
    counted = memory_need(plan, 96, train, "cuda").kept
    assert kept <= counted * 1.02  # counts and flags of d_sae
    assert counted <= kept * 1.10
    assert memory_need(plan, 96, train, "cpu").kept > counted
    quarter = memory_need(plan, 96, TrainConfig(tensor_parallel=4), "cuda").kept
    assert counted / 4 < quarter < counted / 4 * 1.01  # b_dec is on all of them


def test_the_budget_is_what_the_recipe_says_or_most_of_what_is_free():
    assert memory_budget(TrainConfig(memory_gib=0.5), "cpu") == 2**29
    assert 2**26 < memory_budget(TrainConfig(), "cpu") < 2**45


def test_processes_on_one_host_share_its_memory(monkeypatch):
    alone = memory_budget(TrainConfig(), "cpu")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    assert memory_budget(TrainConfig(), "cpu") == pytest.approx(alone / 8, rel=0.2)  # others take and give meanwhile


_PEAKS = """
import torch
from train.architectures import ARCHITECTURES
from train.architectures.base import RunLength
from train.config import TrainConfig, plan_saes
from train.memory import memory_need
from train.trainer import Trainer

D_IN, D_SAE, BATCH = 64, 8192, 1024
train = TrainConfig(batch_size=BATCH)

def status(name):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) << 10 for line in file if line.startswith(name))

for name, architecture in ARCHITECTURES.items():
    for state in ("as it starts", "all active", "all silent"):
        [plan] = plan_saes([{"architecture": name, "d_sae": D_SAE}], train, 9, D_IN)
        sae = architecture(plan.config, D_IN, RunLength(100, BATCH))
        trainer = Trainer(name, sae, 1e-3, train, torch.device("cpu"))
        x = torch.randn(BATCH, D_IN)
        with torch.no_grad():
            if state == "all active":
                sae.b_enc += 100.0
            if state == "all silent":
                sae.tokens_since_fired += 10**9
        step = 0 if state == "as it starts" else 16  # AuxK asks which are silent at every 16th step
        before = status("VmRSS")
        open("/proc/self/clear_refs", "w").write("5")  # the peak is counted from here
        trainer.step(x, x.var(), step)
        print(name, state, (status("VmHWM") - before) / memory_need(plan, D_IN, train, "cpu").step, sep="; ")
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="Linux counts the peak of memory there")
def test_no_step_takes_more_than_is_counted():
    done = subprocess.run([sys.executable, "-c", _PEAKS], capture_output=True, text=True, check=True,
                          env=os.environ | {"MALLOC_TRIM_THRESHOLD_": "65536", "MALLOC_MMAP_THRESHOLD_": "65536"})
    shares = {tuple(words[:2]): float(words[2]) for words in (line.split("; ") for line in done.stdout.splitlines())}
    assert len(shares) == 3 * len(ARCHITECTURES)
    assert max(shares.values()) < 1, shares
    assert max(shares.values()) > 0.7, shares
