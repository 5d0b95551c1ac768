"""What goes through the model in one piece, in the three orders."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModel

from harvest.opening import open_plan
from harvest.order import TOKEN, Order, Walk, lay_out, rows_of
from shared.errors import IdentityError
from shared.format.tokens import TokenClass, TokenType
from shared.reading.cache import open_cache
from tests import tiny

BOS, EOS = ("bos", 7), ("eos", 8)
BLOCK = 256
masked_and_not = pytest.mark.parametrize("kind", ["block", "block-masked"])

orders = st.builds(
    Order,
    kind=st.sampled_from(["block", "block-masked"]),
    block_length=st.integers(2, 9),
    separator=st.sampled_from([None, BOS, EOS]),
    bos=st.sampled_from([None, BOS]),
)
lengths = st.lists(st.integers(1, 25), max_size=12)
first_ids = st.sampled_from([7, 8, 100])


def naive(order, conversations):
    """The stream row by row: (id, number of its conversation, begins a sequence)."""
    rows = []
    for number, ids in enumerate(conversations):
        for place, token in enumerate(ids):
            opens = len(rows) % order.block_length == 0
            if opens and order.bos and token != order.bos[1]:
                rows.append((order.bos[1], number, True))
                opens = False
            elif place == 0 and order.separator and token != order.separator[1] and not (opens and order.bos):
                rows.append((order.separator[1], number, opens or order.kind == "block-masked"))
                opens = len(rows) % order.block_length == 0
                if opens and order.bos and token != order.bos[1]:
                    rows.append((order.bos[1], number, True))
                    opens = False
                rows.append((token, number, opens))
                continue
            begins = opens or (order.kind == "block-masked" and place == 0 and rows[-1:] != [(BOS[1], number, True)])
            rows.append((token, number, begins))
    return rows


def stream(order, conversations):
    """The same from our walk."""
    walk, rows = Walk(order), []
    for number, ids in enumerate(conversations):
        tokens = np.zeros(len(ids), TOKEN)
        tokens["token_id"] = ids
        tokens["token_class"] = TokenClass.USER
        for piece in rows_of(walk.segments(len(ids), ids[0]), tokens):
            begins = [one["token_class"] == TokenClass.FIRST for one in piece]
            rows += [(int(row["token_id"]), number, bool(flag)) for row, flag in zip(piece, begins, strict=True)]
    return rows


@given(order=orders, parts=st.lists(st.tuples(st.integers(1, 25), first_ids), max_size=12))
def test_blocks_are_cuts_of_one_stream_with_a_token_before_what_it_belongs_to(order, parts):
    conversations = [[first, *range(1000, 999 + length)] for length, first in parts]
    assert stream(order, conversations) == naive(order, conversations)


@given(order=orders, train=lengths, held_out=lengths)
def test_the_layout_is_that_of_the_rows_and_starts_afresh_at_the_held_out_ones(order, train, held_out):
    layout = lay_out(order, *([(length, 100) for length in part] for part in (train, held_out)))
    row, sequences, conversations = 0, [], []
    for part in (train, held_out):
        number_before = -1
        for _, number, begins in stream(order, [[100] * length for length in part]):
            sequences += [row] * begins
            conversations += [row] * (number != number_before)
            number_before = number
            row += 1
    assert layout.sequence_offset.tolist() == [*sequences, row]
    assert layout.conversation_offset.tolist() == [*conversations, row]
    assert layout.num_train_rows == len(stream(order, [[100] * length for length in train]))
    if held_out:
        assert layout.num_train_rows in sequences
    assert (np.diff(layout.sequence_offset) <= order.block_length).all()


@pytest.fixture(scope="module")
def caches(llama, chat_file, tmp_path_factory):
    """The same chats in every order, layers 0 and 2 of the tiny Llama."""
    folder = tmp_path_factory.mktemp("orders")
    settings = {"block_length": BLOCK, "num_tokens": 10**6}
    made = {kind: tiny.make_cache(folder / kind, llama, chat_file, order=kind, **settings)
            for kind in ("fast", "block", "block-masked")}
    return {kind: open_cache(cache.path) for kind, cache in made.items()}


@masked_and_not
def test_every_order_holds_the_same_tokens_in_the_same_order(caches, kind):
    fast, block = caches["fast"], caches[kind]
    added = (block.token_type & TokenType.BOS) > 0
    was_there = (fast.token_type & TokenType.BOS) > 0
    assert block.token_id[~added].tolist() == fast.token_id[~was_there].tolist()
    assert (block.array("conversations/key").read() == fast.array("conversations/key").read()).all()
    content = (block.token_type & TokenType.CONTENT) > 0
    assert content.sum() == ((fast.token_type & TokenType.CONTENT) > 0).sum()


def test_blocks_have_their_length_but_for_the_last_of_each_side(caches):
    block = caches["block"]
    sequences, edge = block.sequence_offset, block.num_train_rows
    assert edge in sequences
    short = [int(start) for start, size in zip(sequences, np.diff(sequences), strict=False) if size != BLOCK]
    assert len(short) <= 2
    assert all(start + BLOCK > edge > start or start + BLOCK > block.num_rows for start in short)


@masked_and_not
def test_position_0_of_every_sequence_is_first_and_nothing_else_is(caches, kind):
    cache = caches[kind]
    first = np.flatnonzero(cache.token_class == TokenClass.FIRST)
    assert first.tolist() == cache.sequence_offset[:-1].tolist()
    assert np.flatnonzero(cache.token_type & TokenType.FIRST).tolist() == first.tolist()


def test_masked_rows_are_those_of_the_conversation_alone_where_it_was_not_cut(caches):
    """No conversation sees another: rows equal those of ``fast`` (design 4's tolerance, float32 compute)."""
    fast, masked = caches["fast"], caches["block-masked"]
    whole = 0
    for number in range(fast.plan.num_conversations):
        start, stop = fast.conversation_offset[number : number + 2]
        first, end = masked.conversation_offset[number : number + 2]
        if end - first != stop - start or (np.diff(masked.sequence(np.arange(first, end))) != 0).any():
            continue  # it was cut, or a block's BOS stands in it
        whole += 1
        for layer in (0, 2):
            one, other = (cache.layer(layer)[a:b].astype(np.float32)
                          for cache, a, b in ((fast, start, stop), (masked, first, end)))
            step = np.maximum(np.abs(one) * 2**-7, 1e-5 * np.linalg.norm(one, axis=1, keepdims=True))
            assert (np.abs(one - other) <= step).all()
    assert whole > 20


@torch.inference_mode()
def test_masked_rows_are_those_of_a_packed_block_with_a_block_diagonal_mask_and_new_positions(caches, llama):
    """What the name says, computed the way others do it: one block, a 4D mask, positions from 0 in each part."""
    cache = caches["block-masked"]
    model = AutoModel.from_pretrained(llama, dtype=torch.float32, attn_implementation="eager")
    kept = {}
    model.layers[2].register_forward_hook(
        lambda _, __, output: kept.update(x=output[0] if isinstance(output, tuple) else output)
    )
    for start in range(0, 4 * BLOCK, BLOCK):
        rows = np.arange(start, start + BLOCK)
        part = torch.from_numpy(cache.sequence(rows))
        allowed = (part[:, None] == part[None, :]) & torch.ones(BLOCK, BLOCK).tril().bool()
        mask = torch.where(allowed, 0.0, torch.finfo(torch.float32).min)[None, None]
        model(
            input_ids=torch.from_numpy(cache.token_id[rows].astype(np.int64))[None], attention_mask=mask,
            position_ids=torch.from_numpy(cache.position(rows))[None], use_cache=False,
        )
        plain, x = kept["x"].reshape(BLOCK, -1), torch.from_numpy(cache.layer(2)[rows].astype(np.float32))
        step = torch.maximum(plain.abs() * 2**-7, 1e-5 * plain.norm(dim=1, keepdim=True))
        assert ((plain - x).abs() <= step).all()


@torch.inference_mode()
def test_rows_of_a_block_are_those_of_the_whole_block_through_the_model(caches, llama):
    cache = caches["block"]
    model = AutoModel.from_pretrained(llama, dtype=torch.float32)
    kept = {}
    model.layers[2].register_forward_hook(
        lambda _, __, output: kept.update(x=output[0] if isinstance(output, tuple) else output)
    )
    for number in (0, 1, cache.plan.num_sequences - 1):
        start, stop = cache.sequence_offset[number : number + 2]
        model(input_ids=torch.from_numpy(cache.token_id[start:stop].astype(np.int64))[None], use_cache=False)
        plain, x = kept["x"].reshape(stop - start, -1), torch.from_numpy(cache.layer(2)[start:stop].astype(np.float32))
        step = torch.maximum(plain.abs() * 2**-7, 1e-5 * plain.norm(dim=1, keepdim=True))
        assert ((plain - x).abs() <= step).all()


def test_a_conversation_in_a_block_sees_the_one_before_it_and_masked_it_does_not(caches):
    """The leak that the orders separate is really there in one, and not in the other."""
    def differs(kind):
        fast, cache = caches["fast"], caches[kind]
        number = 1
        start, first = fast.conversation_offset[number], cache.conversation_offset[number]
        one, other = fast.layer(2)[start : start + 8], cache.layer(2)[first : first + 8]
        return np.abs(one.astype(np.float32) - other.astype(np.float32)).max()

    assert differs("block") > 100 * max(differs("block-masked"), 1e-6)


def test_what_decides_the_blocks_is_part_of_the_identity(llama, chat_file, tmp_path):
    settings = {"order": "block", "block_length": BLOCK}
    open_plan(tiny.make_job(llama, chat_file, **settings), tmp_path / "cache")
    open_plan(tiny.make_job(llama, chat_file, **settings), tmp_path / "cache")
    for change in ({"order": "fast"}, {"order": "block-masked"}, {"block_length": 32}, {"separator": "none"},
                   {"separator": "eos"}, {"block_bos": "none"}):
        with pytest.raises(IdentityError, match="order"):
            open_plan(tiny.make_job(llama, chat_file, **(settings | change)), tmp_path / "cache")


def test_where_the_template_brings_bos_none_is_added(llama, chat_file, tmp_path):
    open_plan(tiny.make_job(llama, chat_file, order="block", block_bos="none"), tmp_path / "plan")
    cache = open_cache(tmp_path / "plan")
    bos = tiny.make_tokenizer("llama3").bos_token_id
    assert (cache.token_id == bos).sum() == cache.plan.num_conversations  # one each, from the template
