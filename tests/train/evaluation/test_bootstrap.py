"""The cluster bootstrap: equal to drawing rows again, and right as often as it says."""

import numpy as np
import pytest

from train.evaluation import bootstrap
from train.evaluation.bootstrap import interval, resampled_sums, resamples


def test_every_resample_draws_as_many_clusters_as_there_are_whatever_the_blocks(monkeypatch):
    whole = np.concatenate([*resamples(30, 120)])
    assert whole.shape == (120, 30)
    assert (whole.sum(1) == 30).all()
    monkeypatch.setattr(bootstrap, "_AT_ONCE", 7)
    assert np.array_equal(np.concatenate([*resamples(30, 120)]), whole)
    assert not np.array_equal(np.concatenate([*resamples(30, 120, seed=1)]), whole)


def test_sums_of_resamples_equal_a_loop_that_puts_the_rows_together_anew():
    rng = np.random.default_rng(2)
    cluster = np.sort(rng.integers(0, 12, 500))
    error, square = rng.gamma(2, 1, (500, 3)), rng.gamma(9, 1, (500, 3))
    sums = {name: np.stack([values[cluster == c].sum(0) for c in range(12)])
            for name, values in (("error", error), ("square", square))}
    found = resampled_sums(sums, num_resamples=60)
    drawn = np.random.Generator(np.random.Philox(bootstrap.SEED)).integers(12, size=(50, 12))
    for number, clusters in enumerate(drawn):
        rows = np.concatenate([np.flatnonzero(cluster == c) for c in clusters])
        expected = 1 - error[rows].sum(0) / square[rows].sum(0)
        assert 1 - found["error"][number] / found["square"][number] == pytest.approx(expected, rel=1e-12)


def test_the_interval_is_the_middle_of_what_is_defined():
    assert interval(np.arange(1001.0)) == pytest.approx([25.0, 975.0], rel=1e-14)
    assert interval(np.array([np.nan, 3.0, np.inf, 3.0])) == [3.0, 3.0]
    assert interval(np.array([np.nan])) is None


def test_intervals_hold_the_truth_in_about_19_of_20_simulations_and_those_of_single_tokens_do_not():
    rng = np.random.default_rng(3)
    held = {"clusters": 0, "tokens": 0}
    for _ in range(200):
        effects = rng.standard_normal(60) * 0.5  # conversations differ: tokens of one are alike
        sizes = rng.integers(5, 40, 60)
        cluster = np.repeat(np.arange(60), sizes)
        values = 1.0 + effects[cluster] + rng.standard_normal(len(cluster))
        for kind, number in (("clusters", cluster), ("tokens", np.arange(len(cluster)))):
            sums = resampled_sums({"n": np.bincount(number).astype(float), "x": np.bincount(number, values)}, 200)
            low, high = interval(sums["x"] / sums["n"])
            held[kind] += low <= 1.0 <= high
    # 190 are expected; 60 clusters and 200 resamples cost a little, and the count's own spread is 3.
    assert 178 <= held["clusters"] <= 198
    assert held["tokens"] < 140
