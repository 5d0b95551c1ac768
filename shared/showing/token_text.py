"""Tokens as pieces of text that can be shown.

A byte-level tokenizer cuts some characters into several tokens, none of which is text by itself: such
neighbours make one piece. White space that would not be seen gets a sign.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

Decode = Callable[[Sequence[int]], str]
"""Token ids to text, control tokens included: `shared.reading.vocabulary.Vocabulary.decode`, or a tokenizer's."""

_JOINERS = "\N{ZERO WIDTH JOINER}\N{ZERO WIDTH NON-JOINER}"
"""Not printable by Python's rule, and yet part of words and emoji."""
_NO_WIDTH = _JOINERS + "".join(chr(code) for code in range(0xFE00, 0xFE10))
"""These and the variation selectors are seen in what stands around them only."""
_BROKEN = "\N{REPLACEMENT CHARACTER}"
_LONGEST_CHARACTER = 12
"""Tokens that may make one character; an emoji of several code points has as many bytes."""


@dataclass(frozen=True)
class Piece:
    """Some tokens that are shown together, nearly always one."""

    text: str
    start: int
    stop: int
    """Which of the ids it stands for: ``ids[start:stop]``."""


def pieces(ids: Sequence[int], decode: Decode) -> list[Piece]:
    """The text of consecutive tokens of one conversation, piece by piece; together they cover all of them."""
    ids = [int(number) for number in ids]
    lead = decode(ids[:1])

    def text_of(start: int, stop: int) -> str:
        """Behind the first token: SentencePiece's decoders take away a space that a text begins with."""
        joined = decode([ids[0], *ids[start:stop]]) if start and _BROKEN not in lead else ""
        return joined.removeprefix(lead) if joined.startswith(lead) and joined else decode(ids[start:stop])

    alone = [text_of(number, number + 1) for number in range(len(ids))]
    found: list[Piece] = []
    start = 0
    while start < len(ids):
        stop, text = start + 1, alone[start]
        while _BROKEN in text and stop < min(len(ids), start + _LONGEST_CHARACTER) and _BROKEN in alone[stop]:
            stop += 1
            text = text_of(start, stop)
        if _BROKEN in text:  # no character of the text after all: show each token for itself
            stop, text = start + 1, alone[start]
        found.append(Piece(text, start, stop))
        start = stop
    return found


def visible(text: str, line_breaks: bool = False) -> str:
    """Text with signs for what would not be seen: newlines, tabs, other control characters.

    What it returns can be sent to a terminal: no escape sequence and no change of writing direction is left.

    Args:
        line_breaks: keep a newline behind its sign.
    """
    out = []
    for char in text:
        if char == "\n":
            out.append("↵\n" if line_breaks else "↵")
        elif char == "\t":
            out.append("⇥")
        elif not char.isprintable() and char not in _JOINERS:
            out.append(_number(char))
        else:
            out.append(char)
    return "".join(out)


def visible_alone(text: str) -> str:
    """Text of a token in a terminal, where letters of neighbours in other colours are not joined to one sign.

    A token that is nothing but joiners gets a sign too: it would be unseen, and some terminals draw what follows it
    in the wrong place or not at all.
    """
    return text if text.strip(_NO_WIDTH) else "".join(map(_number, text))


def _number(char: str) -> str:
    return f"\\x{ord(char):02x}" if ord(char) < 256 else f"\\u{ord(char):04x}"
