"""What a sample of conversations is made of: lengths, turns, roles, classes, scripts.

Conversations are added one after the other and not kept; a sample of any size takes the memory of its lengths.
"""

import unicodedata
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Generic, TypeVar

import numpy as np

from harvest.template import Encoded
from shared.format.tokens import Role, TokenClass, TokenType
from shared.showing.token_text import Decode

_SCRIPTS = {"CJK": "Han", **dict.fromkeys(("HIRAGANA", "KATAKANA", "KATAKANA-HIRAGANA", "HENTAIGANA"), "Kana")}
"""First words of Unicode names whose script has another name; any other word is the script's own name."""
_NO_SCRIPTS = {"MODIFIER", "SPACE", "COMBINING", "VERTICAL", "TURNED", "CARON", "OTHER"}

T = TypeVar("T")


@dataclass
class Statistics:
    """Figures of the conversations added so far. Tokens are those the model will see: after the cut."""

    num_rows: int = 0
    """Rows of the sample, skipped ones included."""
    skipped: Counter[str] = field(default_factory=Counter)
    """Rows that are no conversation we can harvest, by reason."""
    lengths: list[int] = field(default_factory=list)
    """Tokens of each conversation: before the cut, where that is known."""
    turns: list[int] = field(default_factory=list)
    """Turns of each conversation that hold text of its own."""
    num_tokens: int = 0
    num_truncated: int = 0
    """Conversations cut at the longest length."""
    by_class: Counter[TokenClass] = field(default_factory=Counter)
    by_role: Counter[Role] = field(default_factory=Counter)
    by_source: Counter[int] = field(default_factory=Counter)
    """Tokens, by number of the data set."""
    scripts: Counter[str] = field(default_factory=Counter)
    """Letters of messages, by script."""
    num_system: int = 0
    """Conversations with a system prompt of their own."""
    num_default_system: int = 0
    """Conversations that got the template's system prompt."""
    num_escaped: int = 0
    """Conversations with text that is spelled like a control token."""
    num_bos: int = 0
    """Conversations that begin with a beginning-of-sequence token which is no turn's start."""
    first_ids: Counter[int] = field(default_factory=Counter)
    """Ids that conversations begin with."""
    default_system: str = ""
    """The template's own system prompt, once it was seen."""

    @property
    def num_conversations(self) -> int:
        """Conversations added."""
        return len(self.lengths)

    def add(self, encoded: Encoded, decode: Decode, length: int, source: int = 0, truncated: bool = False) -> None:
        """Count one conversation.

        Args:
            encoded: as the model will see it, at least one token.
            length: tokens before the cut.
            source: number of its data set.
        """
        bits = encoded.token_type
        content = (bits & TokenType.CONTENT) != 0
        default = (bits & TokenType.DEFAULT_SYSTEM) != 0
        self.num_rows += 1
        self.lengths.append(length)
        self.turns.append(len(np.unique(encoded.turn[content])))
        self.num_tokens += len(encoded)
        self.num_truncated += truncated
        self.by_class.update({TokenClass(kind): int(count) for kind, count in enumerate(
            np.bincount(encoded.token_class)) if count})
        self.by_role.update({Role(role): int(count) for role, count in enumerate(
            np.bincount(encoded.role)) if count})
        self.by_source[source] += len(encoded)
        self.scripts.update(scripts(decode(encoded.token_id[content].tolist())))
        self.num_system += bool((content & (encoded.role == Role.SYSTEM)).any())
        self.num_default_system += bool(default.any())
        self.num_escaped += bool(((bits & TokenType.ESCAPED) != 0).any())
        self.num_bos += bool(bits[0] & TokenType.BOS)
        self.first_ids[int(encoded.token_id[0])] += 1
        if default.any() and not self.default_system:
            self.default_system = decode(encoded.token_id[default].tolist())

    def skip(self, reason: str) -> None:
        """Count a row that is no conversation."""
        self.num_rows += 1
        self.skipped[reason] += 1


def scripts(text: str) -> Counter[str]:
    """Letters of a text by script: Latin, Han, Cyrillic, Arabic, ... What is no letter is not counted.

    The script is the first word of a letter's Unicode name, after NFKC, so that full-width Latin is Latin. Python
    has no table of Unicode's Script property, which this equals for the scripts of living languages.
    """
    found: Counter[str] = Counter()
    for char, count in Counter(text).items():
        if char.isalpha():
            found[_script(char)] += count
    return found


@lru_cache(maxsize=65_536)
def _script(char: str) -> str:
    word = unicodedata.name(unicodedata.normalize("NFKC", char)[0], "OTHER").split()[0]
    return "Other" if word in _NO_SCRIPTS else _SCRIPTS.get(word, word.capitalize())


@dataclass(frozen=True)
class Bar:
    """One line of a distribution."""

    label: str
    count: int
    share: float
    """Of all."""


def bars(counts: Iterable[tuple[str, int]]) -> list[Bar]:
    """Counts with their shares."""
    items = list(counts)
    total = sum(count for _, count in items) or 1
    return [Bar(label, count, count / total) for label, count in items]


def histogram(values: list[int]) -> list[Bar]:
    """Positive whole numbers in bins whose bounds double, from the first that is not empty to the last."""
    if not values:
        return []
    of = np.floor(np.log2(np.maximum(values, 1))).astype(int)
    counts = np.bincount(of)
    names = [f"{2**power:,}" if power == 0 else f"{2**power:,} to {2 ** (power + 1) - 1:,}"
             for power in range(len(counts))]
    first = int(of.min())
    return bars(list(zip(names, counts.tolist(), strict=True))[first:])


def quantiles(values: list[int], shares: Iterable[float]) -> list[int]:
    """For each share, the smallest of the values that at least so many of them do not exceed.

    Raises:
        IndexError: there are no values.
    """
    return [int(value) for value in np.quantile(values, list(shares), method="inverted_cdf")]


class Evenly(Generic[T]):
    """Some of a stream's items, evenly spaced over all of it, in memory for twice as many.

    Keeps each item whose number is a multiple of a stride, which doubles when too many are kept.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._stride = 1
        self._seen = 0
        self._kept: list[T] = []

    def add(self, item: T) -> None:
        """Take in the next item."""
        if self._limit and self._seen % self._stride == 0:
            self._kept.append(item)
            if len(self._kept) > 2 * self._limit:
                self._kept = self._kept[::2]
                self._stride *= 2
        self._seen += 1

    def items(self) -> list[T]:
        """The chosen items in order: ``limit`` of them, or all where there are fewer."""
        count = min(self._limit, len(self._kept))
        return [self._kept[number * len(self._kept) // count] for number in range(count)]
