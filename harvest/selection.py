"""Which conversations a plan holds, and in what order: smallest hashes first, in bounded memory."""

from collections import Counter
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import xxhash

HELD_OUT_SHARE = 0.04
"""Conversations whose key falls in this share of hash space are never trained on, by any plan. Fixed for
ever: with one plan's share larger than another's, one would train on what the other holds out."""

HELD_OUT_CONVERSATIONS = 5_000
"""Held-out conversations at most (the FAST paper evaluates on 5,000)."""

_HELD_OUT_BELOW = int(HELD_OUT_SHARE * 2**64)

CHOSEN = np.dtype([
    ("rank", "<u8"), ("key", "<u8"), ("occurrence", "<u4"),  # its place
    ("batch", "<u4"), ("start", "<u4"), ("length", "<u4"),  # where its tokens are kept
    ("first_id", "<i4"), ("source", "<u2"), ("flags", "<u2"),
])
"""What is remembered of an encoded conversation: 40 bytes."""

Entries = npt.NDArray[np.void]


@dataclass(frozen=True)
class Place:
    """Where a conversation stands in the order: by hash, equal conversations one after the other."""

    rank: int
    """xxh3-64 of seed and key for training, the key itself for held-out conversations."""
    key: int
    occurrence: int
    """0 for the first conversation with this key, 1 for the next one."""

    @property
    def sort_key(self) -> tuple[int, int, int]:
        return self.rank, self.key, self.occurrence


def held_out_by(key: int) -> bool:
    """Whether conversations with this key are held out, by every plan."""
    return key < _HELD_OUT_BELOW


class Placer:
    """Gives every conversation its place; counts how often each key was seen."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._seen: Counter[int] = Counter()

    def place(self, key: int) -> tuple[Place, bool]:
        """The place of the next conversation with this key, and whether it is held out."""
        occurrence = self._seen[key]
        self._seen[key] += 1
        if held_out_by(key):
            return Place(key, key, occurrence), True
        rank = xxhash.xxh3_64_intdigest(f"{self._seed}:{key:016x}:{occurrence}".encode())
        return Place(rank, key, occurrence), False


class Smallest:
    """The conversations of lowest rank that together reach a limit in rows or in number.

    Keeps at most about half more than the limit in memory, and can say in advance that a place is too far
    back to ever be chosen. The result does not depend on the order of arrival.
    """

    def __init__(self, max_rows: int | None, max_conversations: int | None = None) -> None:
        self._max_rows = max_rows
        self._max_conversations = max_conversations
        self._kept: list[Entries] = []
        self._rows = self._conversations = 0
        self._last: tuple[int, int, int] | None = None

    def may_take(self, place: Place) -> bool:
        """Whether a conversation at this place can still be among the chosen."""
        return self._last is None or place.sort_key <= self._last

    def add(self, entries: Entries) -> None:
        """Take conversations in (`CHOSEN`); those pushed past the limit are dropped now and then."""
        self._kept.append(entries)
        self._rows += int(entries["length"].sum())
        self._conversations += len(entries)
        if (self._max_rows is not None and self._rows > 1.5 * self._max_rows + 10_000) or (
            self._max_conversations is not None and self._conversations > 1.5 * self._max_conversations + 100
        ):
            self._prune()

    def chosen(self) -> Entries:
        """The chosen conversations in order."""
        self._prune()
        return self._kept[0]

    def _prune(self) -> None:
        entries = np.concatenate([np.zeros(0, CHOSEN), *self._kept])
        entries = entries[np.lexsort((entries["occurrence"], entries["key"], entries["rank"]))]
        rows_before = np.cumsum(entries["length"], dtype=np.int64) - entries["length"]
        number = len(entries)
        if self._max_rows is not None:
            number = min(number, int(np.searchsorted(rows_before, self._max_rows)))
        if self._max_conversations is not None:
            number = min(number, self._max_conversations)
        kept = entries[:number]
        self._rows, self._conversations = int(kept["length"].sum()), number
        self._kept = [kept]
        if number and self._is_full():
            self._last = tuple(map(int, kept[-1].item()[:3]))  # type: ignore[assignment]

    def _is_full(self) -> bool:
        return (self._max_rows is not None and self._rows >= self._max_rows) or (
            self._max_conversations is not None and self._conversations >= self._max_conversations
        )
