"""Every kept row at a uniformly random place of the epoch: the reference that other orders are measured against.

A window takes its rows from all over the cache. Where the layer fits in the machine's page cache that is as fast as
any other order from the second window on; where it does not, each window reads most of the cache again.

The permutation is NumPy's (uniform, which a keyed Feistel network is only nearly): 8 bytes a row while an epoch
lasts, 0.1 % of the rows themselves at d_model 3,072.
"""

from functools import lru_cache

import numpy as np
import numpy.typing as npt

from shared.format.layout import BLOCK_ROWS
from train.order.base import ROWS, Ints, Order, Window, keyed_generator


class GlobalPermutation(Order):
    """A uniformly random permutation of all kept rows."""

    reads_once = False

    def __init__(self, mask: npt.NDArray[np.bool_], *, window_blocks: int, data_seed: int) -> None:
        super().__init__(mask, window_blocks=window_blocks, data_seed=data_seed)
        num_windows = -(-self.num_rows // (self.window_blocks * BLOCK_ROWS))
        self._offsets = np.arange(num_windows + 1, dtype=np.int64) * self.num_rows // num_windows
        self._permutation = lru_cache(maxsize=1)(self._permute)

    def _permute(self, epoch: int) -> Ints:
        return keyed_generator(self.data_seed, ROWS, epoch, 0).permutation(self.kept_in_blocks(self.blocks))

    def offsets(self, epoch: int) -> Ints:
        return self._offsets

    def window(self, epoch: int, number: int) -> Window:
        rows = self._permutation(epoch)[self._offsets[number] : self._offsets[number + 1]]
        held, served = np.unique(rows, return_inverse=True)
        return Window(held, served.astype(np.int64))
