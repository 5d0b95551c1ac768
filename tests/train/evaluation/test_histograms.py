"""Distributions in fixed bins: exact where they say so, quantiles within a bin, recombined group by group."""

import numpy as np
import pytest

from train.evaluation.histograms import (
    LOG_BINS,
    QUANTILES,
    Histograms,
    count_bin,
    count_bin_start,
    density_histogram,
    log_bin,
    log_bin_middle,
    quantile_bin,
)


def test_counts_below_256_have_a_bin_of_their_own_and_larger_ones_are_within_a_128th():
    values = np.arange(200_000)
    bins = count_bin(values)
    assert np.array_equal(bins[:256], values[:256])
    assert set(np.diff(bins)) == {0, 1}  # no bin is left out, and none is gone back to
    starts = np.array([count_bin_start(number) for number in range(bins[-1] + 1)])[bins]
    assert np.array_equal(count_bin(starts), bins)
    assert (starts <= values).all()
    assert (values - starts <= starts / 128).all()


def test_values_lie_within_2_4_percent_of_the_middle_of_their_bin():
    values = 10 ** np.random.default_rng(0).uniform(-8, 2, 10_000)
    middles = np.array([log_bin_middle(number) for number in log_bin(values)])
    assert np.abs(middles / values - 1).max() < 0.024
    assert log_bin(np.array([0.0, 1e-12, 1e9])).tolist() == [0, 0, LOG_BINS - 1]


def test_a_quantile_is_the_nearest_rank():
    counts = np.array([1, 0, 2, 1])  # the values 0, 2, 2, 3
    assert [quantile_bin(counts, share) for share in (0.05, 0.25, 0.26, 0.75, 0.76, 1.0)] == [0, 0, 2, 2, 3, 3]
    assert [quantile_bin(np.ones(100, np.int64), share) for share in (0.05, 1 - 0.95)] == [4, 4]


@pytest.mark.parametrize("groups", [[0], [1, 2], [0, 1, 2]])
def test_quantiles_are_those_of_the_rows_within_a_bin(groups):
    rng = np.random.default_rng(1)
    rows = {"normalised_error": rng.gamma(2, 0.1, 3000), "cosine": 1 - rng.gamma(2, 0.05, 3000),
            "active": rng.integers(0, 200, 3000).astype(np.float64)}
    group = rng.integers(0, 3, 3000)
    histograms = Histograms.empty(3, 200)
    for start in range(0, 3000, 701):
        here = slice(start, start + 701)
        histograms.add({name: values[here] for name, values in rows.items()}, group[here])
    inside = np.isin(group, groups)
    found = histograms.quantiles(np.isin(np.arange(3), groups))

    def ranked(name, share):
        return np.quantile(rows[name][inside], share, method="inverted_cdf")

    for number, share in enumerate(QUANTILES):
        assert found["l0"][number] == ranked("active", share)
        assert found["normalised_error"][number] == pytest.approx(ranked("normalised_error", share), rel=0.024)
        # 1 - cosine is ranked from the other end, where one rank more or less is another row.
        assert 1 - found["cosine"][number] == pytest.approx(1 - ranked("cosine", share), rel=0.03)


def test_the_density_histogram_counts_every_latent_once():
    fired = np.array([0, 0, 1, 10, 1000])
    histogram = density_histogram(fired, 1000)
    assert histogram["never_fired"] == 2
    assert sum(histogram["counts"]) == 3
    assert histogram["counts"][-1] == 1
    assert len(histogram["edges"]) == len(histogram["counts"]) + 1
