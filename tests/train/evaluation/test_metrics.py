"""Figures: by hand, against float64 over whole arrays, and recombined."""

import numpy as np
import pytest
import torch

from train.evaluation.metrics import ROW_FIGURES, ErrorSums, InputSums, log2, row_figures, subset_figures

ROWS, D_IN, GROUPS = 1000, 7, 5


def summed(x, x_hat, latents, group, chunk=None, num_groups=1):
    """Sums over chunks of rows."""
    x, x_hat = np.array(x, np.float64), np.array(x_hat, np.float64)
    inputs, errors = InputSums.empty(num_groups, x.shape[1]), ErrorSums.empty(num_groups)
    for start in range(0, len(x), chunk or len(x)):
        here = slice(start, start + (chunk or len(x)))
        inputs.add(x[here], group[here])
        errors.add(row_figures(*map(torch.from_numpy, (x[here], x_hat[here], latents[here]))), group[here])
    return inputs, errors


def test_figures_of_three_rows_by_hand():
    x, x_hat = [[1.0, 0.0], [3.0, 0.0], [2.0, 6.0]], [[1.0, 1.0], [3.0, 0.0], [0.0, 6.0]]
    latents = np.array([[0.5, 0.0, 2.0], [0.0, 0.0, 1.0], [0.0, 0.0, 0.0]])
    figures = subset_figures(*summed(x, x_hat, latents, np.zeros(3, np.int64)), np.array([True]), 1.125)
    expected = {
        "num_rows": 3,
        "mse": 5 / 6,  # errors 1, 0, 4
        "mse_paper": 1.125,
        "log2_mse": np.log2(5 / 6),
        "log2_mse_paper": np.log2(1.125),
        "explained_variance": 1 - 5 / 26,  # rows centred on (2, 2): 1 + 4, 1 + 4, 0 + 16
        "normalised_error": (1 / 1 + 0 + 4 / 40) / 3,
        "cosine": (1 / np.sqrt(2) + 1 + 36 / np.sqrt(40 * 36)) / 3,
        "shrinkage": (2 + 9 + 36) / (1 + 9 + 36),
        "norm_ratio": (np.sqrt(2) + 1 + 6 / np.sqrt(40)) / 3,
        "l0": 1.0,
        "l1": 3.5 / 3,
    }
    assert figures == pytest.approx(expected, rel=1e-14)


@pytest.fixture
def rows():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((ROWS, D_IN)) * 3 + 50
    x[::100] *= 500  # sinks
    latents = np.maximum(rng.standard_normal((ROWS, 11)), 0)
    return x, 0.9 * x + rng.standard_normal((ROWS, D_IN)), latents, rng.integers(0, GROUPS, ROWS)


def brute_force(x, x_hat, latents):
    """The formulas of docs/metrics.md, over whole arrays."""
    error = ((x - x_hat) ** 2).sum(1)
    lengths = np.linalg.norm(x, axis=1), np.linalg.norm(x_hat, axis=1)
    return {
        "num_rows": len(x),
        "mse": error.mean() / D_IN,
        "log2_mse": np.log2(error.mean() / D_IN),
        "normalised_error": (error / lengths[0] ** 2).mean(),
        "cosine": ((x * x_hat).sum(1) / lengths[0] / lengths[1]).mean(),
        "shrinkage": (lengths[1] ** 2).sum() / (x * x_hat).sum(),
        "norm_ratio": (lengths[1] / lengths[0]).mean(),
        "l0": (latents != 0).sum(1).mean(),
        "l1": np.abs(latents).sum(1).mean(),
    }


@pytest.mark.parametrize("chunk", [1, 37, ROWS])
@pytest.mark.parametrize("members", [[0], [1, 3], [0, 1, 2, 3, 4]])
def test_streamed_figures_equal_those_of_the_whole_arrays(rows, chunk, members):
    x, x_hat, latents, group = rows
    groups = np.isin(np.arange(GROUPS), members)
    inside = groups[group]
    figures = subset_figures(*summed(x, x_hat, latents, group, chunk, GROUPS), groups, None)
    for name, value in brute_force(x[inside], x_hat[inside], latents[inside]).items():
        assert figures[name] == pytest.approx(value, rel=1e-12), name
    centred = ((x[inside] - x[inside].mean(0)) ** 2).sum()
    unexplained = ((x - x_hat)[inside] ** 2).sum() / centred
    # The variance is a difference of sums: it loses what the mean square is larger, here at most a factor of 2.
    assert 1 - figures["explained_variance"] == pytest.approx(unexplained, rel=1e-12)


def test_groups_recombine_to_the_pooled_figures(rows):
    inputs, errors = summed(*rows, 64, GROUPS)
    pooled = subset_figures(inputs, errors, np.ones(GROUPS, bool), None)
    alone = np.eye(GROUPS, dtype=bool)
    single = [subset_figures(inputs, errors, group, None) for group in alone]
    assert sum(f["num_rows"] for f in single) == pooled["num_rows"] == ROWS
    for key in ("mse", "l0", "l1", "normalised_error", "cosine", "norm_ratio"):
        assert sum(f[key] * f["num_rows"] for f in single) / ROWS == pytest.approx(pooled[key], rel=1e-14)
    # Explained variance, from the classes' own sums: within the classes, and between their means.
    means = [inputs.mean(group) for group in alone]
    between = sum(n * ((mean - inputs.mean(np.ones(GROUPS, bool))) ** 2).sum()
                  for n, mean in zip(inputs.n, means, strict=True))
    variance = sum(inputs.variance(group) for group in alone) + between
    assert pooled["explained_variance"] == pytest.approx(1 - errors.sums["squared_error"].sum() / variance, rel=1e-12)


def test_a_perfect_reconstruction_explains_everything_and_the_mean_nothing():
    x = np.random.default_rng(0).standard_normal((50, 3)) + 1
    group, latents = np.zeros(50, np.int64), np.ones((50, 2))
    perfect = subset_figures(*summed(x, x, latents, group), np.array([True]), 0.0)
    assert perfect["explained_variance"] == perfect["cosine"] == perfect["shrinkage"] == perfect["norm_ratio"] == 1.0
    assert perfect["mse"] == perfect["normalised_error"] == 0.0
    mean = subset_figures(*summed(x, np.broadcast_to(x.mean(0), x.shape), latents, group), np.array([True]), 0.0)
    assert mean["explained_variance"] == pytest.approx(0.0, abs=1e-15)


def test_a_reconstruction_that_is_shrunk_by_a_tenth_has_a_shrinkage_of_nine_tenths(rows):
    x, _, latents, group = rows
    figures = subset_figures(*summed(x, 0.9 * x, latents, group, None, GROUPS), np.ones(GROUPS, bool), None)
    assert figures["shrinkage"] == pytest.approx(0.9, rel=1e-14)
    assert figures["norm_ratio"] == pytest.approx(0.9, rel=1e-14)
    assert figures["cosine"] == pytest.approx(1, rel=1e-14)


def test_what_is_not_defined_is_none():
    figures = subset_figures(*summed([[1.0, 2.0]], [[1.0, 2.0]], np.ones((1, 1)), np.array([0])), np.array([True]), 0.0)
    assert figures["explained_variance"] is None
    assert figures["log2_mse"] is None
    assert log2(None) is None
    points = subset_figures(*summed([[3e4, 1.0]] * 9, [[0.0, 0.0]] * 9, np.ones((9, 1)), np.zeros(9, np.int64)),
                            np.array([True]), 0.0)
    assert points["explained_variance"] is None  # nine times the same row
    assert points["shrinkage"] is None  # nothing of x in x_hat


def test_rows_of_zeros_and_reconstructions_without_latents_give_numbers():
    x = torch.tensor([[0.0, 0.0], [3.0, 4.0]])
    figures = row_figures(x, torch.tensor([[1.0, 0.0], [0.0, 0.0]]), None)
    assert set(figures) == set(ROW_FIGURES)
    assert figures["normalised_error"].tolist() == [1.0, 1.0]
    assert figures["cosine"].tolist() == figures["norm_ratio"].tolist() == [0.0, 0.0]
    assert figures["active"].tolist() == figures["l1"].tolist() == [0.0, 0.0]
