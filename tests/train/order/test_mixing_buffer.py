"""The paper's mixing buffer, against the buffer itself: rows in a list, filled, shuffled, half served, refilled."""

import numpy as np

from train.order import MixingBuffer
from train.order.base import ROWS, keyed_generator


def rows_by_a_real_buffer(mask, capacity, data_seed, epoch):
    """The rule as FAST states it, with a list and the same random numbers."""
    source, buffer, served, number = iter(np.flatnonzero(mask).tolist()), [], [], 0
    exhausted = False
    while True:
        while len(buffer) < capacity and not exhausted:
            row = next(source, None)
            exhausted = row is None
            if row is not None:
                buffer.append(row)
        if len(buffer) == capacity and not exhausted:  # look whether anything is left to refill from
            following = next(source, None)
            exhausted = following is None
            source = iter([] if following is None else [following, *source])
        buffer.sort()  # so that it stands as the cache does before it is shuffled
        order = keyed_generator(data_seed, ROWS, epoch, number).permutation(len(buffer))
        buffer = [buffer[i] for i in order]
        half = len(buffer) if exhausted else capacity // 2
        served += buffer[:half]
        buffer = buffer[half:]
        number += 1
        if exhausted:
            return served


def test_rows_are_served_as_by_a_buffer_that_is_filled_shuffled_half_served_and_refilled():
    for seed, num_rows in enumerate((100, 256, 257, 384, 1000, 4096)):
        mask = np.random.default_rng(seed).random(num_rows) < 0.9
        order = MixingBuffer(mask, window_blocks=2, data_seed=seed)
        for epoch in (0, 1):
            served = order.rows(epoch * order.num_rows, (epoch + 1) * order.num_rows)
            assert served.tolist() == rows_by_a_real_buffer(mask, 256, seed, epoch)


def test_half_of_the_buffer_is_served_until_nothing_is_left_to_refill_it():
    order = MixingBuffer(np.ones(1000, bool), window_blocks=2, data_seed=0)
    assert np.diff(order.offsets(0)).tolist() == [128, 128, 128, 128, 128, 128, 232]
    assert [len(order.window(0, number).held) for number in range(7)] == [256] * 6 + [232]


def test_rows_stay_in_the_buffer_for_two_rounds_on_average():
    order = MixingBuffer(np.ones(128 * 4000, bool), window_blocks=40, data_seed=0)
    half = 128 * 20
    entered = np.maximum(np.arange(order.num_rows) // half - 1, 0)
    left = np.empty(order.num_rows, np.int64)
    left[order.rows(0, order.num_rows)] = np.minimum(np.arange(order.num_rows) // half, order.num_windows - 1)
    middle = slice(20 * half, 150 * half)
    rounds = (left - entered + 1)[middle]
    # Geometric with 1/2: mean 2, standard deviation 1.41, over 333,000 rows.
    assert abs(rounds.mean() - 2) < 0.02
    assert rounds.min() == 1
