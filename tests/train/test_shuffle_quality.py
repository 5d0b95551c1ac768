"""The measures of a shuffle: by hand on tiny batches, 1 for independent draws, and what no shuffle would give."""

import itertools

import numpy as np
import pytest

from train.order import ORDERS, GlobalPermutation, Order, Window
from train.shuffle_quality import measure_shuffle


class AsStored(Order):
    """No shuffle at all."""

    reads_once = True

    def offsets(self, epoch):
        return np.array([0, self.num_rows])

    def window(self, epoch, number):
        return Window(self.kept_in_blocks(self.blocks), np.arange(self.num_rows))


def test_both_measures_are_those_of_a_count_over_all_pairs():
    mask = np.random.default_rng(0).random(400) < 0.7
    kept = np.flatnonzero(mask)
    offset = np.array([0, 10, 10, 130, 131, 250, 400])  # one is empty
    order = GlobalPermutation(mask, window_blocks=2, data_seed=0)
    quality = measure_shuffle(order, 20, offset, num_batches=3)
    place = {row: i for i, row in enumerate(kept.tolist())}
    whose = {row: int(np.searchsorted(offset, row, side="right")) for row in kept.tolist()}

    def means(rows):
        pairs = list(itertools.combinations(rows, 2))
        same, apart = zip(*((whose[a] == whose[b], abs(place[a] - place[b])) for a, b in pairs), strict=True)
        return [np.mean(same), np.mean(apart)]

    starts = np.linspace(0, len(kept) - 20, 3).astype(int)
    batches = [order.rows(start, start + 20).tolist() for start in starts]
    expected = np.mean([means(rows) for rows in batches], axis=0) / means(kept.tolist())
    assert quality.same_conversation_pairs == pytest.approx(expected[0], rel=1e-12)
    assert quality.source_distance == pytest.approx(expected[1], rel=1e-12)
    assert quality.conversations == np.mean([len({whose[row] for row in rows}) for rows in batches])


@pytest.mark.parametrize("kind", ORDERS.values(), ids=ORDERS)
def test_one_window_over_everything_is_as_good_as_independent_draws(kind):
    order = kind(np.ones(40_000, bool), window_blocks=1000, data_seed=0)
    quality = measure_shuffle(order, 2000, np.arange(0, 40_001, 100), num_batches=16)
    # 16 batches with 4,950 such pairs each: a standard deviation of 0.4 %; that of the distance is less.
    assert quality.same_conversation_pairs == pytest.approx(1, abs=0.02)
    assert quality.source_distance == pytest.approx(1, abs=0.02)


def test_rows_as_they_are_stored_are_far_from_it():
    order = AsStored(np.ones(40_000, bool), window_blocks=1000, data_seed=0)
    quality = measure_shuffle(order, 2000, np.arange(0, 40_001, 100))
    assert quality.same_conversation_pairs == pytest.approx(20, rel=0.06)  # 20 conversations in place of 400
    assert quality.source_distance == pytest.approx(2000 / 40_000, rel=1e-3)
    assert quality.conversations == pytest.approx(20, abs=1)


def test_windows_are_better_than_a_buffer_of_their_size():
    mask, offset = np.ones(300_000, bool), np.arange(0, 300_001, 250)
    windows, buffer = (measure_shuffle(ORDERS[name](mask, window_blocks=200, data_seed=0), 1000, offset)
                       for name in ("windows", "mixing-buffer"))
    assert windows.same_conversation_pairs < buffer.same_conversation_pairs
    assert windows.source_distance == pytest.approx(1, abs=0.1)
    assert buffer.source_distance < 0.3
    assert "times the same-conversation pairs" in str(windows)
