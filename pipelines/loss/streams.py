"""What the language model reads when an SAE is judged by it: held-out conversations, each on its own or in blocks.

- ``conversations``: each conversation is a sequence; nothing sees another conversation (FAST, arXiv 2506.07691).
- ``blocks``: the same conversations one after the other, cut into blocks, with attention across them, as
  `harvest.order` packs them.

One of the two is how the cache was harvested, and its activations are the cache's rows; those of the other are computed
by the model's first layers. The blocks of a cache of conversations are 2,048 tokens long, with the tokenizer's own BOS
between them; those of a cache of blocks are its own.

A token is predicted by the one before it in its sequence, if both are of the same conversation. What an order has put
before a conversation is a token of it; the BOS at the start of a block that cuts a conversation is none of it where
conversations are read on their own.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from harvest.config import HarvestConfig
from harvest.job import find_order
from harvest.order import Order, Walk
from harvest.template import ChatTokenizer
from shared.errors import DataError, RecipeError
from shared.format.tokens import Role, TokenClass, TokenType
from shared.reading.cache import Cache
from train.evaluation.metrics import Bools, Ints

STREAMS = ("conversations", "blocks")

_OWN = {"fast": "conversations", "block": "blocks"}
"""The stream that a cache of this order holds the activations of; one of "block-masked" holds neither's."""

_NOT_A_ROW = -1


@dataclass(frozen=True)
class Stream:
    """Sequences of tokens, one after the other; N tokens, S sequences."""

    name: str
    token_id: Ints
    """[N]"""
    row: Ints
    """[N]: each token's row of the cache; -1 for one that is not in it."""
    conversation: Ints
    """[N]: each token's conversation, numbered as in the cache."""
    assistant: Bools
    """[N]: whether it is an assistant's word, or ends an assistant's turn."""
    offset: Ints
    """[S + 1]: where each sequence begins, and the end."""
    cached: bool
    """Whether the cache's rows are the activations of these sequences."""

    def __len__(self) -> int:
        return len(self.token_id)

    @property
    def conversations(self) -> Ints:
        """The numbers of the conversations that are in it, ascending."""
        return np.unique(self.conversation)

    @property
    def first(self) -> Bools:
        """[N]: whether a token is at position 0 of its sequence."""
        first: Bools = np.zeros(len(self), dtype=bool)
        first[self.offset[:-1]] = True
        return first

    @property
    def predicts(self) -> Bools:
        """[N]: whether the next token is predicted from this one."""
        predicts: Bools = np.append(self.conversation[1:] == self.conversation[:-1], False)
        predicts[self.offset[1:] - 1] = False
        return predicts


def parse_streams(words: str) -> tuple[str, ...]:
    """Names of streams, with commas or spaces between them, in the order of `STREAMS`.

    Raises:
        RecipeError: a name is not known, or there is none.
    """
    names = words.replace(",", " ").split()
    if not names or {*names} - {*STREAMS}:
        raise RecipeError(f"--streams is {words!r}: expected some of {', '.join(STREAMS)}. "
                          'For example: --streams "conversations blocks"')
    return tuple(name for name in STREAMS if name in names)


def read_stream(cache: Cache, layer: int, name: str, num_tokens: int, tokenizer: Callable[[], ChatTokenizer]) -> Stream:
    """The first held-out conversations, or blocks, whose activations are all there: whole ones, until they have
    ``num_tokens`` tokens.

    Args:
        tokenizer: the model's; asked only where blocks are made that the cache does not have.

    Raises:
        DataError: there are none.
    """
    kind = cache.identity["order"]["kind"]
    own = _OWN.get(kind) == name
    offset = cache.sequence_offset if own else cache.conversation_offset
    numbers = _whole(cache, layer, offset, num_tokens)
    if own:
        found = [np.arange(offset[number], offset[number + 1]) for number in numbers]
    else:
        found = [_rows_of(cache, number) for number in numbers]
    if not found:
        raise DataError(f"{cache.path} has no whole {'block' if own and kind == 'block' else 'conversation'} among its "
                        f"held-out rows of layer {layer}, so there is nothing to predict. Harvest it further: make "
                        "harvest")
    if name == "blocks" and not own:
        config = HarvestConfig.model_validate({"model": cache.identity["model"]["name"], "order": "block"})
        return _pack(cache, found, _planned_order(cache) or find_order(config, tokenizer(), lambda: False))
    return _stream(cache, name, np.concatenate(found), np.cumsum([0, *map(len, found)]), own)


def _whole(cache: Cache, layer: int, offset: Ints, num_tokens: int) -> list[int]:
    """The first runs of rows between ``offset`` that are held out and finite as a whole, up to ``num_tokens`` rows."""
    there = np.zeros(cache.num_rows + 1, np.int64)
    there[cache.rows(layer=layer, split="held_out") + 1] = 1
    there = there.cumsum()
    whole = np.flatnonzero((there[offset[1:]] - there[offset[:-1]] == np.diff(offset)) & (np.diff(offset) > 0))
    ends = np.diff(offset)[whole].cumsum()
    return [int(number) for number in whole[: int(np.searchsorted(ends, num_tokens)) + 1]]


def _rows_of(cache: Cache, conversation: int) -> Ints:
    """The rows of a conversation without the BOS at the start of blocks that cut it."""
    start, stop = cache.conversation_offset[conversation : conversation + 2]
    rows: Ints = np.arange(start, stop)
    if not cache.identity["order"]["bos"]:
        return rows
    inserted = (cache.position(rows) == 0) & ((cache.token_type[rows] & TokenType.BOS) != 0) & (rows > start)
    kept: Ints = rows[~inserted]
    return kept


def _planned_order(cache: Cache) -> Order | None:
    """How a cache of masked blocks would be packed without the mask; None for a cache of conversations."""
    planned = cache.identity["order"]
    if planned["kind"] == "fast":
        return None
    # Whatever it put between conversations is among their tokens.
    return Order("block", int(planned["length"]))


def _stream(cache: Cache, name: str, rows: Ints, offset: Ints, cached: bool) -> Stream:
    return Stream(name, cache.token_id[rows].astype(np.int64), rows, cache.conversation(rows),
                  _assistant(cache, rows), offset, cached)


def _assistant(cache: Cache, rows: Ints) -> Bools:
    """Whether tokens are an assistant's words, or end its turns."""
    said = (cache.token_type[rows] & TokenType.CONTENT) != 0
    assistant: Bools = (cache.role[rows] == Role.ASSISTANT) & (said | (cache.token_class[rows] == TokenClass.TURN_END))
    return assistant


def _pack(cache: Cache, conversations: list[Ints], order: Order) -> Stream:
    """Conversations, given by their rows, one after the other in blocks."""
    walk, rows, ids, numbers, begins = Walk(order), [], [], [], []
    num_tokens = 0
    for found in conversations:
        token_id = cache.token_id[found].astype(np.int64)
        number = cache.conversation(found[:1])
        for segment in walk.segments(len(found), int(token_id[0])):
            if segment.begins:
                begins.append(num_tokens)
            if segment.prefix is not None:
                rows.append(np.array([_NOT_A_ROW]))
                ids.append(np.array([segment.prefix]))
            rows.append(found[segment.start : segment.stop])
            ids.append(token_id[segment.start : segment.stop])
            numbers.append(np.repeat(number, len(segment)))
            num_tokens += len(segment)
    row = np.concatenate(rows)
    return Stream("blocks", np.concatenate(ids), row, np.concatenate(numbers),
                  (row != _NOT_A_ROW) & _assistant(cache, row), np.array([*begins, num_tokens]), cached=False)
