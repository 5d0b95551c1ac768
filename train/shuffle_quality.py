"""How well an order mixes: batches of it against batches of rows that are drawn independently.

Tokens of one conversation are alike, and a batch that holds many of one is worth less than its size. Two measures,
each 1 for independent draws (without replacement, from the rows that are kept):

    same-conversation pairs   pairs of rows of a batch that are of one conversation, over what independent draws
                              would give: B (B - 1) / 2 * sum_c n_c (n_c - 1) / (N (N - 1))
    source distance           mean distance, in kept rows of the cache, of two rows of a batch, over the mean of all
                              pairs of kept rows: (N + 1) / 3

with N kept rows, n_c of them in conversation c, and B rows in a batch.
"""

from dataclasses import dataclass

import numpy as np

from train.order import Order
from train.order.base import Ints

SAMPLE_BATCHES = 8


@dataclass(frozen=True)
class ShuffleQuality:
    """Means over a sample of batches."""

    same_conversation_pairs: float
    """As a multiple of what independent draws give; 1 where no conversation has two rows."""
    source_distance: float
    """As a multiple of what independent draws give."""
    conversations: float
    """Different conversations in a batch."""

    def __str__(self) -> str:
        return (f"{self.same_conversation_pairs:.2f} times the same-conversation pairs and {self.source_distance:.2f} "
                "times the source distance of independent draws")


def measure_shuffle(order: Order, batch_size: int, conversation_offset: Ints,
                    num_batches: int = SAMPLE_BATCHES) -> ShuffleQuality:
    """Look at ``num_batches`` batches, evenly spread over the first epoch.

    Args:
        conversation_offset: first row of every conversation, and the end [conversations + 1].
    """
    kept = order.kept_in_blocks(order.blocks)
    sizes = np.diff(np.searchsorted(kept, conversation_offset)).astype(np.float64)
    total, size = len(kept), min(batch_size, len(kept))
    share_of_pairs = float((sizes * (sizes - 1)).sum()) / max(1, total * (total - 1))
    pairs, distances, conversations = [], [], []
    for start in np.linspace(0, total - size, num_batches).astype(int).tolist():
        rows = np.sort(order.rows(start, start + size))
        _, counts = np.unique(np.searchsorted(conversation_offset, rows, side="right"), return_counts=True)
        pairs.append(float((counts * (counts - 1)).sum()))
        conversations.append(len(counts))
        # Sum over all pairs of |a - b|: the i-th smallest is added i times and taken off size - 1 - i times.
        signs = 2 * np.arange(size) - (size - 1)
        distances.append(float((signs * np.searchsorted(kept, rows)).sum()) / max(1, size * (size - 1) / 2))
    expected = share_of_pairs * size * (size - 1)
    return ShuffleQuality(float(np.mean(pairs)) / expected if expected else 1.0,
                          float(np.mean(distances)) / ((total + 1) / 3), float(np.mean(conversations)))
