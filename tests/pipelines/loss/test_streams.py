"""What the model reads: the conversations of the cache, and the blocks that a harvest would make of them."""

import numpy as np
import pytest

from pipelines.loss.streams import parse_streams, read_stream
from shared.errors import DataError, RecipeError
from shared.format.tokens import Role, TokenClass
from shared.reading.cache import open_cache
from tests import tiny
from tests.pipelines.loss.conftest import LAYER, make_cache

ALL = 10**9


def tokenizer():
    return tiny.make_tokenizer("llama3")


def read(cache, name, num_tokens=ALL):
    return read_stream(cache, LAYER, name, num_tokens, tokenizer)


def test_conversations_are_the_held_out_rows_one_by_one(fast):
    stream = read(fast, "conversations")
    assert stream.cached
    assert np.array_equal(stream.row, np.arange(fast.num_train_rows, fast.num_rows))
    assert np.array_equal(stream.token_id, fast.token_id[stream.row])
    assert np.array_equal(stream.row[0] + stream.offset, fast.conversation_offset[-len(stream.offset):])


def test_whole_conversations_are_taken_in_order_until_there_are_enough_tokens(fast):
    lengths = np.diff(fast.conversation_offset)[fast.conversation(np.array([fast.num_train_rows]))[0]:]
    for asked, expected in ((1, 1), (lengths[0], 1), (lengths[0] + 1, 2), (lengths[:3].sum(), 3), (ALL, len(lengths))):
        assert np.array_equal(np.diff(read(fast, "conversations", int(asked)).offset), lengths[:expected])


def test_a_token_is_predicted_within_its_conversation_and_sequence_alone(fast, block):
    for cache in (fast, block):
        for name in ("conversations", "blocks"):
            stream = read(cache, name)
            expected = np.zeros(len(stream), bool)
            for start, stop in zip(stream.offset[:-1], stream.offset[1:], strict=True):
                for token in range(start, stop - 1):
                    expected[token] = stream.conversation[token] == stream.conversation[token + 1]
            assert np.array_equal(stream.predicts, expected)


def test_an_assistants_tokens_are_its_words_and_the_ends_of_its_turns(fast):
    stream = read(fast, "conversations")
    classes, roles = fast.token_class[stream.row], fast.role[stream.row]
    words = np.isin(classes, (TokenClass.ASSISTANT, TokenClass.ESCAPED, TokenClass.TURN_END))
    assert np.array_equal(stream.assistant, words & (roles == Role.ASSISTANT))
    assert 0 < stream.assistant.sum() < len(stream) / 2


def test_blocks_of_conversations_are_those_that_a_harvest_of_blocks_makes(tmp_path, fast, llama, chats):
    """With the tokenizer's BOS in its places: conversations of this family begin with it."""
    path = make_cache(tmp_path, llama, chats, order="block")
    harvested, made = read(open_cache(path), "blocks"), read(fast, "blocks")
    assert not made.cached
    assert harvested.cached
    assert len(made.offset) > 2
    for name in ("token_id", "offset", "assistant", "predicts"):
        assert np.array_equal(getattr(made, name), getattr(harvested, name)), name
    assert np.array_equal(made.conversation - made.conversation[0], harvested.conversation - harvested.conversation[0])


def test_conversations_of_a_cache_of_blocks_are_those_of_the_chats(fast, block):
    ours, theirs = read(block, "conversations"), read(fast, "conversations")
    assert not ours.cached
    for name in ("token_id", "offset", "assistant"):
        assert np.array_equal(getattr(ours, name), getattr(theirs, name)), name


def test_a_block_that_is_not_there_as_a_whole_is_left_out(block, monkeypatch):
    rows = block.rows
    monkeypatch.setattr(block, "rows", lambda **which: rows(**which)[1:])
    stream = read(block, "blocks")
    assert stream.row[0] == block.num_train_rows + 64


def test_a_cache_without_a_whole_conversation_says_so(fast, monkeypatch):
    monkeypatch.setattr(fast, "rows", lambda **which: np.arange(fast.num_train_rows, fast.num_train_rows + 3))
    with pytest.raises(DataError, match="has no whole conversation among its held-out rows of layer 2"):
        read(fast, "conversations")


@pytest.mark.parametrize("words", ["blocks,conversations", "conversations blocks", "blocks conversations blocks"])
def test_streams_are_named_with_commas_or_spaces(words):
    assert parse_streams(words) == ("conversations", "blocks")


@pytest.mark.parametrize("words", ["", "block", "conversations;blocks"])
def test_other_names_are_refused(words):
    with pytest.raises(RecipeError, match="expected some of conversations, blocks"):
        parse_streams(words)
