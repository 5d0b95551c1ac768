"""The conversation that a report shows: one that is held out, of a length that fits a page."""

import numpy as np

from shared.errors import DataError
from shared.reading.cache import Cache
from shared.showing import conversation
from shared.showing.conversation import ShownConversation

SHORTEST, LONGEST = 120, 420
"""Tokens of a conversation that fits a page; a longer one is cut."""


def choose_conversation(cache: Cache) -> int:
    """The held-out conversation to show: of those of 120 to 420 tokens that with the most token classes.

    The first of equals. Where there is none of that length, the shortest of at least 120 tokens, else the longest.

    Raises:
        DataError: no conversation is held out.
    """
    offsets = cache.conversation_offset
    first = int(np.searchsorted(offsets, cache.num_train_rows))
    numbers = range(first, len(offsets) - 1)
    if len(numbers) == 0:
        raise DataError(f"{cache.path} holds out no conversation, so there is none to show.")
    lengths = np.diff(offsets)
    fitting = [number for number in numbers if SHORTEST <= lengths[number] <= LONGEST]
    if fitting:
        return max(fitting, key=lambda number: len(np.unique(
            cache.token_class[offsets[number]:offsets[number + 1]])))
    long_enough = [number for number in numbers if lengths[number] >= SHORTEST]
    return (min(long_enough, key=lambda number: int(lengths[number])) if long_enough
            else max(numbers, key=lambda number: int(lengths[number])))


def show_conversation(cache: Cache, number: int) -> ShownConversation:
    """A conversation's turns and the legend of its classes; what is over 420 tokens is left out."""
    start, stop = (int(row) for row in cache.conversation_offset[number:number + 2])
    tokens = cache.tokens(np.arange(start, stop, dtype=np.int64))
    return conversation.show_conversation(tokens, cache.vocabulary.decode, number, LONGEST)
