"""Which conversations a plan holds, and in what order: smallest hashes first, in bounded memory."""

import heapq
from collections import Counter
from dataclasses import dataclass

import xxhash

from harvest.template import Encoded

HELD_OUT_SHARE = 0.04
"""Conversations whose key falls in this share of hash space are never trained on, by any plan. Fixed for
ever: with one plan's share larger than another's, one would train on what the other holds out."""

HELD_OUT_CONVERSATIONS = 5_000
"""Held-out conversations at most (the FAST paper evaluates on 5,000)."""

_HELD_OUT_BELOW = int(HELD_OUT_SHARE * 2**64)


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


@dataclass(frozen=True)
class Chosen:
    """An encoded conversation of a plan."""

    place: Place
    encoded: Encoded
    source: int
    truncated: bool


class Placer:
    """Gives every conversation its place; counts how often each key was seen."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._seen: Counter[int] = Counter()

    def place(self, key: int) -> tuple[Place, bool]:
        """The place of the next conversation with this key, and whether it is held out."""
        occurrence = self._seen[key]
        self._seen[key] += 1
        if key < _HELD_OUT_BELOW:
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
        self._kept: list[tuple[tuple[int, int, int], Chosen]] = []
        self._rows = 0
        self._last: tuple[int, int, int] | None = None

    def may_take(self, place: Place) -> bool:
        """Whether a conversation at this place can still be among the chosen."""
        return self._last is None or place.sort_key <= self._last

    def add(self, chosen: Chosen) -> None:
        """Take a conversation in; those pushed past the limit are dropped now and then."""
        self._kept.append((chosen.place.sort_key, chosen))
        self._rows += len(chosen.encoded)
        if (self._max_rows is not None and self._rows > 1.5 * self._max_rows + 10_000) or (
            self._max_conversations is not None and len(self._kept) > 1.5 * self._max_conversations + 100
        ):
            self._prune()

    def chosen(self) -> list[Chosen]:
        """The chosen conversations in order."""
        self._prune()
        return [item for _, item in self._kept]

    def _prune(self) -> None:
        heap = self._kept
        heapq.heapify(heap)
        kept: list[tuple[tuple[int, int, int], Chosen]] = []
        rows = 0
        while heap and not self._full(rows, len(kept)):
            kept.append(heapq.heappop(heap))
            rows += len(kept[-1][1].encoded)
        if self._full(rows, len(kept)) and kept:
            self._last = kept[-1][0]
        self._kept, self._rows = kept, rows

    def _full(self, rows: int, conversations: int) -> bool:
        return (self._max_rows is not None and rows >= self._max_rows) or (
            self._max_conversations is not None and conversations >= self._max_conversations
        )


