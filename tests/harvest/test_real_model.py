"""The embedded model itself: a few thousand tokens of real chats through SmolLM2-135M-Instruct."""

from itertools import islice, pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from harvest import embedded
from harvest.conversation import Conversation
from harvest.forward import Forward
from harvest.model import find_model, load_model
from harvest.units import Piece
from shared.format.tokens import TokenClass
from tests import tiny

pytestmark = pytest.mark.real_model

ALIAS = "smollm2-135m-instruct"
LAYERS = [2, 9]


@pytest.fixture(scope="module")
def source():
    return find_model(ALIAS)


@pytest.fixture(scope="module")
def real_cache(tmp_path_factory):
    """Thirty short real chats through the real model."""
    short = (chat.as_dicts() for chat in embedded.read_chats() if sum(len(m.content) for m in chat.messages) < 400)
    data = tiny.write_jsonl(tmp_path_factory.mktemp("real") / "chats.jsonl", islice(short, 30))
    path = tmp_path_factory.mktemp("real") / "cache"
    cache = tiny.make_cache(path, Path(ALIAS), data, layers=LAYERS, num_tokens=100_000, batch_tokens=512)
    assert len(cache.rows(layer=LAYERS[0])) == cache.num_rows > 3000
    return cache


def test_changing_one_conversation_leaves_every_other_bit_identical(source):
    device = torch.device("cpu")
    forward = Forward(load_model(source, LAYERS[-1], "float32", "sdpa", device), LAYERS, device)
    lengths = [32, 31, 14, 5]
    edges = np.cumsum([0, *lengths])
    pieces = [Piece(int(a), int(a), int(b)) for a, b in pairwise(edges)]
    ids = np.zeros((4, 32), np.int64)
    rng = np.random.default_rng(0)
    for line, length in zip(ids, lengths, strict=True):
        line[:length] = rng.integers(3, 49_000, length)
    [before] = forward.run(pieces, ids)
    for changed, piece in enumerate(pieces):
        mutated = ids.copy()
        mutated[changed, : len(piece)] = (mutated[changed, : len(piece)] + 1) % 49_000
        [after] = forward.run(pieces, mutated)
        own = np.zeros(edges[-1], bool)
        own[piece.start : piece.stop] = True
        for layer in LAYERS:
            same = (before.rows[layer].view(torch.uint16) == after.rows[layer].view(torch.uint16)).all(dim=1).numpy()
            assert same[~own].all()
            assert not same[own].any()


def test_rows_equal_a_plain_forward_of_each_conversation_alone(source, real_cache):
    plain = AutoModelForCausalLM.from_pretrained(source.folder, dtype=torch.float32).eval()
    bf16_step = 2.0**-8  # relative, of rounding to nearest; two values either side of a tie differ by twice that
    for start, stop in islice(zip(real_cache.conversation_offset, real_cache.conversation_offset[1:], strict=False), 4):
        ids = torch.from_numpy(real_cache.token_id[None, start:stop].astype(np.int64))
        with torch.inference_mode():
            states = plain(input_ids=ids, output_hidden_states=True).hidden_states
        for layer in LAYERS:
            wanted = states[layer + 1][0].numpy()
            rows = real_cache.layer(layer)[np.arange(start, stop)].astype(np.float32)
            bound = np.maximum(2 * bf16_step * np.abs(wanted), 1e-5 * np.linalg.norm(wanted, axis=1, keepdims=True))
            assert (np.abs(rows - wanted) <= bound).all()


def test_ids_are_those_of_apply_chat_template(source, real_cache):
    tokenizer = AutoTokenizer.from_pretrained(source.folder)
    by_key = {}
    for chat in embedded.read_chats():
        by_key[chat.key] = chat
    keys = real_cache.array("conversations/key").read()
    for number, key in enumerate(keys.tolist()):
        start, stop = real_cache.conversation_offset[number : number + 2]
        chat: Conversation = by_key[key]
        wanted = tokenizer.apply_chat_template(chat.as_dicts(), tokenize=True, return_dict=False)
        assert real_cache.token_id[start:stop].tolist() == wanted


def test_assistant_is_two_tokens_and_both_are_role_names(real_cache):
    first = real_cache.tokens(np.arange(*real_cache.conversation_offset[:2]))
    role_names = "".join(np.array(first.text)[first.token_class == TokenClass.ROLE_NAME])
    assert role_names.startswith("systemuserassistant")
    assert first.text[0] == "<|im_start|>"
    assert "".join(np.array(first.text)[first.token_class == TokenClass.DEFAULT_SYSTEM]).startswith("You are a helpful")


def test_the_embedded_chats_are_alternating_and_known_by_their_file():
    chats = list(islice(embedded.read_chats(), 200))
    for chat in chats:
        assert len(chat.messages) >= embedded.MIN_TURNS
        assert chat.messages[0].role == "user"
    assert len(embedded.chat_fingerprint()) == 64
