"""Blocks are permuted and taken in windows of up to G; the kept rows of a window are permuted among themselves.

A row of a batch of B shares its block with B/G others on average (more in the last window of an epoch), so G >= B
is as good as a full shuffle (CorgiPile, arXiv 2206.05830), and the cache is read once an epoch, block by block.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from train.order.base import BLOCKS, ROWS, Ints, Order, Window, keyed_generator


@dataclass(frozen=True)
class _Epoch:
    """Window w holds ``blocks[bounds[w]:bounds[w+1]]``, ``offsets`` are in kept rows."""

    blocks: Ints
    bounds: Ints
    offsets: Ints


class ShuffledWindows(Order):
    """Windows of blocks drawn from the whole cache, each shuffled. The default."""

    reads_once = True

    def __init__(self, mask: npt.NDArray[np.bool_], *, window_blocks: int, data_seed: int) -> None:
        super().__init__(mask, window_blocks=window_blocks, data_seed=data_seed)
        self._num_windows = -(-len(self.blocks) // self.window_blocks)
        self._epoch = lru_cache(maxsize=2)(self._compute_epoch)

    def _compute_epoch(self, epoch: int) -> _Epoch:
        drawn = keyed_generator(self.data_seed, BLOCKS, epoch, 0).permutation(len(self.blocks))
        # Windows of equal size: a short last one would mix few blocks.
        bounds = np.arange(self._num_windows + 1, dtype=np.int64) * len(drawn) // self._num_windows
        offsets = np.concatenate([[0], np.cumsum(self.counts[drawn])])[bounds]
        return _Epoch(self.blocks[drawn], bounds, offsets.astype(np.int64))

    def offsets(self, epoch: int) -> Ints:
        return self._epoch(epoch).offsets

    def window(self, epoch: int, number: int) -> Window:
        layout = self._epoch(epoch)
        held = self.kept_in_blocks(np.sort(layout.blocks[layout.bounds[number] : layout.bounds[number + 1]]))
        return Window(held, keyed_generator(self.data_seed, ROWS, epoch, number).permutation(len(held)))
