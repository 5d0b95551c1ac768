"""The rows of a batch are the same tokens in every cache that holds them, whatever the order of the cache."""

import numpy as np
import pytest

from shared.format.tokens import TokenClass, TokenType
from tests import tiny
from train.evaluation.files import conversation_keys
from train.evaluation.gsnr_rows import ordered_rows, shared_conversations
from train.policy import TokenPolicy, median_norm


@pytest.fixture(scope="module")
def caches(tmp_path_factory, llama):
    """The same chats one by one and in blocks; fewer of them; and plain text."""
    folder = tmp_path_factory.mktemp("streams")
    chats = tiny.write_jsonl(folder / "chats.jsonl", tiny.chats(80, seed=4))
    texts = folder / "texts.txt"
    texts.write_text(" ".join(tiny.WORDS * 60))
    few = tiny.write_jsonl(folder / "few.jsonl", tiny.chats(80, seed=4)[:50])
    return {name: tiny.make_cache(folder / name, llama, data, num_tokens=100_000, order=order, block_length=64)
            for name, data, order in (("fast", chats, "fast"), ("block", chats, "block"), ("few", few, "fast"),
                                      ("text", texts, "block"))}


def ordered(cache, keys, subset="all", seed=0):
    return ordered_rows(cache, 2, "train", keys, subset, seed, TokenPolicy(), median_norm(cache, 2))


def is_bos(cache, rows):
    return (cache.token_type[rows] & TokenType.BOS) != 0


def test_blocks_and_conversations_give_the_same_tokens_in_the_same_order(caches):
    fast, block = caches["fast"], caches["block"]
    keys, others = shared_conversations([fast, block], 2, "train")
    assert np.array_equal(keys, others)
    one, other = ordered(fast, keys), ordered(block, keys)
    for cache, rows in ((fast, one), (block, other)):
        assert len(np.unique(rows)) == len(rows) == len(cache.rows(layer=2, split="train"))
    # What blocks begin with is theirs alone; all other tokens are the same.
    one, other = one[~is_bos(fast, one)], other[~is_bos(block, other)]
    assert len(one) > 1000
    assert np.array_equal(fast.token_id[one], block.token_id[other])
    for rows, cache in ((one, fast), (other, block)):
        assert len(np.unique(cache.conversation(rows[:64]))) > 20  # and a batch has rows of many conversations
    assert np.array_equal(conversation_keys(fast)[fast.conversation(one)],
                          conversation_keys(block)[block.conversation(other)])
    context = np.abs(fast.layer(2)[one].astype(np.float32) - block.layer(2)[other].astype(np.float32)).max(1)
    assert (context > 0).mean() > 0.5  # each with its own activations


def test_another_seed_is_another_order_and_the_same_seed_the_same(caches):
    keys, = shared_conversations([caches["fast"]], 2, "train")
    first, again, other = (ordered(caches["fast"], keys, seed=seed) for seed in (0, 0, 1))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    assert np.array_equal(np.sort(first), np.sort(other))


def test_only_conversations_that_all_have_are_taken_and_text_keeps_its_own(caches):
    fast, few, text = caches["fast"], caches["few"], caches["text"]
    own = [shared_conversations([cache], 2, "train")[0] for cache in (fast, few, text)]
    assert 0 < len(own[1]) < len(own[0])
    assert set(own[1].tolist()) < set(own[0].tolist())
    found = shared_conversations([fast, few, text], 2, "train")
    assert [one.tolist() for one in found] == [own[1].tolist(), own[1].tolist(), own[2].tolist()]


def test_subsets_leave_out_position_0_and_what_the_policy_drops(caches):
    cache = caches["fast"]
    keys, = shared_conversations([cache], 2, "train")
    everything = ordered(cache, keys)
    without = ordered(cache, keys, "all_without_first")
    first = cache.token_class == TokenClass.FIRST
    assert first[everything].sum() == len(keys)
    assert np.array_equal(without, everything[~first[everything]])
    policy = TokenPolicy(keep_classes=("assistant",))
    kept = ordered_rows(cache, 2, "train", keys, "policy", 0, policy, median_norm(cache, 2))
    assert set(cache.token_class[kept].tolist()) == {TokenClass.ASSISTANT}
