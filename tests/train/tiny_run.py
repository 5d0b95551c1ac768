"""A tiny training run over a cache in memory."""

from pathlib import Path
from unittest.mock import patch

import pytest

from tests.train.fake_cache import FakeCache, planted
from train.config import plan_saes, read_train_config, sae_tables
from train.run import train_saes
from train.shards import ALONE
from train.trainer import Trainer

RECIPE = {
    "train": {"lr": 6e-3, "batch_size": 64, "num_tokens": 64 * 120, "log_steps": 7, "checkpoint_steps": 10,
              "window_blocks": 5, "calibration_batches": 4},
    "sae": [{"architecture": "batchtopk", "d_sae": 48, "k": 3, "dead_after_tokens": 256},
            {"architecture": "jumprelu", "d_sae": 48, "l0": 3.0},
            {"architecture": "standard", "d_sae": 48, "l0": 3.0},
            {"architecture": "topk", "d_sae": 40, "k": 3},
            {"architecture": "gated", "d_sae": 48, "l0": 3.0},
            {"architecture": "matryoshka", "d_sae": 48, "k": 3, "dead_after_tokens": 256},
            {"architecture": "standard", "d_sae": 48, "l1_coefficient": 5.0}],
}


def cache(units=None):
    rows, _ = planted(4096, d_in=24)
    return FakeCache(rows * 7 + 1, num_train_rows=3500, units=units)


def train(runs, recipe=RECIPE, units=None, say=lambda line: None, shards=ALONE):
    config = read_train_config({**recipe, "train": {**recipe["train"], "tensor_parallel": shards.size}})
    opened = cache(units)
    saes = plan_saes(sae_tables(recipe, None), config, 3, opened.d_model)
    return opened, train_saes(opened, 3, config, saes, runs=Path(runs), device="cpu", say=say,
                              shards=shards)


def planned(recipe):
    """The SAEs of a recipe."""
    return plan_saes(sae_tables(recipe, None), read_train_config(recipe), 3, cache().d_model)


def stopped_at(step, runs, recipe=RECIPE, units=None):
    """Train until a step, and be stopped there without a warning: nothing is saved that was not saved by then."""
    original = Trainer.step

    def stop(self, x, variance, count):
        if count == step:
            raise KeyboardInterrupt
        original(self, x, variance, count)

    with patch.object(Trainer, "step", stop), pytest.raises(KeyboardInterrupt):
        train(runs, recipe, units)
