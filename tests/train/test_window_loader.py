"""Loading windows: the same rows however many threads read, through buffers or not, from cache or archive."""

from concurrent.futures import CancelledError

import ml_dtypes
import numpy as np
import pytest
import torch

from tests.train.fake_cache import FakeCache
from train.order import ORDERS
from train.window_loader import RELEASE_SHARE, WindowLoader, is_large

CPU = torch.device("cpu")


@pytest.fixture
def cache():
    return FakeCache(np.random.default_rng(0).standard_normal((5000, 6)).astype(np.float32))


@pytest.fixture
def order(request):
    mask = np.random.default_rng(1).random(5000) < 0.9
    return ORDERS[request.param](mask, window_blocks=8, data_seed=2)


every_order = pytest.mark.parametrize("order", ORDERS, indirect=True)


@every_order
@pytest.mark.parametrize("settings", [{"threads": 1}, {"threads": 5}, {"threads": 3, "staged": True}],
                         ids=["one-thread", "five-threads", "staged"])
def test_windows_hold_the_rows_that_the_order_says(cache, order, settings, monkeypatch):
    monkeypatch.setattr("train.window_loader.PIECE_BYTES", 12 * 200)  # several pieces a window, not at block edges
    loader = WindowLoader(cache.layer(3), order, CPU, **settings)
    memories = set()
    asked = [(epoch, number) for epoch in (0, 1) for number in range(order.num_windows)]
    loading = [loader.start(*key) for key in asked[:2]]
    for key, following in zip(asked, [*asked[2:], None, None], strict=True):
        loaded, rows = loading.pop(0).result(), order.window(*key).rows
        served = loaded.take(0, len(rows)).view(torch.uint16).numpy().view(ml_dtypes.bfloat16)
        assert np.array_equal(served, cache.layer(3)[rows])
        assert torch.equal(loaded.take(3, 7), loaded.take(0, len(rows))[3:7])
        memories.add(loaded.memory.data_ptr())
        loader.give_back(loaded)
        if following is not None:
            loading.append(loader.start(*following))
    loader.close()
    assert len(memories) <= 3  # one served, one loaded, one that a buffer goes on from


@pytest.mark.parametrize("order", ["mixing-buffer"], indirect=True)
def test_what_a_buffer_keeps_is_not_read_again(cache, order):
    read = []
    block = cache.layer(3).block
    cache.layer(3).block = lambda number: read.append(number) or block(number)
    loader = WindowLoader(cache.layer(3), order, CPU, threads=1)
    for number in range(order.num_windows):
        loader.start(0, number).result()
    loader.close()
    # Each block once, or twice where it lies across two fillings.
    assert len(read) <= len(order.blocks) + order.num_windows
    assert set(read) == set(order.blocks.tolist())


@every_order
def test_blocks_are_asked_for_before_the_first_of_them_is_waited_for(cache, order):
    layer = cache.layer(3)
    block, asked_by_then, waited = layer.block, [], set()

    def watched(number):
        asked_by_then.append(set(layer.prefetched))
        waited.add(number)
        return block(number)

    layer.block = watched
    loader = WindowLoader(layer, order, CPU)  # the window is smaller than a thread's piece
    loader.start(0, 0).result()
    loader.close()
    assert len(waited) > 3
    assert asked_by_then[0] == waited


@every_order
def test_pages_are_given_back_behind_where_that_is_asked_for(cache, order):
    loader = WindowLoader(cache.layer(3), order, CPU, release_pages=True)
    for number in range(order.num_windows):
        loader.start(0, number).result()
    loader.close()
    released = {block for first, last in cache.layer(3).released for block in range(first, last + 1)}
    assert released >= set(order.blocks.tolist())


@every_order
def test_pages_of_a_layer_that_fits_in_memory_stay(cache, order):
    loader = WindowLoader(cache.layer(3), order, CPU)
    loader.start(0, 0).result()
    loader.close()
    assert not cache.layer(3).released


@every_order
def test_pages_of_a_layer_that_does_not_fit_go_unless_the_order_comes_back_to_them(cache, order):
    cache.layer(3).num_bytes = 1 << 60
    loader = WindowLoader(cache.layer(3), order, CPU)
    loader.start(0, 0).result()
    loader.close()
    assert bool(cache.layer(3).released) == (not isinstance(order, ORDERS["global"]))


def test_a_layer_is_large_from_a_share_of_the_memory_on(cache, monkeypatch):
    monkeypatch.setattr("os.sysconf", {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": 1000}.__getitem__)
    cache.layer(3).num_bytes = int(4096 * 1000 * RELEASE_SHARE)
    assert not is_large(cache.layer(3))
    cache.layer(3).num_bytes += 1
    assert is_large(cache.layer(3))


@every_order
def test_a_window_that_could_not_be_read_can_be_asked_for_again(cache, order):
    block = cache.layer(3).block
    loader = WindowLoader(cache.layer(3), order, CPU)
    first = loader.start(0, 0).result()

    def broken(number):
        raise OSError("gone")

    cache.layer(3).block = broken
    with pytest.raises(OSError, match="gone"):
        loader.start(0, 1).result()
    cache.layer(3).block = block
    rows = order.window(0, 1).rows
    again = loader.start(0, 1).result().take(0, len(rows)).float().numpy()
    assert np.array_equal(again, cache.layer(3)[rows].astype(np.float32))
    assert first.take(0, 1).shape == (1, 6)
    loader.close()


@pytest.mark.parametrize("order", ["windows"], indirect=True)
def test_closing_ends_what_was_asked_for(cache, order):
    loader = WindowLoader(cache.layer(3), order, CPU, threads=1)
    asked = [loader.start(epoch, 0) for epoch in range(200)]
    loader.close()
    assert all(loading.done() for loading in asked)
    with pytest.raises((CancelledError, RuntimeError)):
        asked[-1].result()
