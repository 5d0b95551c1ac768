"""Training reads an archive without knowing: the same batches and the same weights, bit for bit."""

import pytest
import torch

from shared.reading.cache import open_cache
from shared.upkeep.transcode import transcode
from train.batches import Batches
from train.config import plan_saes, read_train_config, sae_tables
from train.run import train_saes

RECIPE = {
    "train": {"batch_size": 64, "num_tokens": 64 * 40, "log_steps": 10, "checkpoint_steps": 20, "window_blocks": 5,
              "calibration_batches": 4},
    "sae": [{"architecture": "batchtopk", "d_sae": 48, "k": 3, "dead_after_tokens": 256}],
}


@pytest.fixture(scope="module")
def both(cache_folder, tmp_path_factory):
    """A cache and its archive, by the same name in two folders."""
    path = tmp_path_factory.mktemp("archive") / cache_folder.name
    transcode(cache_folder, path, "archive", threads=1)
    return cache_folder, path


def test_batches_of_an_archive_are_those_of_the_cache(both):
    served = [list(Batches(cache, layer=2, batch_size=64, window_blocks=3, num_steps=70)) for cache in both]
    assert len(served[0]) == 70
    assert all(torch.equal(a, b) for a, b in zip(*served, strict=True))


def test_an_sae_trained_on_an_archive_is_the_one_trained_on_the_cache(both, tmp_path):
    weights = []
    for number, path in enumerate(both):
        cache = open_cache(path)
        config = read_train_config(RECIPE)
        saes = plan_saes(sae_tables(RECIPE, None), config, 2, cache.d_model)
        [folder] = train_saes(cache, 2, config, saes, runs=tmp_path / str(number), device="cpu", say=lambda line: None)
        weights.append((folder / "sae_weights.safetensors").read_bytes())
    assert weights[0] == weights[1]
