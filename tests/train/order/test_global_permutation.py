"""The global permutation: uniform over the whole epoch, however small its windows."""

import numpy as np

from train.order import GlobalPermutation


def test_the_window_size_is_how_much_is_read_ahead_and_nothing_more():
    mask = np.random.default_rng(0).random(5000) < 0.8
    small, large = (GlobalPermutation(mask, window_blocks=size, data_seed=3) for size in (1, 100))
    assert small.num_windows > 30
    assert large.num_windows == 1
    assert np.array_equal(small.rows(0, 9000), large.rows(0, 9000))


def test_each_part_of_an_epoch_comes_from_all_over_the_cache():
    order = GlobalPermutation(np.ones(100_000, bool), window_blocks=10, data_seed=0)
    first = order.rows(0, 2000)
    counts = np.bincount(first // 10_000, minlength=10)
    # Hypergeometric: mean 200, standard deviation 13.3 each; five of them.
    assert np.abs(counts - 200).max() < 67
