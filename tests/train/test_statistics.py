"""Scale and centre."""

import numpy as np
import pytest
import torch

from tests.train.fake_cache import FakeCache
from train.order import ShuffledWindows
from train.policy import TokenPolicy, training_mask
from train.statistics import geometric_median, measure


@pytest.fixture
def rows():
    x = np.random.default_rng(0).standard_normal((4000, 12)) * np.linspace(0.5, 2, 12) + np.arange(12)
    x[::40] = 1e5
    return x.astype(np.float32)


@pytest.fixture
def cache(rows):
    return FakeCache(rows)


def order_of(cache, **fields):
    return ShuffledWindows(training_mask(cache, 3, TokenPolicy(**fields)), window_blocks=8, data_seed=0)


def test_scaled_rows_have_mean_zero_and_a_mean_square_of_one_a_dimension(cache):
    order = order_of(cache)
    statistics = measure(cache, 3, order, "mean", True)
    kept = np.flatnonzero(order.mask[:4000])
    x = statistics.apply(torch.from_numpy(cache.layer(3)[kept].astype(np.float32)))
    assert x.mean(0).abs().max() < 1e-4
    assert x.square().mean() == pytest.approx(1, abs=1e-4)
    assert cache.layer(3).prefetched == set(order.blocks.tolist())  # fewer than a sample takes


def test_where_the_centre_is_not_subtracted_rows_have_that_mean_square_with_it(cache):
    order = order_of(cache)
    statistics = measure(cache, 3, order, "mean", True, subtracted=False)
    kept = np.flatnonzero(order.mask[:4000])
    x = torch.from_numpy(cache.layer(3)[kept].astype(np.float32)) * statistics.scale
    assert x.square().mean() == pytest.approx(1, abs=1e-4)
    assert torch.equal(statistics.centre, measure(cache, 3, order, "mean", True).centre)
    assert statistics.scale < 0.9 * measure(cache, 3, order, "mean", True).scale


def test_dropped_rows_do_not_count(cache):
    assert measure(cache, 3, order_of(cache), "mean", True).centre.max() < 20
    assert measure(cache, 3, order_of(cache, drop_classes=(), max_norm=None), "mean", True).centre.min() > 1000


def test_the_geometric_median_has_the_least_mean_distance():
    x = np.random.default_rng(1).standard_normal((500, 4))
    x[:40] += 100
    middle = geometric_median(x)

    def cost(point):
        return np.linalg.norm(x - point, axis=1).mean()

    assert np.linalg.norm(middle) < 0.5 < np.linalg.norm(x.mean(0))
    for direction in np.eye(4):
        assert cost(middle) <= cost(middle + 1e-3 * direction)
        assert cost(middle) <= cost(middle - 1e-3 * direction)


def test_the_geometric_median_of_a_line_is_its_middle_point():
    assert geometric_median(np.array([[0.0], [1.0], [5.0]])) == pytest.approx(1.0, abs=1e-5)


def test_centre_and_scale_can_be_turned_off(cache):
    statistics = measure(cache, 3, order_of(cache), "none", False)
    assert statistics.scale == 1.0
    assert not statistics.centre.any()
