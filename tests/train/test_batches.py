"""The batch iterator."""

import itertools
import threading
import time

import numpy as np
import pytest
import torch

from shared.errors import RecipeError
from tests.train.fake_cache import FakeCache
from train.batches import Batches, Pace
from train.order import ORDERS


@pytest.fixture
def cache():
    return FakeCache(np.random.default_rng(0).standard_normal((3000, 6)).astype(np.float32), num_train_rows=2600)


@pytest.mark.parametrize("shuffle", ORDERS)
def test_batches_hold_the_rows_of_the_order(cache, shuffle):
    batches = Batches(cache, layer=3, batch_size=100, window_blocks=4, num_steps=60, shuffle=shuffle)
    count = 0
    for step, x in enumerate(batches):
        assert x.dtype == torch.bfloat16
        assert x.shape == (100, 6)
        expected = cache.layer(3)[batches.rows(step)].astype(np.float32)
        assert np.array_equal(x.float().numpy(), expected)
        count += 1
    assert count == len(batches) == 60


def test_one_pass_is_the_default_and_leaves_the_rest_of_a_batch(cache):
    batches = Batches(cache, layer=3, batch_size=100)
    assert len(batches) == batches.order.num_rows // 100


@pytest.mark.parametrize("shuffle", ORDERS)
@pytest.mark.parametrize("start", [31, 47])
def test_a_later_start_gives_the_same_batches(cache, shuffle, start):
    same = {"batch_size": 64, "window_blocks": 5, "num_steps": 50, "data_seed": 3, "shuffle": shuffle}
    whole = list(Batches(cache, layer=3, **same))
    rest = list(Batches(cache, layer=3, **same, start_step=start))
    assert len(rest) == 50 - start
    assert all(torch.equal(a, b) for a, b in zip(whole[start:], rest, strict=True))


def test_the_time_that_is_waited_is_counted_and_the_time_between_is_not(cache):
    block = cache.layer(3).block

    def slow(number):
        time.sleep(0.01)
        return block(number)

    cache.layer(3).block = slow
    batches = Batches(cache, layer=3, batch_size=100)
    pace = Pace(batches)
    iterator = iter(batches)
    next(iterator)
    # One window of 21 blocks, which one thread or more read while we wait.
    waited = batches.stall_seconds
    assert waited > 0.02
    assert 0 < pace.since_last(1)["stall_share"] <= 1
    time.sleep(3 * waited)
    for _ in itertools.islice(iterator, 3):
        pass
    assert batches.stall_seconds - waited < 3 * waited
    found = pace.since_last(4)
    assert found["stall_share"] < 1
    assert 0 < found["tokens_per_second"] < 300 / (3 * waited)


def test_a_reader_that_fails_is_heard(cache):
    def broken(number):
        raise OSError("gone")

    cache.layer(3).block = broken
    with pytest.raises(OSError, match="gone"):
        next(iter(Batches(cache, layer=3, batch_size=64)))


def test_leaving_the_loop_early_ends_the_threads(cache):
    iterator = iter(Batches(cache, layer=3, batch_size=64))
    next(iterator)
    names = [thread.name for thread in threading.enumerate()]
    assert any(name.startswith("window") for name in names)
    assert any(name.startswith("read") for name in names)
    iterator.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith(("window", "read"))]


def test_a_shuffle_that_is_not_there_is_refused(cache):
    with pytest.raises(RecipeError, match=r"shuffle must be one of windows, mixing-buffer, global; got 'random'"):
        Batches(cache, layer=3, batch_size=64, shuffle="random")


def test_a_layer_that_is_not_there_and_too_few_rows_are_refused(cache):
    with pytest.raises(RecipeError, match=r"Layer 5 is not in .* holds layers 3"):
        Batches(cache, layer=5)
    with pytest.raises(RecipeError, match="fewer than one batch"):
        Batches(cache, layer=3, batch_size=10_000)
