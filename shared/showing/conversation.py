"""One conversation, turn by turn, each token with its class: what pages and terminals show in colour."""

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from shared.format.tokens import Role, TokenClass, TokenType, enum_name
from shared.showing.looks import LOOKS
from shared.showing.token_text import Decode, pieces, visible

_WITH_LINES = (TokenClass.DEFAULT_SYSTEM, TokenClass.TEMPLATE_OTHER, TokenClass.SYSTEM, TokenClass.USER,
               TokenClass.ASSISTANT, TokenClass.OTHER_ROLE)
"""Classes whose newlines are followed by a new line where they are shown."""


class TokenRows(Protocol):
    """Consecutive tokens of one conversation, as a template encodes them or a cache keeps them."""

    @property
    def token_id(self) -> npt.NDArray[Any]:
        """Token ids ``[num_tokens]``."""

    @property
    def token_class(self) -> npt.NDArray[Any]:
        """`TokenClass` of each ``[num_tokens]``."""

    @property
    def token_type(self) -> npt.NDArray[Any]:
        """`TokenType` bits of each ``[num_tokens]``."""

    @property
    def role(self) -> npt.NDArray[Any]:
        """`Role` of each ``[num_tokens]``."""

    @property
    def turn(self) -> npt.NDArray[Any]:
        """Number of its turn ``[num_tokens]``."""


@dataclass(frozen=True)
class ShownToken:
    """A token, or a few that make one character."""

    text: str
    token_class: TokenClass
    title: str
    """What stands in its tooltip."""

    @property
    def class_name(self) -> str:
        """The class as it is typed."""
        return enum_name(self.token_class)


@dataclass(frozen=True)
class ShownTurn:
    """A turn with its template tokens."""

    role: str
    tokens: list[ShownToken]


@dataclass(frozen=True)
class LegendEntry:
    """A class that occurs in the conversation."""

    class_name: str
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
    """In the order of the classes."""


def show_conversation(tokens: TokenRows, decode: Decode, number: int, longest: int) -> ShownConversation:
    """A conversation's turns and the legend of its classes; what is over ``longest`` tokens is left out."""
    num_shown = min(longest, len(tokens.token_id))
    shown = [_show(tokens, piece.start, piece.stop, piece.text)
             for piece in pieces(tokens.token_id[:num_shown].tolist(), decode)]
    turns: list[ShownTurn] = []
    last_turn = None
    for start, token in shown:
        if tokens.turn[start] != last_turn:
            last_turn = tokens.turn[start]
            last = int(np.flatnonzero(tokens.turn[:num_shown] == last_turn)[-1])
            turns.append(ShownTurn(enum_name(Role(tokens.role[last])), []))
        turns[-1].tokens.append(token)
    classes, counts = np.unique(tokens.token_class[:num_shown], return_counts=True)
    legend = [LegendEntry(enum_name(TokenClass(kind)), LOOKS[TokenClass(kind)].meaning, int(count))
              for kind, count in zip(classes, counts, strict=True)]
    return ShownConversation(number, len(tokens.token_id), num_shown, turns, legend)


def _show(tokens: TokenRows, start: int, stop: int, text: str) -> tuple[int, ShownToken]:
    kind = TokenClass(tokens.token_class[start])
    seen = visible(text, line_breaks=kind in _WITH_LINES)
    if kind == TokenClass.TEMPLATE_SPACE:
        seen = seen.replace(" ", "␣")
    ids = " ".join(map(str, tokens.token_id[start:stop]))
    bits = " ".join(str(bit.name) for bit in TokenType if tokens.token_type[start] & bit)
    title = (f"{enum_name(kind)}; id {ids}; position {start}; turn {tokens.turn[start]}, "
             f"{enum_name(Role(tokens.role[start]))}; {bits}")
    return start, ShownToken(seen, kind, title)
