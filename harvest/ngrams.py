"""The n-grams of conversations as 64-bit hashes, in numpy.

A word is what `str.split()` gives: text between unicode whitespace, punctuation and case as they stand. A
character is a unicode code point. No n-gram crosses a turn, and roles are no part of one.

A word is hashed 8 bytes at a time, each with a multiplication and a bit-mixing step; the hash of a window of n words
is made of those of its halves, quarters, ... by the same step. So it costs log2(n) vector operations over the text,
and, unlike with a rolling polynomial modulo 2^64, repetitive text has no collisions of its own.

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
I64 = npt.NDArray[np.int64]

_EMPTY = np.zeros(0, np.uint64)
_WHOLE_TURN, _WHOLE_SAMPLE = 1, 2
"""Seeds that keep hashes of whole texts apart from those of n-grams."""

_WIDE_SPACES = [character for character in map(chr, range(128, 0x10000)) if character.isspace()]
"""What `str.split()` splits at beyond ASCII."""
_FIRST_BYTES = np.array([(1 << 8 * count) - 1 for count in range(9)], np.uint64)
"""Masks for the first 0 to 8 bytes of a little-endian number."""
_LONG_WORD = 64
_SEED = np.uint64(0xA0761D6478BD642F)


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


def word_hashes(texts: Sequence[str]) -> tuple[U64, I64]:
    """Hashes of all words of some texts, [m], and how many words each text has, [texts].

    Words of up to 64 bytes of UTF-8 are hashed together, 8 bytes of each at a time: three times as fast as
    str.split() and a hash function of the library for every word. The others, links and the like, are few.
    """
    encoded = [(text if text.isascii() or not any(map(text.__contains__, _WIDE_SPACES)) else " ".join(text.split()))
               .encode() for text in texts]
    joined = b" ".join([b"", *encoded, b" " * 8])
    data = np.frombuffer(joined, np.uint8)
    is_space = (data - np.uint8(9) <= 4) | (data - np.uint8(28) <= 4)  # 9 to 13 and 28 to 32: ASCII's; others wrap
    edges = np.flatnonzero(is_space[1:] != is_space[:-1]) + 1
    start, end = edges[::2], edges[1::2]
    length = end - start
    eights: U64 = np.ndarray((len(data) - 7,), "<u8", joined, strides=(1,))  # those that begin at each byte
    hashes = _joined(_SEED + length.astype(np.uint64), eights[start] & _FIRST_BYTES[np.minimum(length, 8)])
    longer = np.flatnonzero(length > 8)
    for done in range(8, _LONG_WORD, 8):
        left = np.minimum(length[longer] - done, 8)
        hashes[longer] = _joined(hashes[longer], eights[start[longer] + done] & _FIRST_BYTES[left])
        longer = longer[length[longer] > done + 8]
    for one in np.flatnonzero(length > _LONG_WORD):
        hashes[one] = xxhash.xxh3_64_intdigest(joined[start[one] : end[one]])
    ends = np.cumsum([len(text) + 1 for text in encoded])
    return hashes, np.diff(np.searchsorted(start, ends), prepend=0)


def character_hashes(texts: Sequence[str]) -> tuple[U64, I64]:
    """As `word_hashes`, of code points."""
    points = np.frombuffer("".join(texts).encode("utf-32-le"), "<u4")
    return mix(points.astype(np.uint64)), np.array([len(text) for text in texts], np.int64)


class Ngrams:
    """Finds the n-grams that an option table asks for."""

    def __init__(self, options: Deduplicate) -> None:
        self._n = options.n
        self._words = options.unit == "words"
        self._roles = None if options.roles is None else frozenset(options.roles)
        self._short = options.short_texts

    def hashes(self, conversations: Sequence[Conversation]) -> tuple[U64, I64]:
        """The hashes of all n-grams, [m], and which of the conversations each is of, [m], ascending.

        An n-gram that a conversation has twice may be there twice.
        """
        texts = [self._texts(conversation) for conversation in conversations]
        of = np.repeat(np.arange(len(texts)), [len(turns) for turns in texts])
        hashes, numbers = self._windows([*chain.from_iterable(texts)], of)
        if self._short == "keep":
            return hashes, numbers
        whole = [self._whole_hashes(turns) for turns in texts]
        numbers = np.concatenate([numbers, np.repeat(np.arange(len(texts)), [len(found) for found in whole])])
        order = np.argsort(numbers, kind="stable")
        return np.concatenate([hashes, np.array([*chain.from_iterable(whole)], np.uint64)])[order], numbers[order]

    def text_of(self, conversation: Conversation, wanted: int) -> str | None:
        """The text of the n-gram with a hash, or of the whole short text; None where it is not in a conversation."""
        texts = self._texts(conversation)
        for text in texts:
            places = np.flatnonzero(self._windows([text], np.zeros(1, np.int64))[0] == np.uint64(wanted))
            if len(places):
                return self._text(self._units(text)[places[0] : places[0] + self._n])
        if self._short == "turns":
            return next((self._text(self._units(text)) for text in texts if wanted in self._whole_hashes([text])), None)
        if self._short == "samples" and wanted in self._whole_hashes(texts):
            return "\n".join(self._text(self._units(text)) for text in texts)
        return None

    def _texts(self, conversation: Conversation) -> list[str]:
        """The texts of the turns that count."""
        return [message.content for message in conversation.messages
                if self._roles is None or message.role in self._roles]

    def _windows(self, texts: list[str], of: I64) -> tuple[U64, I64]:
        """Hashes of the windows within each text, and the number ``of`` its text."""
        elements, lengths = (word_hashes if self._words else character_hashes)(texts)
        ends = np.repeat(np.cumsum(lengths), lengths)
        within = np.flatnonzero(np.arange(self._n, len(ends) + 1) <= ends[: max(0, len(ends) - self._n + 1)])
        return window_hashes(elements, self._n)[within], np.repeat(of, np.maximum(lengths - self._n + 1, 0))

    def _units(self, text: str) -> Sequence[str]:
        return text.split() if self._words else text

    def _text(self, units: Sequence[str]) -> str:
        return " ".join(units) if self._words else "".join(units)

    def _whole_hashes(self, texts: list[str]) -> list[int]:
        """Those of the short texts of a conversation, as ``short_texts`` says."""
        turns = [units for text in texts if (units := self._units(text))]
        if self._short == "turns":
            return [xxhash.xxh3_64_intdigest(self._text(turn).encode(), _WHOLE_TURN)
                    for turn in turns if len(turn) < self._n]
        if not turns or any(len(turn) >= self._n for turn in turns):
            return []
        return [xxhash.xxh3_64_intdigest(canonical_json([*map(self._text, turns)]), _WHOLE_SAMPLE)]
