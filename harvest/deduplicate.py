"""N-gram deduplication of chats: Algorithm 1 of the FAST paper (arXiv 2506.07691), exact and in bounded memory.

The rule is greedy and depends on the order of the samples. The n-grams of a sample are those of its turns. If any of
them is an n-gram of an earlier sample that was kept, the sample is dropped, whole, and its n-grams count for nothing;
else it is kept and all its n-grams count. So of A, B and C, where B shares one with A and another one with C, A and C
are kept.

Kept samples share no n-gram. So an n-gram's list of samples (`harvest.occurrences`) has one kept sample at most, and
in the order of reading a sample is dropped if and only if a list that it stands in has its kept sample already: only
these lists have to be in memory, and one pass over the data finds them.
"""

from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from harvest.config import Deduplicate
from harvest.conversation import Conversation, Skipped
from harvest.ngrams import I64, U64, Ngrams
from harvest.occurrences import Occurrences, SharedLists
from shared.progress import Progress

MEMORY_BYTES = 2 << 30
"""What n-grams may take in memory unless told otherwise."""

_CHUNK_CHARACTERS = 1 << 16  # what its words and hashes take stays in the processor's caches
_NOBODY = np.iinfo(np.int64).max
_NONE = np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, np.uint64)


@dataclass(frozen=True)
class Duplicates:
    """Which conversations are duplicates, and of which earlier ones. Numbers count conversations as they were read,
    from 0, without rows that were skipped."""

    number: I64 = field(repr=False)
    """[d], ascending: the duplicates."""
    original: I64 = field(repr=False)
    """[d]: for each the first of the kept conversations that it shares an n-gram with; where all stay together, the
    first one of those it is connected with."""
    key: U64 = field(repr=False)
    """[d]: the original's `Conversation.key`."""
    ngram: U64 = field(repr=False)
    """[d]: the lowest hash of an n-gram that both have (`harvest.ngrams`); together, of one it has with any other."""
    num_read: int
    """Conversations read."""

    def __len__(self) -> int:
        return len(self.number)

    def find(self, number: int) -> int | None:
        """Where in the arrays conversation ``number`` stands; None if it is no duplicate. Takes O(log d)."""
        place = int(np.searchsorted(self.number, number))
        return place if place < len(self) and self.number[place] == number else None

    def key_of(self, number: int) -> int | None:
        """The key of the earlier conversation that conversation ``number`` duplicates; None if it is no duplicate."""
        place = self.find(number)
        return None if place is None else int(self.key[place])


def find_duplicates(
    read: Callable[[], Iterator[Conversation | Skipped]], options: Deduplicate, *,
    memory_bytes: int = MEMORY_BYTES, folder: Path | None = None,
) -> Duplicates:
    """Read the data once and find its duplicates.

    The result follows from the data and the options alone. With ``action`` "together" it is not the greedy rule's,
    which leaves n-grams shared between what is kept as C and dropped as B above: every conversation is then a
    duplicate of the first one that it is connected with, through n-grams shared with any others, so that to put
    duplicates where their original is leaves no n-gram on two sides.

    Args:
        memory_bytes: for n-grams. What does not fit goes to temporary files, 12 bytes for each n-gram of the data.
            Beside it 8 bytes for each conversation are needed, and the lists of conversations that share n-grams.
        folder: where those files go; None: the system's folder for them.

    Raises:
        TryAgainError: no space left for temporary files. StorageError: they cannot be written.
        UserError: as ``read`` raises.
    """
    keys = array("Q")
    occurrences = Occurrences(memory_bytes, folder)
    try:
        _collect(read(), Ngrams(options), occurrences, keys, memory_bytes)
        lists = _shared_lists(occurrences)
    finally:
        occurrences.close()
    find = _connected if options.action == "together" else _greedy
    number, original, ngram = find(lists, len(keys))
    key = np.frombuffer(keys, np.uint64)[original] if len(keys) else np.zeros(0, np.uint64)
    return Duplicates(number, original, key, ngram, len(keys))


def _collect(
    rows: Iterator[Conversation | Skipped], ngrams: Ngrams, occurrences: Occurrences, keys: "array[int]", memory: int
) -> None:
    chunk: list[Conversation] = []
    characters = 0
    most = min(_CHUNK_CHARACTERS, memory // 128)

    def take() -> None:
        hashes, numbers = ngrams.hashes(chunk)
        occurrences.add(hashes, numbers + len(keys))
        keys.extend(conversation.key for conversation in chunk)
        progress.advance(len(chunk))

    with Progress("find n-grams", total=0, unit="conversations") as progress:
        for row in rows:
            if isinstance(row, Skipped):
                continue
            chunk.append(row)
            characters += sum(len(message.content) for message in row.messages)
            if characters >= most:
                take()
                chunk, characters = [], 0
        take()


def _shared_lists(occurrences: Occurrences) -> SharedLists:
    """All lists, those of different ranges of hashes joined whenever as many have come as there were before."""
    kept = SharedLists.of(np.zeros(0, np.uint64), np.zeros(0, np.uint32))
    new: list[SharedLists] = []
    num_new = 0
    ranges = occurrences.shared()
    with Progress("compare n-grams", total=occurrences.num_pairs, unit="n-grams") as progress:
        for num_pairs, lists in ranges:
            lists = SharedLists.together([lists])
            new.append(lists)
            num_new += len(lists.samples)
            if num_new > len(kept.samples):
                kept, new, num_new = SharedLists.together([kept, *new]), [], 0
            progress.advance(num_pairs)
    return SharedLists.together([kept, *new])


def _greedy(lists: SharedLists, _: int) -> tuple[I64, I64, U64]:
    """Numbers, originals and n-grams of what the paper's rule drops."""
    if not len(lists.size):
        return _NONE
    order = np.argsort(lists.samples, kind="stable")
    list_of = np.repeat(np.arange(len(lists.size)), lists.size)[order]
    sample, start = np.unique(lists.samples[order], return_index=True)
    owner = np.full(len(lists.size), _NOBODY)
    dropped, original, ngram = array("q"), array("q"), array("Q")
    ends = [*start[1:].tolist(), len(list_of)]
    for number, begin, end in zip(sample.tolist(), start.tolist(), ends, strict=True):
        mine = list_of[begin:end]
        owners = owner[mine]
        first = owners.min()
        if first == _NOBODY:
            owner[mine] = number
        else:
            dropped.append(number)
            original.append(int(first))
            ngram.append(int(lists.ngram[mine[owners == first]].min()))
    return np.array(dropped, np.int64), np.array(original, np.int64), np.array(ngram, np.uint64)


def _connected(lists: SharedLists, num_samples: int) -> tuple[I64, I64, U64]:
    """Numbers, originals and n-grams of all samples that are connected with an earlier one."""
    if not len(lists.size):
        return _NONE
    first = np.arange(num_samples)
    start = np.cumsum(lists.size) - lists.size
    while True:  # the lowest number spreads through the lists, and in leaps along what it has reached
        lowest = np.minimum.reduceat(first[lists.samples], start)
        nearer = first.copy()
        np.minimum.at(nearer, lists.samples, np.repeat(lowest, lists.size))
        nearer = np.minimum(nearer, nearer[nearer])
        if np.array_equal(nearer, first):
            break
        first = nearer
    ngram = np.full(num_samples, np.iinfo(np.uint64).max)
    np.minimum.at(ngram, lists.samples, np.repeat(lists.ngram, lists.size))
    number = np.flatnonzero(first < np.arange(num_samples))
    return number, first[number], ngram[number]


