"""The n-grams of conversations as 64-bit hashes, in numpy.

A word is what `str.split()` gives: text between unicode whitespace, punctuation and case as they stand. A
character is a unicode code point. No n-gram crosses a turn, and roles are no part of one.

A word is hashed by xxh3-64; the hash of a window of n words is made of those of its halves, quarters, ... by a
multiplication and a bit-mixing step, so that it costs log2(n) vector operations over the text, and so that, unlike
with a rolling polynomial modulo 2^64, repetitive text has no collisions of its own.

The hash stands for the n-gram. Among N different n-grams the expected number of pairs with equal hashes is
N (N - 1) / 2^65: for 5e9 (11.4 million chats) 0.68, so that with probability 0.49 somewhere in the whole set one
sample is compared wrongly, hardly ever two; for 5e8 it is 0.007.
"""

from collections.abc import Sequence
from itertools import chain

import numpy as np
import numpy.typing as npt
import xxhash

from harvest.config import Deduplicate
from harvest.conversation import Conversation
from shared.digests import canonical_json

U64 = npt.NDArray[np.uint64]

_EMPTY = np.zeros(0, np.uint64)
_WHOLE_TURN, _WHOLE_SAMPLE = 1, 2
"""Seeds that keep hashes of whole texts apart from those of n-grams."""


def mix(values: U64) -> U64:
    """A bijection of 64-bit values that depends on all their bits in all of its own (the finaliser of splitmix64)."""
    x = values ^ (values >> np.uint64(30))
    x *= np.uint64(0xBF58476D1CE4E5B9)
    x ^= x >> np.uint64(27)
    x *= np.uint64(0x94D049BB133111EB)
    x ^= x >> np.uint64(31)
    return x


def window_hashes(elements: U64, n: int) -> U64:
    """Hashes of all windows of n elements: [m] -> [max(0, m - n + 1)]."""
    if len(elements) < n:
        return _EMPTY
    level, width = elements, 1
    done: U64 | None = None
    done_width = 0
    while True:
        if n & width:
            done = level if done is None else _joined(done, level[done_width:])
            done_width += width
        if 2 * width > n:
            break
        level = _joined(level, level[width:])
        width *= 2
    assert done is not None
    return done


def _joined(left: U64, right: U64) -> U64:
    """Hashes of windows that are ``left`` followed by ``right``, as many as there are of ``right``."""
    x = left[: len(right)] * np.uint64(0x9E3779B97F4A7C15)
    x += right
    x ^= x >> np.uint64(32)
    x *= np.uint64(0xD6E8FEB86659FD93)
    x ^= x >> np.uint64(32)
    return x


class Ngrams:
    """Finds the n-grams that an option table asks for."""

    def __init__(self, options: Deduplicate) -> None:
        self._n = options.n
        self._words = options.unit == "words"
        self._roles = None if options.roles is None else frozenset(options.roles)
        self._short = options.short_texts

    def hashes(self, conversations: Sequence[Conversation]) -> tuple[U64, npt.NDArray[np.int64]]:
        """The hashes of all n-grams, [m], and which of the conversations each is of, [m], ascending.

        An n-gram that a conversation has twice may be there twice.
        """
        long: list[Sequence[str]] = []
        of: list[int] = []
        whole: list[int] = []
        whole_of: list[int] = []
        for number, conversation in enumerate(conversations):
            turns = self._turns(conversation)
            found = [turn for turn in turns if len(turn) >= self._n]
            long += found
            of += [number] * len(found)
            if self._short != "keep":
                short = self._whole_hashes(turns)
                whole += short
                whole_of += [number] * len(short)
        hashes, numbers = self._windows(long, np.array(of, np.int64))
        if not whole:
            return hashes, numbers
        numbers = np.concatenate([numbers, np.array(whole_of, np.int64)])
        order = np.argsort(numbers, kind="stable")
        return np.concatenate([hashes, np.array(whole, np.uint64)])[order], numbers[order]

    def text_of(self, conversation: Conversation, wanted: int) -> str | None:
        """The text of the n-gram with a hash, or of the whole short text; None where it is not in a conversation."""
        turns = self._turns(conversation)
        for turn in turns:
            places = np.flatnonzero(window_hashes(self._elements([turn]), self._n) == np.uint64(wanted))
            if len(places):
                return self._text(turn[places[0] : places[0] + self._n])
        if self._short == "turns":
            return next((self._text(turn) for turn in turns if wanted in self._whole_hashes([turn])), None)
        if self._short == "samples" and wanted in self._whole_hashes(turns):
            return "\n".join(map(self._text, turns))
        return None

    def _turns(self, conversation: Conversation) -> list[Sequence[str]]:
        """The turns that count, each as its words or as the string of its characters; none is empty."""
        texts = [message.content for message in conversation.messages
                 if self._roles is None or message.role in self._roles]
        turns: list[Sequence[str]] = [text.split() for text in texts] if self._words else [*texts]
        return [turn for turn in turns if turn]

    def _text(self, turn: Sequence[str]) -> str:
        return " ".join(turn) if self._words else "".join(turn)

    def _elements(self, turns: list[Sequence[str]]) -> U64:
        """The hash of each word or character of turns, one turn after the other."""
        if self._words:
            encoded = map(str.encode, chain.from_iterable(turns))
            return np.fromiter(map(xxhash.xxh3_64_intdigest, encoded), np.uint64, sum(map(len, turns)))
        points = np.frombuffer("".join(map(self._text, turns)).encode("utf-32-le"), "<u4")
        return mix(points.astype(np.uint64))

    def _windows(self, turns: list[Sequence[str]], of: npt.NDArray[np.int64]) -> tuple[U64, npt.NDArray[np.int64]]:
        """Hashes of the windows within each turn, and the number ``of`` its turn."""
        lengths = np.array([len(turn) for turn in turns], np.int64)
        ends = np.repeat(np.cumsum(lengths), lengths)
        within = np.flatnonzero(np.arange(len(ends)) + self._n <= ends)
        return window_hashes(self._elements(turns), self._n)[within], np.repeat(of, lengths - self._n + 1)

    def _whole_hashes(self, turns: list[Sequence[str]]) -> list[int]:
        if self._short == "turns":
            return [xxhash.xxh3_64_intdigest(self._text(turn).encode(), _WHOLE_TURN)
                    for turn in turns if len(turn) < self._n]
        if not turns or any(len(turn) >= self._n for turn in turns):
            return []
        return [xxhash.xxh3_64_intdigest(canonical_json([*map(self._text, turns)]), _WHOLE_SAMPLE)]
