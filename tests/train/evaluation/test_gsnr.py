"""GSNR: the streamed figures are those of the formulas, and unbiased where the truth is known."""

import numpy as np
import pytest
import torch

from train.evaluation.gsnr import ALL, measure_gsnr, student_t

M, B = 12, 32


def brute_force(gradients, batch_size):
    """All figures of one group from its gradients ``[M, entries]``, in float64, with nothing streamed."""
    m = len(gradients)
    mean, variance = gradients.mean(0), gradients.var(0, ddof=1)
    active = variance > 0
    ratio = ((m - 3) / (m - 1) * mean[active] ** 2 / variance[active] - 1 / m) / batch_size
    pairs = gradients @ gradients.T
    signal = (pairs.sum() - np.trace(pairs)) / (m * (m - 1))  # the mean over pairs of different batches
    first, second = gradients[: m // 2].mean(0), gradients[m // 2 :].mean(0)
    return {"median": np.median(np.maximum(ratio, 0)), "mean": ratio.mean(),
            "pooled": signal / (batch_size * variance.sum()),
            "pooled_halves": first @ second / (batch_size * variance.sum())}


def jackknifed(gradients, batch_size, name):
    m = len(gradients)
    value = brute_force(gradients, batch_size)[name]
    left_out = np.array([brute_force(np.delete(gradients, number, axis=0), batch_size)[name] for number in range(m)])
    error = np.sqrt((m - 1) / m * ((left_out - left_out.mean()) ** 2).sum())
    return [value - student_t(0.975, m - 1) * error, value + student_t(0.975, m - 1) * error]


@pytest.fixture(scope="module")
def batches():
    """Gradients of two parameters, one of them with entries that never vary, or vary in one batch alone."""
    rng = np.random.default_rng(0)
    weights = rng.normal(rng.normal(size=(1, 6, 5)), 3.0, (M, 6, 5)).astype(np.float32)
    weights[:, 0] = 0
    weights[:, 1, 2] = 0
    weights[3, 1, 2] = 1
    return {"W_enc": weights, "b_dec": rng.normal(0.1, 1.0, (M, 7)).astype(np.float32)}


def measured(batches, batch_size=B):
    number = len(next(iter(batches.values())))
    return measure_gsnr(lambda m: {name: torch.from_numpy(found[m]) for name, found in batches.items()}, number,
                        batch_size)


def test_streamed_figures_are_those_of_all_gradients_at_once(batches):
    found = measured(batches)
    for name, gradients in batches.items():
        flat = gradients.reshape(M, -1).astype(np.float64)
        for figure, value in brute_force(flat, B).items():
            # ratios are kept as float32 for their median, everything else is float64
            assert found[name][figure] == pytest.approx(value, rel=1e-6 if figure == "median" else 1e-9)
    assert (found["W_enc"]["entries"], found["W_enc"]["active_entries"]) == (30, 25)
    together = np.concatenate([gradients.reshape(M, -1) for gradients in batches.values()], axis=1).astype(np.float64)
    for figure in ("pooled", "pooled_halves"):
        assert found[ALL][figure] == pytest.approx(brute_force(together, B)[figure], rel=1e-9)
    assert found[ALL]["entries"] == 37


def test_intervals_are_the_jackknife_over_batches(batches):
    found = measured(batches)
    for name, gradients in batches.items():
        flat = gradients.reshape(M, -1).astype(np.float64)
        for figure in ("pooled", "median", "mean"):
            expected = jackknifed(flat, B, figure)
            assert found[name]["intervals"][figure] == pytest.approx(expected, rel=1e-5), (name, figure)
    assert "pooled_halves" not in found["b_dec"]["intervals"]


def planted(mean, deviation, num_batches, seed):
    """Batch gradients that are normal, each entry's mean and deviation over rows as asked."""
    rng = np.random.default_rng(seed)
    noise = rng.standard_normal((num_batches, *mean.shape)) * deviation / np.sqrt(B)
    return {"W_enc": (mean + noise).astype(np.float32)}


@pytest.mark.parametrize("truth", [0.0, 0.002, 0.05])
def test_of_planted_gradients_the_truth_comes_out_on_average_and_not_the_truth_and_noise(truth):
    """40,000 entries are as many draws of the same experiment."""
    draws = planted(np.full(40_000, np.sqrt(truth)), 1.0, M, seed=1)
    gradients = draws["W_enc"].astype(np.float64)
    mean, variance = gradients.mean(0), gradients.var(0, ddof=1)
    naive = mean**2 / variance / B
    spread = naive.std() / np.sqrt(len(naive))
    found = measured(draws)["W_enc"]
    assert abs(found["mean"] - truth) < 4 * spread  # four standard errors of 40,000 draws
    # G^2 / s^2 is larger by 1/M, and by (M - 1) / (M - 3) because it divides by an estimate.
    assert naive.mean() - truth > 0.9 / (M * B)
    assert naive.mean() == pytest.approx((truth + 1 / (M * B)) * (M - 1) / (M - 3), abs=4 * spread)
    assert 10 * spread < 1 / (M * B)  # so that the two could be told apart


def test_pooled_figures_are_right_on_average_too_where_entries_differ():
    rng = np.random.default_rng(5)
    mean, deviation = rng.normal(0, 0.1, 60), rng.uniform(0.5, 3.0, 60)
    truth = (mean**2).sum() / (deviation**2).sum()
    draws = [measured(planted(mean, deviation, M, seed))["W_enc"] for seed in range(300)]
    for figure in ("pooled", "pooled_halves"):
        values = np.array([draw[figure] for draw in draws])
        # Dividing by an estimate of the trace adds about 2 / (M * entries) of the value: a hundredth of an error.
        assert abs(values.mean() - truth) < 4 * values.std() / np.sqrt(len(values))
    pooled, halves = (np.std([draw[figure] for draw in draws]) for figure in ("pooled", "pooled_halves"))
    assert pooled < halves
    covered = np.mean([draw["intervals"]["pooled"][0] < truth < draw["intervals"]["pooled"][1] for draw in draws])
    assert 0.88 < covered < 0.99  # 95 % asked; 300 draws say it to 0.03, and 12 batches are few for a jackknife


def test_the_size_of_a_batch_does_not_matter():
    """Rows are normal, so batches of any size of them are too."""
    rows = np.random.default_rng(2).normal(0.2, 1.0, (64 * 64, 5_000)).astype(np.float32)
    large, small = (measured({"W": rows.reshape(-1, size, 5_000).mean(1)}, size)["W"] for size in (256, 64))
    for figure in ("mean", "pooled"):
        assert large[figure] == pytest.approx(0.04, rel=0.05)
        assert small[figure] == pytest.approx(large[figure], rel=0.05)


def test_what_never_varies_has_no_figures():
    found = measured({"threshold": np.zeros((8, 4), np.float32), "b_dec": np.ones((8, 3), np.float32)})
    for name in ("threshold", "b_dec", ALL):
        assert found[name]["active_entries"] == 0
        assert [found[name][figure] for figure in ("median", "mean", "pooled", "pooled_halves")] == [None] * 4


@pytest.mark.parametrize(("degrees", "quantile"), [(7, 2.3646), (11, 2.2010), (31, 2.0395), (100, 1.9840)])
def test_students_t_is_that_of_tables(degrees, quantile):
    assert student_t(0.975, degrees) == pytest.approx(quantile, rel=2e-3)
