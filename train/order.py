"""The order in which rows are served: a function of (data_seed, epoch, position) and of nothing else.

Blocks of 128 rows are permuted, taken in windows of up to G blocks, and the kept rows of a window are
permuted among themselves. Batches are consecutive pieces of the resulting stream, which runs through the
epochs without a break; every kept row comes exactly once an epoch. State is one integer, so a run resumes
exactly and no buffer is saved. A row of a batch of B shares its block with B/G others on average (more in the
last window of an epoch), so G >= B is as good as a full shuffle (CorgiPile, arXiv 2206.05830).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from shared.format.layout import BLOCK_ROWS

_BLOCKS, _ROWS, _SAMPLE = 0, 1, 2  # what a stream of random numbers is for

Ints = npt.NDArray[np.int64]


def keyed_generator(data_seed: int, purpose: int, epoch: int, window: int) -> np.random.Generator:
    """A generator that depends on its four numbers alone (Philox, keyed through SeedSequence)."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence((data_seed, purpose, epoch, window))))


@dataclass(frozen=True)
class Segment:
    """Rows ``start`` to ``stop`` (exclusive) of one window, in the order in which the window serves them."""

    epoch: int
    window: int
    start: int
    stop: int


@dataclass(frozen=True)
class _Epoch:
    """One epoch's windows: window w holds ``blocks[bounds[w]:bounds[w+1]]``, ``offsets`` are in kept rows."""

    blocks: Ints
    bounds: Ints
    offsets: Ints


class BlockOrder:
    """The order of the rows that a mask keeps."""

    def __init__(self, mask: npt.NDArray[np.bool_], *, window_blocks: int, data_seed: int) -> None:
        """``mask`` bool [num_rows], at least one of them kept; windows hold at most ``window_blocks`` blocks."""
        num_blocks = -(-len(mask) // BLOCK_ROWS)
        self._mask = np.zeros((num_blocks, BLOCK_ROWS), dtype=bool)
        self._mask.reshape(-1)[: len(mask)] = mask
        self._counts = self._mask.sum(axis=1, dtype=np.int64)
        self.blocks: Ints = np.flatnonzero(self._counts).astype(np.int64)
        """Blocks with kept rows, ascending."""
        self.num_rows = int(self._counts.sum())
        """Kept rows: the length of an epoch."""
        assert self.num_rows > 0
        self.window_blocks = window_blocks
        self.data_seed = data_seed
        self.num_windows = -(-len(self.blocks) // window_blocks)
        self._epoch = lru_cache(maxsize=2)(self._compute_epoch)

    def _compute_epoch(self, epoch: int) -> _Epoch:
        blocks = keyed_generator(self.data_seed, _BLOCKS, epoch, 0).permutation(self.blocks)
        # Windows of equal size: a short last one would mix few blocks.
        bounds = np.arange(self.num_windows + 1, dtype=np.int64) * len(blocks) // self.num_windows
        offsets = np.concatenate([[0], np.cumsum(self._counts[blocks])])[bounds]
        return _Epoch(blocks, bounds, offsets.astype(np.int64))

    @property
    def mask(self) -> npt.NDArray[np.bool_]:
        """The mask that it orders, with the last block filled up: bool [128 * blocks]."""
        return self._mask.reshape(-1)

    def window_blocks_of(self, epoch: int, window: int) -> Ints:
        """The blocks of a window."""
        layout = self._epoch(epoch)
        return layout.blocks[layout.bounds[window] : layout.bounds[window + 1]]

    def kept_in_block(self, block: int) -> Ints:
        """Offsets (0 to 127) of the kept rows of a block, ascending."""
        return np.flatnonzero(self._mask[block]).astype(np.int64)

    def window_size(self, epoch: int, window: int) -> int:
        """Number of kept rows in a window."""
        layout = self._epoch(epoch)
        return int(layout.offsets[window + 1] - layout.offsets[window])

    def places(self, epoch: int, window: int) -> Ints:
        """Where each kept row of a window is served: [n], for its rows block by block, ascending in each."""
        return keyed_generator(self.data_seed, _ROWS, epoch, window).permutation(self.window_size(epoch, window))

    def window_rows(self, epoch: int, window: int) -> Ints:
        """Row numbers of a window in the order in which they are served."""
        rows = np.concatenate([block * BLOCK_ROWS + self.kept_in_block(block)
                               for block in self.window_blocks_of(epoch, window)])
        served = np.empty_like(rows)
        served[self.places(epoch, window)] = rows
        return served

    def segments(self, start: int, stop: int) -> Iterator[Segment]:
        """The pieces of windows that make up positions ``start`` to ``stop`` of the endless stream."""
        while start < stop:
            epoch, within = divmod(start, self.num_rows)
            offsets = self._epoch(epoch).offsets
            window = int(np.searchsorted(offsets, within, side="right")) - 1
            first = within - int(offsets[window])
            length = min(stop - start, int(offsets[window + 1]) - within)
            yield Segment(epoch, window, first, first + length)
            start += length

    def rows(self, start: int, stop: int) -> Ints:
        """Row numbers at positions ``start`` to ``stop`` of the endless stream."""
        pieces = [self.window_rows(s.epoch, s.window)[s.start : s.stop] for s in self.segments(start, stop)]
        return np.concatenate(pieces) if pieces else np.empty(0, dtype=np.int64)

    def following(self, segment: Segment) -> tuple[int, int]:
        """(epoch, window) of the window after a segment's."""
        last = segment.window + 1 == self.num_windows
        return (segment.epoch + 1, 0) if last else (segment.epoch, segment.window + 1)

    def same_block_rows(self, batch_size: int) -> float:
        """Expected number of other rows in a batch from the same block as a given row: about B/G."""
        return batch_size / (len(self.blocks) / self.num_windows)

    def sample_blocks(self, max_blocks: int) -> Ints:
        """A fixed sample of the blocks with kept rows, ascending: where statistics are taken from."""
        order = keyed_generator(self.data_seed, _SAMPLE, 0, 0).permutation(self.blocks)
        return np.sort(order[:max_blocks])


def default_window_blocks(batch_size: int, d_model: int, memory_bytes: int = 4 << 30) -> int:
    """Blocks in a window: twice the batch size, at least 2,048, as far as two windows fit in ``memory_bytes``."""
    fitting = memory_bytes // (2 * BLOCK_ROWS * d_model * 2)
    return max(1, min(max(2 * batch_size, 2048), fitting))
