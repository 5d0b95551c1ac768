"""The FAST paper's mixing buffer (arXiv 2506.07691, 3.3): fill it, shuffle all, serve half, keep half, refill.

The rows go in as they are stored, conversation by conversation; C rows fit, H = C // 2 are served each time. At the
end of an epoch, when nothing is left to refill from, all that is held is served, so an epoch is whole. (The paper
gives no size; SAELens goes on filling from the next epoch.)

It is a function of numbers alone: round r holds min(C + r H, N) - r H rows, and which of them are served is keyed by
(data_seed, epoch, r). To go on at round r, the rounds before are played again, on row numbers and without data:
some 20 ns a row.
"""

import threading
from functools import cached_property

import numpy as np
import numpy.typing as npt

from shared.format.layout import BLOCK_ROWS
from train.order.base import ROWS, Ints, Order, Window, keyed_generator


class MixingBuffer(Order):
    """A buffer of the window's size that is filled in the order of the cache, half of it at a time."""

    reads_once = True

    def __init__(self, mask: npt.NDArray[np.bool_], *, window_blocks: int, data_seed: int) -> None:
        super().__init__(mask, window_blocks=window_blocks, data_seed=data_seed)
        self._capacity = min(self.window_blocks * BLOCK_ROWS, self.num_rows)
        self._half = max(1, self._capacity // 2)
        self._lock = threading.Lock()
        self._latest: tuple[int, int, Window] | None = None

    @cached_property
    def _offsets(self) -> Ints:
        rounds = -(-(self.num_rows - self._capacity) // self._half)
        return np.append(np.arange(rounds + 1, dtype=np.int64) * self._half, self.num_rows)

    @cached_property
    def _ranks(self) -> Ints:
        """Kept rows before each of ``blocks``, and all."""
        return np.concatenate([[0], np.cumsum(self.counts)]).astype(np.int64)

    def offsets(self, epoch: int) -> Ints:
        return self._offsets

    def window(self, epoch: int, number: int) -> Window:
        with self._lock:
            at, window = -1, Window(np.empty(0, np.int64), np.empty(0, np.int64))
            if self._latest is not None and self._latest[0] == epoch and self._latest[1] <= number:
                _, at, window = self._latest
            while at < number:
                at += 1
                window = self._refill(window, epoch, at)
            self._latest = (epoch, at, window)
            return window

    def _refill(self, before: Window, epoch: int, number: int) -> Window:
        kept = np.delete(before.held, before.served)
        start = int(self._offsets[number])
        stop = min(start + self._capacity, self.num_rows)
        # The rows taken in are the next in the cache, so they come after all that were kept.
        held = np.concatenate([kept, self._by_rank(start + len(kept), stop)])
        served = keyed_generator(self.data_seed, ROWS, epoch, number).permutation(len(held))
        return Window(held, served[: self._offsets[number + 1] - start], num_carried=len(kept))

    def _by_rank(self, start: int, stop: int) -> Ints:
        """Kept rows number ``start`` to ``stop`` of the cache."""
        first = int(np.searchsorted(self._ranks, start, side="right")) - 1
        last = int(np.searchsorted(self._ranks, stop, side="left"))
        rows = self.kept_in_blocks(self.blocks[first:last])
        return rows[start - self._ranks[first] : stop - self._ranks[first]]
