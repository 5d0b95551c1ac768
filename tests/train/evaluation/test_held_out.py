"""The held-out curve: the figures of the SAE as it will be used, on a fixed sample, and nothing else changes."""

import json

import numpy as np
import pytest
import torch

from tests.train import tiny_run
from tests.train.test_run import weights
from train.architectures import ARCHITECTURES
from train.architectures.base import RunLength
from train.evaluation.held_out import held_out_figures, held_out_sample
from train.export import load_sae
from train.policy import TokenPolicy
from train.statistics import InputStatistics

RECIPE = {"train": tiny_run.RECIPE["train"] | {"log_steps": 10, "held_out_steps": 25, "num_tokens": 64 * 60},
          "sae": tiny_run.RECIPE["sae"]}


def without_curve(recipe):
    return {**recipe, "train": recipe["train"] | {"held_out_rows": 0}}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    cache, folders = tiny_run.train(tmp_path_factory.mktemp("runs"), RECIPE)
    torch.set_num_threads(before)
    return cache, folders


def test_it_stands_after_every_so_many_steps_rounded_up_to_whole_lines_and_on_the_last(trained):
    _, folders = trained
    for folder in folders:
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        assert [line["step"] for line in lines if "held_out_l0" in line] == [30, 60]
        assert all("held_out_explained_variance" in line for line in lines if "held_out_l0" in line)


def test_weights_are_the_same_without_it(trained, tmp_path):
    _, folders = tiny_run.train(tmp_path, without_curve(RECIPE))
    assert weights(folders) == weights(trained[1])
    assert "held_out" not in (folders[0] / "metrics.jsonl").read_text()


def test_the_last_figures_are_those_of_the_saved_sae_on_the_same_rows(trained):
    """Up to scale and centre, which are folded in by then, and a threshold that is set anew: TopK has none."""
    cache, folders = trained
    [folder] = [folder for folder in folders if folder.name.startswith("topk")]
    sae = load_sae(folder)
    median = json.loads((folder / "run.json").read_text())["resolved"]["median_norm"]
    x = held_out_sample(cache, 3, TokenPolicy(), [0, 1, 2, 3], median, 2048).float()
    latents = sae.encode(x)
    error = (x - sae.decode(latents)).double().square().sum()
    variance = (x.double() - x.double().mean(0)).square().sum()
    last = json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["held_out_l0"] == pytest.approx(float((latents > 0).sum() / len(x)), abs=0.01)
    assert last["held_out_explained_variance"] == pytest.approx(float(1 - error / variance), abs=1e-4)


def test_the_sample_is_of_held_out_rows_that_the_policy_keeps_and_always_the_same():
    cache = tiny_run.cache()
    whole = held_out_sample(cache, 3, TokenPolicy(), [0, 1, 2, 3], 1e9, 10_000)
    rows = [row for row in range(3500, 4096) if row % 40]  # position 0 of each conversation is left out
    assert torch.equal(whole.view(torch.uint16), torch.from_numpy(cache.layer(3)[np.array(rows)].view(np.uint16)))
    some = held_out_sample(cache, 3, TokenPolicy(), [0, 1, 2, 3], 1e9, 50)
    again = held_out_sample(cache, 3, TokenPolicy(), [0, 1, 2, 3], 1e9, 50)
    assert some.shape == (50, 24)
    assert torch.equal(some.view(torch.uint16), again.view(torch.uint16))
    assert held_out_sample(cache, 3, TokenPolicy(), [0, 1, 2], 1e9, 50) is None  # the held-out rows are in unit 3
    assert held_out_sample(cache, 3, TokenPolicy(), [0, 1, 2, 3], 1e9, 0) is None


def test_a_batchtopk_sae_is_measured_with_its_threshold_and_not_with_a_batchs():
    config = ARCHITECTURES["batchtopk"].Config(d_sae=32, k=2)
    sae = ARCHITECTURES["batchtopk"](config, 16, RunLength(10, 64))
    sample = torch.randn(64, 16, generator=torch.Generator().manual_seed(0)).bfloat16()
    statistics = InputStatistics(torch.zeros(16), 1.0)
    for threshold in (0.0, 1.0, 1e9):
        sae.threshold_calibrated.fill_(threshold)
        expected = float((sae.pre_acts(sample.float()) > threshold).sum() / 64)
        assert held_out_figures(sae, sample, statistics)["held_out_l0"] == pytest.approx(expected)
    assert held_out_figures(sae, sample, statistics)["held_out_explained_variance"] <= 0  # nothing fires
