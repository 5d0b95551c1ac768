"""What a training says at its end of the L0 that it was asked for."""

import pytest
import torch

from tests.train import tiny_run
from tests.train.fake_cache import FakeCache, planted
from tests.train.tiny_run import RECIPE
from train.architectures.base import RunLength
from train.architectures.standard import StandardSAE
from train.finish import calibrate, missed_l0


def rows_of(l0, number=10_000):
    """Counts of active latents [number] with this mean, and a standard deviation of a third of it."""
    counts = torch.randn(number, generator=torch.Generator().manual_seed(0)).double()
    return (counts - counts.mean()) / counts.std() * l0 / 3 + l0


@pytest.mark.parametrize(("asked", "trained", "training", "held_out", "told"), [
    (None, None, 500.0, 700.0, None),
    (32.0, None, 32.0, 33.5, None),
    (32.0, 28.0, 32.0, 30.5, None),
    (32.0, None, 32.0, None, None),
    (32.0, None, 32.0, 34.2, "training rows that its thresholds were set on, but 34.2 on held-out ones"),
    (32.0, None, 32.0, 30.0, "but 30.0 on held-out ones"),
    (32.0, None, 20.0, 20.0, "was asked for an L0 of 32 and has 20.0 on training rows"),
    (32.0, 41.0, 32.0, 32.0, "was asked for an L0 of 32 and came to 41.0 by its penalty"),
    (32.0, 0.0, 32.0, 32.0, "came to 0.0 by its penalty"),
])
def test_an_l0_that_is_missed_by_a_twentieth_or_not_come_to_by_learning_is_told(
    asked, trained, training, held_out, told
):
    found = missed_l0(asked, trained, rows_of(training), rows_of(held_out) if held_out else torch.zeros(0))
    assert found is None if told is None else told in found


def test_a_difference_that_few_held_out_rows_have_by_chance_is_not_told():
    assert missed_l0(32.0, None, rows_of(32.0), rows_of(36.0, 30)) is None
    assert "but 36.0" in missed_l0(32.0, None, rows_of(32.0), rows_of(36.0, 300))


def test_a_training_tells_of_held_out_rows_that_differ(tmp_path, monkeypatch):
    rows, _ = planted(4096, d_in=24)
    rows[3500:] *= 1.5  # which are held out: more latents pass a threshold that was set on the others
    monkeypatch.setattr(tiny_run, "cache", lambda units=None: FakeCache(rows * 7 + 1, num_train_rows=3500, units=units))
    said = []
    recipe = {**RECIPE, "sae": [{"architecture": "batchtopk", "d_sae": 48, "k": 3}]}
    for one in (recipe, {**recipe, "train": recipe["train"] | {"calibration_types": ["content"]}}):
        tiny_run.train(tmp_path, one, say=said.append)
    warned = [line for line in said if line.startswith("Warning")]
    assert len(warned) == 1
    assert "batchtopk-48-k3-s0" in warned[0]
    assert "that its thresholds were set on" in warned[0]


def test_inputs_whose_size_no_penalty_was_made_for_are_told(tmp_path, monkeypatch):
    rows, _ = planted(4096, d_in=24)
    monkeypatch.setattr(tiny_run, "cache", lambda units=None: FakeCache(rows / 100, num_train_rows=3500, units=units))
    said = []
    tiny_run.train(tmp_path, {"train": RECIPE["train"] | {"scale": False},
                              "sae": [{"architecture": "standard", "d_sae": 48, "l0": 3.0}]}, say=said.append)
    [warned] = [line for line in said if line.startswith("Warning")]
    assert "came to 0.0 by its penalty" in warned
    assert "train.scale" in warned


def test_the_l0_of_some_types_of_rows_is_not_held_against_what_a_penalty_came_to_on_all():
    sae = StandardSAE(StandardSAE.Config(d_sae=48, l0=3.0), 24, RunLength(10, 64))
    batches = [torch.randn(512, 24, generator=torch.Generator().manual_seed(0))]  # half of all latents are active
    for held_out, told in (([], True), (None, False)):
        with torch.no_grad():
            sae.b_enc.zero_()
        l0, missed = calibrate(sae, batches, held_out)
        assert l0 == pytest.approx(3, abs=0.01)
        assert (missed is not None) == told
