"""What every order of rows has: a function of (data_seed, epoch, position) and of nothing else.

An epoch is cut into windows, one after the other. A window is what is in memory at one time: some rows, held as
they lie in the cache, and the order in which they, or part of them, are served. Batches are consecutive pieces of
the resulting stream, which runs through the epochs without a break; every kept row comes exactly once an epoch.
State is one integer, the position, so a run resumes exactly and no buffer is saved.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from shared.format.layout import BLOCK_ROWS

BLOCKS, ROWS, SAMPLE = 0, 1, 2
"""What a stream of random numbers is for."""

Ints = npt.NDArray[np.int64]


def keyed_generator(data_seed: int, purpose: int, epoch: int, window: int) -> np.random.Generator:
    """A generator that depends on its four numbers alone (Philox, keyed through SeedSequence)."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence((data_seed, purpose, epoch, window))))


@dataclass(frozen=True)
class Window:
    """What is in memory at one time."""

    held: Ints
    """Row numbers, ascending: the order in which they are read."""
    served: Ints
    """Positions in ``held``, in the order in which they are served: all of them, or those that leave."""
    num_carried: int = 0
    """The first so many of ``held`` are what the window before held and did not serve."""

    @property
    def rows(self) -> Ints:
        """Row numbers in the order in which they are served."""
        return self.held[self.served]


@dataclass(frozen=True)
class Segment:
    """Rows ``start`` to ``stop`` (exclusive) of what one window serves."""

    epoch: int
    window: int
    start: int
    stop: int


class Order(ABC):
    """An order of the rows that a mask keeps. Safe from several threads."""

    reads_once: ClassVar[bool]
    """Whether a block is done with for this epoch once the window that reads it is loaded."""

    def __init__(self, mask: npt.NDArray[np.bool_], *, window_blocks: int, data_seed: int) -> None:
        """``mask`` bool [num_rows], at least one of them kept; windows hold ``window_blocks`` blocks of rows."""
        num_blocks = -(-len(mask) // BLOCK_ROWS)
        self._mask = np.zeros((num_blocks, BLOCK_ROWS), dtype=bool)
        self._mask.reshape(-1)[: len(mask)] = mask
        counts = self._mask.sum(axis=1, dtype=np.int64)
        self.blocks: Ints = np.flatnonzero(counts).astype(np.int64)
        """Blocks with kept rows, ascending."""
        self.counts: Ints = counts[self.blocks]
        """Kept rows of each of ``blocks``."""
        self.num_rows = int(counts.sum())
        """Kept rows: the length of an epoch."""
        assert self.num_rows > 0
        self.window_blocks = window_blocks
        self.data_seed = data_seed

    @abstractmethod
    def offsets(self, epoch: int) -> Ints:
        """Position in the epoch at which each window begins to serve, and the epoch's end: [windows + 1]."""

    @abstractmethod
    def window(self, epoch: int, number: int) -> Window:
        """One window of an epoch."""

    @property
    def mask(self) -> npt.NDArray[np.bool_]:
        """The mask that it orders, with the last block filled up: bool [128 * blocks]."""
        return self._mask.reshape(-1)

    @property
    def num_windows(self) -> int:
        """Windows in an epoch."""
        return len(self.offsets(0)) - 1

    def kept_in_block(self, block: int) -> Ints:
        """Offsets (0 to 127) of the kept rows of a block, ascending."""
        return np.flatnonzero(self._mask[block]).astype(np.int64)

    def kept_in_blocks(self, blocks: Ints) -> Ints:
        """Row numbers of the kept rows of some blocks, block by block."""
        number, offset = np.nonzero(self._mask[blocks])
        return blocks[number] * BLOCK_ROWS + offset

    def segments(self, start: int, stop: int) -> Iterator[Segment]:
        """The pieces of windows that make up positions ``start`` to ``stop`` of the endless stream."""
        while start < stop:
            epoch, within = divmod(start, self.num_rows)
            offsets = self.offsets(epoch)
            window = int(np.searchsorted(offsets, within, side="right")) - 1
            first = within - int(offsets[window])
            length = min(stop - start, int(offsets[window + 1]) - within)
            yield Segment(epoch, window, first, first + length)
            start += length

    def rows(self, start: int, stop: int) -> Ints:
        """Row numbers at positions ``start`` to ``stop`` of the endless stream."""
        pieces = [self.window(s.epoch, s.window).rows[s.start : s.stop] for s in self.segments(start, stop)]
        return np.concatenate(pieces) if pieces else np.empty(0, dtype=np.int64)

    def following(self, epoch: int, window: int) -> tuple[int, int]:
        """(epoch, window) of the window after one."""
        return (epoch + 1, 0) if window + 1 == self.num_windows else (epoch, window + 1)

    def sample_blocks(self, max_blocks: int) -> Ints:
        """A fixed sample of the blocks with kept rows, ascending: where statistics are taken from."""
        order = keyed_generator(self.data_seed, SAMPLE, 0, 0).permutation(self.blocks)
        return np.sort(order[:max_blocks])


def default_window_blocks(batch_size: int, d_model: int, memory_bytes: int = 4 << 30) -> int:
    """Blocks in a window: twice the batch size, at least 2,048, as far as two windows fit in ``memory_bytes``."""
    fitting = memory_bytes // (2 * BLOCK_ROWS * d_model * 2)
    return max(1, min(max(2 * batch_size, 2048), fitting))
