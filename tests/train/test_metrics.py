"""Figures: by hand, against float64 over whole arrays, and recombined."""

import numpy as np
import pytest

from train.metrics import (
    ErrorSums,
    InputSums,
    density_histogram,
    log2,
    mean_of_sequence_means,
    subset_figures,
)


def test_figures_of_three_rows_by_hand():
    x = np.array([[1.0, 0.0], [3.0, 0.0], [2.0, 6.0]])
    x_hat = np.array([[1.0, 1.0], [3.0, 0.0], [0.0, 6.0]])
    error = ((x - x_hat) ** 2).sum(1)  # 1, 0, 4
    group = np.zeros(3, np.int64)
    inputs, errors = InputSums.empty(1, 2), ErrorSums.empty(1)
    inputs.add(x, group)
    errors.add(error, np.array([2, 4, 3]), group)
    paper = mean_of_sequence_means(error / 2, np.array([0, 0, 1]))
    figures = subset_figures(inputs, errors, np.array([True]), paper)
    assert figures["num_rows"] == 3
    assert figures["mse"] == pytest.approx(5 / 6)
    assert figures["l0"] == 3
    # rows centred on (2, 2): 1 + 4, 1 + 4, 0 + 16
    assert figures["explained_variance"] == pytest.approx(1 - 5 / 26)
    assert figures["mse_paper"] == pytest.approx((0.25 + 2.0) / 2)
    assert figures["log2_mse_paper"] == pytest.approx(np.log2(1.125))


@pytest.fixture
def rows():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((1000, 7)) * 3 + 50
    x[::100] *= 500  # sinks
    return x, x + rng.standard_normal((1000, 7)), rng.integers(0, 20, 1000), rng.integers(0, 5, 1000)


def sums(rows, chunk):
    x, x_hat, active, group = rows
    inputs, errors = InputSums.empty(5, 7), ErrorSums.empty(5)
    for start in range(0, 1000, chunk):
        here = slice(start, start + chunk)
        inputs.add(x[here], group[here])
        errors.add(((x - x_hat) ** 2).sum(1)[here], active[here], group[here])
    return inputs, errors


@pytest.mark.parametrize("chunk", [1, 37, 1000])
@pytest.mark.parametrize("members", [[0], [1, 3], [0, 1, 2, 3, 4]])
def test_streamed_sums_equal_the_whole_array(rows, chunk, members):
    x, x_hat, active, group = rows
    groups = np.isin(np.arange(5), members)
    inside = groups[group]
    figures = subset_figures(*sums(rows, chunk), groups, None)
    error = ((x - x_hat)[inside] ** 2).sum()
    assert figures["mse"] == pytest.approx(error / inside.sum() / 7, rel=1e-12)
    centred = ((x[inside] - x[inside].mean(0)) ** 2).sum()
    assert figures["explained_variance"] == pytest.approx(1 - error / centred, rel=1e-10)
    assert figures["l0"] == pytest.approx(active[inside].mean())


def test_groups_recombine_to_the_pooled_figures(rows):
    inputs, errors = sums(rows, 64)
    single = [subset_figures(inputs, errors, np.arange(5) == i, None) for i in range(5)]
    pooled = subset_figures(inputs, errors, np.ones(5, bool), None)
    assert sum(f["num_rows"] for f in single) == pooled["num_rows"]
    for key in ("mse", "l0"):
        assert sum(f[key] * f["num_rows"] for f in single) / 1000 == pytest.approx(pooled[key], rel=1e-12)


def test_a_perfect_reconstruction_explains_everything_and_the_mean_nothing():
    x = np.random.default_rng(0).standard_normal((50, 3))
    group = np.zeros(50, np.int64)
    inputs = InputSums.empty(1, 3)
    inputs.add(x, group)
    for x_hat, expected in ((x, 1.0), (np.broadcast_to(x.mean(0), x.shape), 0.0)):
        errors = ErrorSums.empty(1)
        errors.add(((x - x_hat) ** 2).sum(1), group, group)
        assert subset_figures(inputs, errors, np.array([True]), 0.0)["explained_variance"] == pytest.approx(expected)


def test_what_is_not_defined_is_none():
    inputs, errors = InputSums.empty(1, 2), ErrorSums.empty(1)
    inputs.add(np.array([[1.0, 2.0]]), np.array([0]))
    errors.add(np.array([0.0]), np.array([1]), np.array([0]))
    figures = subset_figures(inputs, errors, np.array([True]), 0.0)
    assert figures["explained_variance"] is None
    assert figures["log2_mse"] is None
    assert log2(None) is None


def test_the_density_histogram_counts_every_latent_once():
    fired = np.array([0, 0, 1, 10, 1000])
    histogram = density_histogram(fired, 1000)
    assert histogram["never_fired"] == 2
    assert sum(histogram["counts"]) == 3
    assert histogram["counts"][-1] == 1
    assert len(histogram["edges"]) == len(histogram["counts"]) + 1
