"""What every order promises: a pure function of seed, epoch and position; every kept row once an epoch."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from train.order import ORDERS

every_order = pytest.mark.parametrize("kind", ORDERS.values(), ids=ORDERS)


@st.composite
def rows_and_settings(draw):
    """A mask of any density, with at least one row, and the settings of an order."""
    num_rows = draw(st.integers(1, 3000))
    share = draw(st.sampled_from([0.02, 0.5, 0.98, 1.0]))
    mask = np.random.default_rng(draw(st.integers(0, 99))).random(num_rows) < share
    mask[draw(st.integers(0, num_rows - 1))] = True
    return mask, {"window_blocks": draw(st.integers(1, 12)), "data_seed": draw(st.integers(0, 2**40))}


@every_order
@settings(max_examples=30, deadline=None)
@given(rows_and_settings(), st.integers(40, 700))
def test_every_kept_row_comes_exactly_once_an_epoch(kind, chosen, batch):
    mask, given_settings = chosen
    order, kept = kind(mask, **given_settings), np.flatnonzero(mask)
    assert order.num_rows == len(kept)
    served = np.concatenate([order.rows(start, min(start + batch, 2 * len(kept)))
                             for start in range(0, 2 * len(kept), batch)])
    assert np.array_equal(np.sort(served[: len(kept)]), kept)
    assert np.array_equal(np.sort(served[len(kept) :]), kept)


@every_order
@settings(max_examples=20, deadline=None)
@given(rows_and_settings(), st.integers(0, 9000), st.integers(1, 500))
def test_any_piece_is_the_same_however_it_is_reached(kind, chosen, start, length):
    mask, given_settings = chosen
    one, fresh = kind(mask, **given_settings), kind(mask, **given_settings)
    one.rows(0, 50)
    whole = one.rows(start, start + length)
    middle = start + length // 2
    assert np.array_equal(fresh.rows(middle, start + length), whole[length // 2 :])
    assert np.array_equal(fresh.rows(start, middle), whole[: length // 2])


@every_order
@settings(max_examples=30, deadline=None)
@given(rows_and_settings(), st.integers(0, 3))
def test_a_window_holds_what_it_serves_within_its_size_and_carries_over_what_it_says(kind, chosen, epoch):
    mask, given_settings = chosen
    order = kind(mask, **given_settings)
    offsets = order.offsets(epoch)
    assert offsets[0] == 0
    assert offsets[-1] == order.num_rows
    assert len(offsets) == order.num_windows + 1
    left = np.empty(0, np.int64)
    for number in range(order.num_windows):
        window = order.window(epoch, number)
        assert (np.diff(window.held) > 0).all()
        assert len(window.held) <= 128 * given_settings["window_blocks"]
        assert len(window.served) == offsets[number + 1] - offsets[number] > 0
        assert np.array_equal(window.rows, order.rows(epoch * order.num_rows + offsets[number],
                                                      epoch * order.num_rows + offsets[number + 1]))
        assert window.num_carried in {0, len(left)}
        assert np.array_equal(window.held[: window.num_carried], left[: window.num_carried])
        left = np.delete(window.held, window.served)
    assert len(left) == 0


@every_order
def test_threads_that_ask_at_once_and_out_of_turn_are_told_the_same(kind):
    mask = np.random.default_rng(0).random(20_000) < 0.9
    windows = kind(mask, window_blocks=9, data_seed=5).num_windows
    asked = [(epoch, number) for epoch in (0, 1) for number in range(windows)]
    alone = {key: kind(mask, window_blocks=9, data_seed=5).window(*key).rows for key in asked}
    order = kind(mask, window_blocks=9, data_seed=5)
    shuffled = [asked[i] for i in np.random.default_rng(1).permutation(len(asked)).tolist() * 3]
    with ThreadPoolExecutor(8) as pool:
        for key, window in zip(shuffled, pool.map(lambda key: order.window(*key), shuffled), strict=True):
            assert np.array_equal(window.rows, alone[key])


@every_order
def test_seeds_and_epochs_differ(kind):
    mask = np.ones(5000, bool)
    one, other = (kind(mask, window_blocks=8, data_seed=seed) for seed in (0, 1))
    assert not np.array_equal(one.rows(0, 5000), other.rows(0, 5000))
    assert not np.array_equal(one.rows(0, 5000), one.rows(5000, 10000))


@every_order
def test_the_sample_for_statistics_is_the_same_for_every_order(kind):
    mask = np.random.default_rng(0).random(9000) < 0.5
    sample = kind(mask, window_blocks=3, data_seed=7).sample_blocks(20)
    assert np.array_equal(sample, ORDERS["windows"](mask, window_blocks=5, data_seed=7).sample_blocks(20))
    assert len(np.unique(sample)) == 20
