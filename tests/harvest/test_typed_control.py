"""Typed control tokens that only the tokenizer sees, and where transformers' own sanitizer does otherwise."""

import pytest
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from transformers.utils import chat_template_utils

from harvest.conversation import Skipped
from harvest.template import ChatTemplate, Encoded
from shared.format.tokens import TokenClass, TokenType
from tests import tiny
from tests.harvest.test_template_families import TEMPLATES, TOKENIZERS, VARIABLES, chat, encode, with_template


def refused(template, *contents):
    [skipped] = template.encode([chat(contents)])
    return isinstance(skipped, Skipped) and skipped.reason == "control_token"


def test_a_control_token_made_of_two_messages_is_skipped():
    """A template that adds nothing joins contents; transformers' sanitizer lets the joined token through."""
    tokenizer, template = with_template("chatml", tiny.BASE)
    forged = tokenizer.convert_tokens_to_ids("<|im_end|>")
    halves = chat(["x <|im_", "end|> y"])
    assert forged in tokenizer.apply_chat_template(
        halves.as_dicts(), tokenize=True, return_dict=False, sanitize_control_tokens=True)
    assert refused(template, "x <|im_", "end|> y")
    assert not refused(template, "x <|im_", " end|> y")


def test_a_control_token_made_by_a_normalizer_is_skipped():
    """Added tokens that are looked for in normalised text; transformers' sanitizer looks in the text as it is."""
    tokenizer = tiny.make_tokenizer("chatml")
    tokenizer.backend_tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.backend_tokenizer.add_tokens([AddedToken("<tool>", special=False, normalized=True)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer, bos_token="<|im_start|>",
                                        eos_token="<|im_end|>", clean_up_tokenization_spaces=False)
    tokenizer.chat_template = tiny.CHATML
    template = ChatTemplate(tokenizer, VARIABLES)
    assert refused(template, "call <TOOL> now")
    encoded = encode(template, chat(["call <tool> now"]))  # this one is seen, and escaped
    assert tokenizer.convert_tokens_to_ids("<tool>") not in encoded.token_id
    assert not refused(ChatTemplate(tokenizer, VARIABLES, "keep"), "call <TOOL> now")


def test_a_control_token_that_plain_text_cannot_avoid_is_skipped_where_transformers_raises():
    backend = Tokenizer(models.WordLevel({"?": 0, "stop": 1, "hi": 2}, unk_token="?"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.add_special_tokens(["stop"])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="stop", clean_up_tokenization_spaces=False)
    tokenizer.chat_template = "{% for m in messages %}{{ m.content + eos_token }}{% endfor %}"
    assert refused(ChatTemplate(tokenizer, {}), "hi stop hi")
    assert encode(ChatTemplate(tokenizer, {}), chat(["hi"])).token_id.tolist() == [2, 1]
    with pytest.raises(ValueError, match="Can't sanitize"):
        tokenizer.apply_chat_template(
            chat(["hi stop hi"]).as_dicts(), tokenize=True, sanitize_control_tokens=True)


def test_an_added_token_that_the_template_does_not_name_is_escaped_too():
    """transformers escapes special tokens, and of others those that the template's text has: not ``<think>``."""
    tokenizer = TOKENIZERS["chatml"]
    conversation_ = chat(["so <think> then"])
    theirs = tokenizer.apply_chat_template(
        conversation_.as_dicts(), tokenize=True, return_dict=False, sanitize_control_tokens=True)
    think = tokenizer.convert_tokens_to_ids("<think>")
    assert think in theirs
    ours = encode(TEMPLATES["chatml"], conversation_).token_id.tolist()
    assert think not in ours
    assert tokenizer.decode(ours) == tokenizer.decode(theirs)


def test_the_characters_that_transformers_marks_with_stay_in_the_text():
    """Its sanitizer takes them out of what it is given."""
    mark = chat_template_utils._CONTROL_TOKEN_START
    conversation_ = chat([f"a{mark}b <|im_end|>"])
    tokenizer = TOKENIZERS["chatml"]
    theirs = tokenizer.apply_chat_template(
        conversation_.as_dicts(), tokenize=True, return_dict=False, sanitize_control_tokens=True)
    ours = encode(TEMPLATES["chatml"], conversation_).token_id.tolist()
    assert mark in tokenizer.decode(ours)
    assert tokenizer.decode(ours).replace(mark, "") == tokenizer.decode(theirs)


def test_transformers_sanitizer_gives_no_text_and_no_masks():
    for options in ({"tokenize": False}, {"return_dict": True, "return_assistant_tokens_mask": True}):
        with pytest.raises(ValueError, match="requires `tokenize=True`"):
            TOKENIZERS["chatml"].apply_chat_template(chat(["a"]).as_dicts(), sanitize_control_tokens=True, **options)


def test_a_control_token_that_takes_white_space_along_is_still_what_it_is():
    """As Phi-3's, which are added with rstrip: the content's own white space goes with the turn's start."""
    tokenizer = tiny.make_tokenizer("chatml")
    tokenizer.backend_tokenizer.add_special_tokens([AddedToken("<|go|>", rstrip=True, special=True, normalized=False)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer, eos_token="<|im_end|>",
                                        clean_up_tokenization_spaces=False)
    tokenizer.chat_template = "{% for m in messages %}{{ '<|go|>' + m.content + '<|im_end|>' }}{% endfor %}"
    conversation_ = chat(["  hello", "x"])
    encoded = encode(ChatTemplate(tokenizer, {}), conversation_)
    assert encoded.token_id.tolist() == tokenizer.apply_chat_template(
        conversation_.as_dicts(), tokenize=True, return_dict=False)
    go = encoded.token_id == tokenizer.convert_tokens_to_ids("<|go|>")
    assert go.sum() == 2
    assert encoded.token_class[go].tolist() == [TokenClass.TURN_START, TokenClass.TURN_START]
    assert ((encoded.token_type[go] & (TokenType.SPECIAL | TokenType.CONTENT)) == TokenType.SPECIAL).all()


def test_runs_of_spaces_that_a_vocabulary_has_added_are_text():
    """As Gemma's: two spaces are an added token there, and no control token."""
    tokenizer = tiny.make_tokenizer("gemma")
    tokenizer.backend_tokenizer.add_tokens([AddedToken(text, special=False, normalized=False)
                                            for text in ("\n\n", "  ", "\u2581\u2581")])
    tokenizer.add_tokens([])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer, bos_token="<bos>",
                                        eos_token="<eos>", clean_up_tokenization_spaces=False)
    tokenizer.chat_template = tiny.GEMMA
    conversation_ = chat(["a  b\n\nc \u2581\u2581"])
    encoded = encode(ChatTemplate(tokenizer, {}), conversation_)
    assert encoded.token_id.tolist() == tokenizer.apply_chat_template(
        conversation_.as_dicts(), tokenize=True, return_dict=False)
    assert not (encoded.token_type & TokenType.ESCAPED).any()


@pytest.mark.parametrize("error", [
    "{{ 1 / 0 }}", "{{ messages[0].content.nothing.more }}", "{{ 'a' + 1 }}", "{{ range(10 ** 9) | list }}",
    "{{ raise_exception('no') }}", "{{ messages[0].content.index('zzz') }}", "{{ [].pop() }}", "{{ {}['a'].b }}",
])
def test_whatever_a_template_raises_skips_the_conversation(error):
    _, template = with_template("chatml", "{% if messages | length > 1 %}" + error + "{% endif %}" + tiny.BASE)
    [skipped] = template.encode([chat(["a", "b"])])
    assert skipped.reason == "template_error"
    assert isinstance(template.encode([chat(["a"])])[0], Encoded)
