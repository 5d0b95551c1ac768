"""The order of a plan: which rows go through the model in one piece.

- ``fast``: a conversation is a sequence (FAST, arXiv 2506.07691).
- ``block``: conversations one after the other, cut into blocks of a fixed length, with attention across them:
  the paper's block training, BT(P) on plain text and BT(F) on chats.
- ``block-masked``: the same cuts, but nothing attends to another conversation and positions start anew with each.
  That is what a causal model computes when each conversation's part of a block is run as a sequence of its own,
  so that is what it is here: no mask is needed, and what separates it from ``fast`` is the cutting alone.

A separator or BOS belongs to the conversation that it precedes. Blocks start afresh where the held-out
conversations begin; the last, short block is kept.
"""

from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from shared.format.tokens import TokenClass, TokenType

OrderKind = Literal["fast", "block", "block-masked"]

TOKEN = np.dtype([
    ("token_id", "<i4"), ("token_class", "u1"), ("token_type", "<u2"), ("role", "u1"), ("turn", "<u2")
])
"""A row of the plan, as it is kept until the plan is written."""

Tokens = npt.NDArray[np.void]


@dataclass(frozen=True)
class Order:
    """How conversations become sequences."""

    kind: OrderKind = "fast"
    block_length: int = 0
    """Rows of a block."""
    separator: tuple[str, int] | None = None
    """Name and id of the token before every conversation of a block: ("bos", 1)."""
    bos: tuple[str, int] | None = None
    """The token at the start of every block, in place of a separator there."""

    @property
    def identity(self) -> dict[str, Any]:
        """What of it goes into a cache's identity."""
        separator, bos = (token[0] if token else None for token in (self.separator, self.bos))
        length = {"length": self.block_length} if self.kind != "fast" else {}
        return {"kind": self.kind, **length, "separator": separator, "bos": bos}


@dataclass(frozen=True)
class Segment:
    """A piece of a conversation that lies in one sequence."""

    start: int
    stop: int
    """Tokens of the conversation."""
    prefix: int | None
    """Id of a separator or BOS that stands before them."""
    begins: bool
    """Whether it begins a sequence."""

    def __len__(self) -> int:
        return self.stop - self.start + (self.prefix is not None)


class Walk:
    """Cuts conversations into segments, one after the other; a new walk begins with a new sequence."""

    def __init__(self, order: Order) -> None:
        self._order = order
        self._left = 0
        """Rows that still fit into the open block."""

    def segments(self, length: int, first_id: int) -> list[Segment]:
        """The segments of the next conversation.

        Args:
            length: its tokens.
            first_id: the first of them. A token that is there already is not put before it again.
        """
        order = self._order
        if order.kind == "fast":
            return [Segment(0, length, None, True)]
        found: list[Segment] = []
        done = 0
        while done < length or not found:
            opens = self._left == 0
            self._left = self._left or order.block_length
            token = order.bos if opens and order.bos else None if found else order.separator
            is_there = token is not None and done == 0 and token[1] == first_id
            prefix = token[1] if token is not None and not is_there else None
            self._left -= prefix is not None
            stop = min(length, done + self._left)
            self._left -= stop - done
            found.append(Segment(done, stop, prefix, opens or (order.kind == "block-masked" and not found)))
            done = stop
        return found


@dataclass(frozen=True)
class Layout:
    """Where conversations and sequences of a plan begin; the last entry is the end."""

    conversation_offset: npt.NDArray[np.int64]
    sequence_offset: npt.NDArray[np.int64]
    num_train_rows: int


def lay_out(order: Order, train: Iterable[tuple[int, int]], held_out: Iterable[tuple[int, int]]) -> Layout:
    """The layout of conversations, given by length and first id."""
    conversations, sequences = array("q"), array("q")
    row = num_train_rows = 0
    for part in (train, held_out):
        num_train_rows, walk = row, Walk(order)
        for length, first_id in part:
            conversations.append(row)
            for segment in walk.segments(length, first_id):
                if segment.begins:
                    sequences.append(row)
                row += len(segment)
    conversations.append(row)
    sequences.append(row)
    return Layout(np.array(conversations, np.int64), np.array(sequences, np.int64), num_train_rows)


def rows_of(segments: list[Segment], tokens: Tokens) -> Iterator[Tokens]:
    """The rows of a conversation's segments, with separators, and position 0 of each sequence marked."""
    for segment in segments:
        rows = tokens[segment.start : segment.stop].copy()
        if segment.prefix is not None:
            before = tokens[min(segment.start, len(tokens) - 1)].copy()  # it frames the turn of what follows
            before["token_id"] = segment.prefix
            before["token_class"] = TokenClass.BOS
            before["token_type"] = TokenType.TEMPLATE | TokenType.SPECIAL | TokenType.BOS
            rows = np.concatenate([before[None], rows])
        if segment.begins:
            rows["token_class"][0] = TokenClass.FIRST
            rows["token_type"][0] |= TokenType.FIRST
        yield rows
