"""One conversation, turn by turn, each token with its class: what a report shows in colour."""

from dataclasses import dataclass

import numpy as np

from pipelines.token_text import pieces, visible
from shared.errors import DataError
from shared.format.tokens import Role, TokenClass, enum_name
from shared.reading.cache import Cache
from shared.reading.layer_rows import Rows

CLASS_MEANINGS: dict[TokenClass, str] = {
    TokenClass.FIRST: "position 0 of the conversation, whatever stands there",
    TokenClass.BOS: "beginning-of-sequence token of the template",
    TokenClass.TURN_START: "control token that opens a turn",
    TokenClass.ROLE_NAME: "the name of who speaks, in a turn's header",
    TokenClass.HEADER_END: "control token that closes a turn's header",
    TokenClass.TURN_END: "control token that closes a turn",
    TokenClass.DEFAULT_SYSTEM: "the template's own system prompt, there because the chat has none",
    TokenClass.TEMPLATE_SPACE: "white space of the template",
    TokenClass.TEMPLATE_OTHER: "other text of the template",
    TokenClass.ESCAPED: "text of a message that is spelled like a control token, and is none",
    TokenClass.SYSTEM: "text of a system message",
    TokenClass.USER: "text of a user's message",
    TokenClass.ASSISTANT: "text of an assistant's message",
    TokenClass.OTHER_ROLE: "text of a message of another role",
}
"""What each class is, in a few plain words."""

SHORTEST, LONGEST = 120, 420
"""Tokens of a conversation that fits a page; a longer one is cut."""


@dataclass(frozen=True)
class ShownToken:
    """A token, or a few that make one character."""

    text: str
    token_class: str
    title: str
    """What stands in its tooltip."""


@dataclass(frozen=True)
class ShownTurn:
    """A turn with its template tokens."""

    role: str
    tokens: list[ShownToken]


@dataclass(frozen=True)
class LegendEntry:
    """A class that occurs in the conversation."""

    token_class: str
    meaning: str
    num_tokens: int


@dataclass(frozen=True)
class ShownConversation:
    """A conversation ready to be shown."""

    number: int
    num_tokens: int
    """Of the whole conversation."""
    num_shown: int
    turns: list[ShownTurn]
    legend: list[LegendEntry]


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
    rows = np.arange(start, min(stop, start + LONGEST), dtype=np.int64)
    turns: list[ShownTurn] = []
    of_turn = cache.turn[rows]
    for turn in np.unique(of_turn):
        here = rows[of_turn == turn]
        turns.append(ShownTurn(enum_name(Role(cache.role[here[-1]])), _tokens(cache, here)))
    classes, counts = np.unique(cache.token_class[rows], return_counts=True)
    legend = [LegendEntry(enum_name(TokenClass(kind)), CLASS_MEANINGS[TokenClass(kind)], int(count))
              for kind, count in zip(classes, counts, strict=True)]
    return ShownConversation(number, stop - start, len(rows), turns, legend)


def _tokens(cache: Cache, rows: Rows) -> list[ShownToken]:
    shown = []
    positions = cache.position(rows)
    for piece in pieces(cache, rows):
        kind = TokenClass(cache.token_class[rows[piece.start]])
        ids = " ".join(str(number) for number in cache.token_id[rows[piece.start:piece.stop]])
        in_message = kind in (TokenClass.SYSTEM, TokenClass.USER, TokenClass.ASSISTANT, TokenClass.OTHER_ROLE)
        shown.append(ShownToken(
            text=visible(piece.text, line_breaks=in_message),
            token_class=enum_name(kind),
            title=f"{enum_name(kind)}; position {positions[piece.start]}; id {ids}",
        ))
    return shown
