"""Plain text: for block training, through no chat template."""

import json

import numpy as np
import pytest

from harvest.conversation import Conversation, Skipped, parse_row
from harvest.opening import open_plan
from harvest.sources import EMBEDDED_TEXT, find_source
from harvest.template import ChatTemplate
from shared.errors import RecipeError
from shared.format.tokens import Role, TokenClass, TokenType
from shared.reading.cache import open_cache
from tests import tiny

TEXTS = ["Once upon a time there was a fox.", "  white space \n\n is kept ", "été 🙂 <|eot_id|> and <think>"]


@pytest.fixture(scope="module")
def text_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "texts.jsonl"
    path.write_text("".join(json.dumps({"text": f"{text} {number}"}) + "\n" for number in range(40) for text in TEXTS))
    return path


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_text_has_the_ids_of_the_tokenizer_alone_and_is_content(family):
    tokenizer = tiny.make_tokenizer(family)
    template = ChatTemplate(tokenizer, {})
    for text in TEXTS[:2]:
        [encoded] = template.encode([Conversation.of_text(text, "here")])
        assert encoded.token_id.tolist() == tokenizer(text, add_special_tokens=False)["input_ids"]
        assert (encoded.token_class == TokenClass.OTHER_ROLE).all()
        assert (encoded.token_type == TokenType.CONTENT).all()
        assert (encoded.role == Role.OTHER).all()


def test_control_tokens_in_text_are_none():
    tokenizer = tiny.make_tokenizer("llama3")
    [encoded] = ChatTemplate(tokenizer, {}).encode([Conversation.of_text(TEXTS[2], "here")])
    assert not {*encoded.token_id.tolist()} & {*tokenizer.added_tokens_decoder}
    assert tokenizer.decode(encoded.token_id.tolist()) == TEXTS[2]
    [kept] = ChatTemplate(tokenizer, {}, "keep").encode([Conversation.of_text(TEXTS[2], "here")])
    assert kept.token_id.tolist() == tokenizer(TEXTS[2], add_special_tokens=False)["input_ids"]


def test_empty_and_malformed_texts_are_skipped_with_a_reason():
    [empty] = ChatTemplate(tiny.make_tokenizer("llama3"), {}).encode([Conversation.of_text("", "here")])
    assert empty.reason == "no_tokens"
    reasons = [parse_row(row, "here", "text") for row in ({"text": 3}, {}, {"text": "\ud800"}, "text")]
    assert [skip.reason for skip in reasons if isinstance(skip, Skipped)] == [
        "bad_content", "bad_content", "bad_unicode", "not_an_object"
    ]


def test_blocks_of_text_have_bos_between_and_at_the_start(llama, text_file, tmp_path):
    open_plan(tiny.make_job(llama, text_file, order="block", block_length=64), tmp_path / "cache")
    cache = open_cache(tmp_path / "cache")
    bos = tiny.make_tokenizer("llama3").bos_token_id
    starts = cache.conversation_offset[:-1]
    assert (cache.token_id[starts] == bos).all()
    assert (cache.token_id[cache.sequence_offset[:-1]] == bos).all()
    assert cache.identity["order"] == {"kind": "block", "length": 64, "separator": "bos", "bos": "bos"}
    assert (np.diff(cache.sequence_offset) != 64).sum() <= 2  # the last of each side
    assert cache.plan.num_conversations == 40 * len(TEXTS)
    added = (cache.token_type & TokenType.BOS) > 0
    assert (cache.role[~added] == Role.OTHER).all()


def test_without_bos_text_is_parted_by_eos_and_chats_by_nothing(tmp_path, text_file, chat_file):
    model = tiny.save_model(tmp_path / "model", "qwen2")
    tokenizer = tiny.make_tokenizer("chatml")
    tokenizer.bos_token = None
    tokenizer.save_pretrained(model)
    for data, separator in ((text_file, "eos"), (chat_file, None)):
        job = tiny.make_job(model, data, order="block")
        assert job.order.identity == {"kind": "block", "length": 2048, "separator": separator, "bos": None}


def test_text_and_fast_do_not_go_together(llama, text_file):
    with pytest.raises(RecipeError, match=r"harvest\.order=block"):
        tiny.make_job(llama, text_file, dataset_layout="text")
    with pytest.raises(RecipeError, match=r"harvest\.order=block"):
        tiny.make_job(llama, EMBEDDED_TEXT)


def test_the_embedded_texts_are_pythons_own():
    texts = list(find_source(EMBEDDED_TEXT, text=True).read())
    assert {"python-library:for", "python-library:json.py"} & {text.place for text in texts}
    assert sum(len(text.messages[0].content) for text in texts) > 3_000_000
    assert all(text.is_text for text in texts)


def test_chats_and_text_mix_in_blocks(llama, text_file, chat_file, tmp_path):
    job = tiny.make_job(llama, None, dataset=None, order="block",
                        mixture=[{"dataset": str(chat_file)}, {"dataset": str(text_file)}])
    open_plan(job, tmp_path / "cache")
    cache = open_cache(tmp_path / "cache")
    assert {*cache.array("conversations/source").read().tolist()} == {0, 1}
    assert {Role.USER, Role.ASSISTANT, Role.OTHER} <= {*cache.role.tolist()}
