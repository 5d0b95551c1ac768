"""The order of rows: a pure function, every kept row once an epoch."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from train.order import BlockOrder, default_window_blocks


@st.composite
def orders(draw):
    num_rows = draw(st.integers(1, 3000))
    share = draw(st.sampled_from([0.02, 0.5, 0.98, 1.0]))
    mask = np.random.default_rng(draw(st.integers(0, 99))).random(num_rows) < share
    mask[draw(st.integers(0, num_rows - 1))] = True
    return mask, draw(st.integers(1, 12)), draw(st.integers(0, 2**40))


@settings(max_examples=60, deadline=None)
@given(orders(), st.integers(1, 700))
def test_every_kept_row_comes_exactly_once_an_epoch(arguments, batch):
    mask, window, seed = arguments
    order = BlockOrder(mask, window_blocks=window, data_seed=seed)
    kept = np.flatnonzero(mask)
    assert order.num_rows == len(kept)
    served = np.concatenate([order.rows(start, min(start + batch, 2 * len(kept)))
                             for start in range(0, 2 * len(kept), batch)])
    assert np.array_equal(np.sort(served[: len(kept)]), kept)
    assert np.array_equal(np.sort(served[len(kept) :]), kept)


@settings(max_examples=40, deadline=None)
@given(orders(), st.integers(0, 9000), st.integers(1, 500))
def test_any_piece_is_the_same_however_it_is_reached(arguments, start, length):
    mask, window, seed = arguments
    one = BlockOrder(mask, window_blocks=window, data_seed=seed)
    one.rows(0, 50)
    fresh = BlockOrder(mask, window_blocks=window, data_seed=seed)
    whole = one.rows(start, start + length)
    middle = start + length // 2
    assert np.array_equal(np.concatenate([fresh.rows(middle, start + length)]), whole[length // 2 :])
    assert np.array_equal(fresh.rows(start, middle), whole[: length // 2])


def test_seeds_and_epochs_differ():
    mask = np.ones(5000, bool)
    orders = [BlockOrder(mask, window_blocks=8, data_seed=seed) for seed in (0, 1)]
    assert not np.array_equal(orders[0].rows(0, 5000), orders[1].rows(0, 5000))
    assert not np.array_equal(orders[0].rows(0, 5000), orders[0].rows(5000, 10000))


def test_a_batch_mixes_as_many_blocks_as_was_said():
    order = BlockOrder(np.ones(128 * 512, bool), window_blocks=256, data_seed=0)
    partners = []
    for step in range(64):
        blocks = order.rows(step * 256, (step + 1) * 256) // 128
        _, counts = np.unique(blocks, return_counts=True)
        partners.append((counts * (counts - 1)).sum() / 256)
    assert order.same_block_rows(256) == 1.0
    assert 0.8 < np.mean(partners) < 1.2


def test_windows_are_of_equal_size_and_within_the_bound():
    order = BlockOrder(np.ones(128 * 101, bool), window_blocks=50, data_seed=0)
    sizes = [len(order.window_blocks_of(0, window)) for window in range(order.num_windows)]
    assert sum(sizes) == 101
    assert max(sizes) - min(sizes) <= 1
    assert max(sizes) <= 50


def test_the_default_window_is_twice_the_batch_where_memory_allows():
    assert default_window_blocks(4096, 3072, 64 << 30) == 8192
    assert default_window_blocks(4096, 3072, 1 << 30) == 682
