"""What fits in memory at once, and what is counted."""

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
