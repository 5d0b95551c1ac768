"""Windows of blocks: their sizes, and how well they mix."""

import numpy as np

from train.order import ShuffledWindows, default_window_blocks


def test_a_row_shares_its_block_with_as_many_of_its_batch_as_was_said():
    order = ShuffledWindows(np.ones(128 * 512, bool), window_blocks=256, data_seed=0)
    partners = []
    for step in range(64):
        blocks = order.rows(step * 256, (step + 1) * 256) // 128
        _, counts = np.unique(blocks, return_counts=True)
        partners.append((counts * (counts - 1)).sum() / 256)
    # B / G = 1. A batch's mean over 256 rows varies by about 0.09, the mean of 64 batches by 0.011.
    assert 0.95 < np.mean(partners) < 1.05


def test_windows_are_of_equal_size_and_within_the_bound():
    order = ShuffledWindows(np.ones(128 * 101, bool), window_blocks=50, data_seed=0)
    sizes = [len(order.window(0, number).held) // 128 for number in range(order.num_windows)]
    assert sum(sizes) == 101
    assert max(sizes) - min(sizes) <= 1
    assert max(sizes) <= 50


def test_the_default_window_is_twice_the_batch_where_memory_allows():
    assert default_window_blocks(4096, 3072, 64 << 30) == 8192
    assert default_window_blocks(4096, 3072, 1 << 30) == 682
