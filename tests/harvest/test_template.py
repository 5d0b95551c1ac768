"""Ids and kinds of tokens through five families of chat templates."""

import inspect
import unicodedata

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from harvest.conversation import Skipped
from harvest.template import ChatTemplate, Encoded
from shared.errors import RecipeError
from shared.format.tokens import CONTENT_CLASSES, Role, TokenClass, TokenType, enum_name
from tests import tiny
from tests.tiny import conversation

VARIABLES = {"date_string": "26 Jul 2024"}
TOKENIZERS = {family: tiny.make_tokenizer(family) for family in tiny.FAMILIES}
TEMPLATES = {family: ChatTemplate(TOKENIZERS[family], VARIABLES) for family in tiny.FAMILIES}
CONTROL = sorted({word for _, words, _, _ in tiny.FAMILIES.values() for word in words} | {"<think>"})
families = pytest.mark.parametrize("family", tiny.FAMILIES)
TAKES_SYSTEM = {"chatml", "llama3", "qwen"}

characters = st.one_of(
    st.characters(exclude_categories=["Cs", "Co"]), st.sampled_from(list(" \n\t\r\u00a0\u3000ab<|>[]é你🙂"))
)
contents = st.text(characters, max_size=20).filter(lambda text: not any(word in text for word in CONTROL))
forged = st.lists(
    st.sampled_from(CONTROL) | st.sampled_from([" ", "\n", "user", "assistant", "hello", "<|", "é"]), max_size=6
).map("".join)


def apply(family, turns, **options):
    """transformers' own ids."""
    dicts = [{"role": role, "content": content} for role, content in turns]
    return TOKENIZERS[family].apply_chat_template(dicts, tokenize=True, return_dict=False, **VARIABLES, **options)


def encode(family, turns, policy="escape"):
    """Our result for one conversation."""
    template = TEMPLATES[family] if policy == "escape" else ChatTemplate(TOKENIZERS[family], VARIABLES, policy)
    [result] = template.encode([conversation(*turns)])
    return result if isinstance(result, Skipped) else result.as_sequence()


def runs(family, turns):
    """Consecutive tokens of one kind as (text, class, bits, role, turn)."""
    encoded = encode(family, turns)
    merged = []
    for i, token in enumerate(encoded.token_id.tolist()):
        bits = " ".join(enum_name(bit) for bit in TokenType if encoded.token_type[i] & bit)
        kind = (enum_name(TokenClass(encoded.token_class[i])), bits, enum_name(Role(encoded.role[i])))
        kind = (*kind, int(encoded.turn[i]))
        if merged and merged[-1][1] == kind:
            merged[-1][0].append(token)
        else:
            merged.append(([token], kind))
    return [(TOKENIZERS[family].decode(ids), *kind) for ids, kind in merged]


def alternating(texts):
    return [(("user", "assistant")[number % 2], text) for number, text in enumerate(texts)]


@families
@given(texts=st.lists(contents, min_size=1, max_size=4), system=st.one_of(st.none(), contents))
@example(texts=["", "", " ", "\n"], system="")
@example(texts=[" \n a \n ", "\n\n"], system=" \n ")
def test_ids_are_those_of_apply_chat_template(family, texts, system):
    turns = [("system", system)] * (family in TAKES_SYSTEM and system is not None) + alternating(texts)
    encoded = encode(family, turns)
    assert isinstance(encoded, Encoded), encoded
    assert encoded.token_id.tolist() == apply(family, turns)


@families
@given(texts=st.lists(contents, min_size=1, max_size=4))
def test_every_token_is_of_one_kind_and_contents_are_whole(family, texts):
    encoded = encode(family, alternating(texts))
    is_content = (encoded.token_type & TokenType.CONTENT) > 0
    is_template = (encoded.token_type & TokenType.TEMPLATE) > 0
    assert (is_content | is_template).all()
    assert is_template[(encoded.token_type & TokenType.SPECIAL) > 0].all()
    in_content_class = np.isin(encoded.token_class, CONTENT_CLASSES)
    assert (in_content_class == is_content).all()  # a seam token counts with its content
    assert (encoded.token_class == TokenClass.FIRST).nonzero()[0].tolist() == [0]
    assert (np.diff(encoded.turn.astype(int)) >= 0).all()
    first_turn = encoded.turn.max() + 1 - len(texts)
    for number, text in enumerate(texts):
        ids = encoded.token_id[is_content & (encoded.turn == first_turn + number)]
        # A seam token brings template white space along; a trimming template takes the content's own away.
        decoded = TOKENIZERS[family].decode(ids.tolist())
        assert decoded.strip() == (unicodedata.normalize("NFC", text) if family == "qwen" else text).strip()


@families
def test_chats_of_a_whole_file_have_the_ids_of_apply_chat_template(family):
    made = tiny.chats(40, seed=3, system=family in TAKES_SYSTEM)
    turns = [[(message["role"], message["content"]) for message in chat] for chat in made]
    results = TEMPLATES[family].encode([conversation(*chat) for chat in turns])
    assert [result.token_id.tolist() for result in results] == [apply(family, chat) for chat in turns]


def test_chatml_adds_its_default_system_prompt_and_names_it():
    assert runs("chatml", [("user", "hello there"), ("assistant", "fine"), ("user", "")]) == [
        ("<|im_start|>", "first", "first special template", "system", 0),
        ("system", "role_name", "template role_name", "system", 0),
        ("\n", "template_space", "template", "system", 0),
        (tiny.DEFAULT_SYSTEM, "default_system", "template default_system", "system", 0),
        ("<|im_end|>", "turn_end", "special template", "system", 0),
        ("\n", "template_space", "template", "system", 0),
        ("<|im_start|>", "turn_start", "special template", "user", 1),
        ("user", "role_name", "template role_name", "user", 1),
        ("\n", "template_space", "template", "user", 1),
        ("hello there", "user", "content", "user", 1),
        ("<|im_end|>", "turn_end", "special template", "user", 1),
        ("\n", "template_space", "template", "user", 1),
        ("<|im_start|>", "turn_start", "special template", "assistant", 2),
        ("assistant", "role_name", "template role_name", "assistant", 2),
        ("\n", "template_space", "template", "assistant", 2),
        ("fine", "assistant", "content", "assistant", 2),
        ("<|im_end|>", "turn_end", "special template", "assistant", 2),
        ("\n", "template_space", "template", "assistant", 2),
        ("<|im_start|>", "turn_start", "special template", "user", 3),
        ("user", "role_name", "template role_name", "user", 3),
        ("\n", "template_space", "template", "user", 3),
        ("<|im_end|>", "turn_end", "special template", "user", 3),
        ("\n", "template_space", "template", "user", 3),
    ]


def test_a_system_prompt_of_the_conversation_is_content():
    assert runs("chatml", [("system", "be kind"), ("user", "hi")])[2:5] == [
        ("\n", "template_space", "template", "system", 0),
        ("be kind", "system", "content", "system", 0),
        ("<|im_end|>", "turn_end", "special template", "system", 0),
    ]


def test_llama3_has_a_bos_headers_and_a_date_line_and_trims():
    assert runs("llama3", [("system", "be kind "), ("user", " \n hello "), ("tool", "42")]) == [
        ("<|begin_of_text|>", "first", "first bos special template", "none", 0),
        ("<|start_header_id|>", "turn_start", "special template", "system", 0),
        ("system", "role_name", "template role_name", "system", 0),
        ("<|end_header_id|>", "header_end", "special template", "system", 0),
        ("\n\n", "template_space", "template", "system", 0),
        ("The day is: 26 Jul 2024", "template_other", "template", "system", 0),
        ("\n\n", "template_space", "template", "system", 0),
        ("be kind", "system", "content", "system", 0),
        ("<|eot_id|>", "turn_end", "special template", "system", 0),
        ("<|start_header_id|>", "turn_start", "special template", "user", 1),
        ("user", "role_name", "template role_name", "user", 1),
        ("<|end_header_id|>", "header_end", "special template", "user", 1),
        ("\n\n", "template_space", "template", "user", 1),
        ("hello", "user", "content", "user", 1),
        ("<|eot_id|>", "turn_end", "special template", "user", 1),
        ("<|start_header_id|>", "turn_start", "special template", "other", 2),
        ("tool", "role_name", "template role_name", "other", 2),
        ("<|end_header_id|>", "header_end", "special template", "other", 2),
        ("\n\n", "template_space", "template", "other", 2),
        ("42", "other_role", "content", "other", 2),
        ("<|eot_id|>", "turn_end", "special template", "other", 2),
    ]


def test_gemma_calls_the_assistant_model():
    assert runs("gemma", [("user", "hello"), ("assistant", "fine")]) == [
        ("<bos>", "first", "first bos special template", "none", 0),
        ("<start_of_turn>", "turn_start", "special template", "user", 0),
        ("user", "role_name", "template role_name", "user", 0),
        ("\n", "template_space", "template", "user", 0),
        ("hello", "user", "content", "user", 0),
        ("<end_of_turn>", "turn_end", "special template", "user", 0),
        ("\n", "template_space", "template", "user", 0),
        ("<start_of_turn>", "turn_start", "special template", "assistant", 1),
        ("model", "role_name", "template role_name", "assistant", 1),
        ("\n", "template_space", "template", "assistant", 1),
        ("fine", "assistant", "content", "assistant", 1),
        ("<end_of_turn>", "turn_end", "special template", "assistant", 1),
        ("\n", "template_space", "template", "assistant", 1),
    ]


def test_mistral_has_turns_without_role_names():
    assert runs("mistral", [("user", "hello"), ("assistant", "fine"), ("user", "42")]) == [
        ("<s>", "first", "first bos special template", "none", 0),
        ("[INST]", "turn_start", "special template", "user", 0),
        (" he", "user", "template content", "user", 0),
        ("llo", "user", "content", "user", 0),
        ("[/INST]", "turn_end", "special template", "user", 0),
        (" f", "assistant", "template content", "assistant", 1),
        ("ine", "assistant", "content", "assistant", 1),
        ("</s>", "turn_end", "special template", "assistant", 1),
        ("[INST]", "turn_start", "special template", "user", 2),
        (" ", "template_space", "template", "user", 2),
        ("42", "user", "content", "user", 2),
        ("[/INST]", "turn_end", "special template", "user", 2),
    ]


def test_a_token_across_the_seam_is_template_and_content_and_counts_with_the_content():
    seam = runs("chatml", [("user", "  hello")])[8]
    assert seam == ("\n ", "user", "template content", "user", 1)


@pytest.mark.parametrize(("family", "space"), [("llama3", "\n\n"), ("gemma", "\n")])
def test_white_space_that_the_template_trimmed_is_not_looked_for_in_its_own(family, space):
    plain, spaced = ([("user", text)] for text in ("hello", f"{space}hello{space}"))
    assert runs(family, spaced) == runs(family, plain)
    assert (space, "template_space", "template", "user") in [run[:4] for run in runs(family, spaced)]


def test_content_that_spells_control_tokens_is_escaped():
    assert runs("chatml", [("system", "a"), ("user", "say <|im_end|> and <think>")])[8:13] == [
        ("\n", "template_space", "template", "user", 1),
        ("say ", "user", "content", "user", 1),
        ("<|im_end|>", "escaped", "content escaped", "user", 1),
        (" and ", "user", "content", "user", 1),
        ("<think>", "escaped", "content escaped", "user", 1),
    ]


@families
@given(texts=st.lists(forged, min_size=1, max_size=4))
def test_typed_control_tokens_never_become_control_ids(family, texts):
    encoded = encode(family, alternating(texts))
    tokenizer = TOKENIZERS[family]
    control = [tokenizer.convert_tokens_to_ids(word) for word in [*tiny.FAMILIES[family][1], "<think>"]]
    ordinary = encode(family, alternating(["x"] * len(texts)))
    is_control = np.isin(encoded.token_id, control)
    assert is_control.sum() == np.isin(ordinary.token_id, control).sum()
    assert not (is_control & ((encoded.token_type & TokenType.CONTENT) > 0)).any()
    dicts = [{"role": role, "content": text} for role, text in alternating(texts)]
    decoded = tokenizer.decode(encoded.token_id)
    text = tokenizer.apply_chat_template(dicts, tokenize=False, **VARIABLES)
    if family == "mistral":  # as transformers' sanitizer, it puts a space where a text goes on with merged newlines
        decoded, text = decoded.replace(" ", ""), text.replace(" ", "")
    assert decoded == text


@pytest.mark.skipif(
    "sanitize_control_tokens" not in inspect.signature(TOKENIZERS["chatml"].apply_chat_template).parameters,
    reason="this transformers has no sanitize_control_tokens",
)
@families
@given(
    texts=st.lists(st.one_of(forged, contents), min_size=1, max_size=4),
    system=st.one_of(st.none(), forged),
)
def test_escaped_ids_are_those_of_transformers_own_sanitizer(family, texts, system):
    turns = [("system", system)] * (family in TAKES_SYSTEM and system is not None) + alternating(texts)
    TOKENIZERS[family].chat_control_tokens = ["<think>"]
    try:
        assert encode(family, turns).token_id.tolist() == apply(family, turns, sanitize_control_tokens=True)
    finally:
        TOKENIZERS[family].chat_control_tokens = None


@families
def test_policy_keep_lets_control_tokens_through_and_still_marks_them(family):
    word = tiny.FAMILIES[family][1][-1]
    turns = [("user", f"a {word} b")]
    encoded = encode(family, turns, "keep")
    assert encoded.token_id.tolist() == apply(family, turns)
    marked = encoded.token_id[(encoded.token_type & TokenType.ESCAPED) > 0]
    assert marked.tolist() == [TOKENIZERS[family].convert_tokens_to_ids(word)]


@families
def test_policy_reject_skips_the_conversation_with_a_reason(family):
    word = tiny.FAMILIES[family][1][-1]
    assert encode(family, [("user", f"a {word} b")], "reject").reason == "control_token"
    assert isinstance(encode(family, [("user", "a b")], "reject"), Encoded)


def test_a_tokenizer_without_template_is_refused():
    tokenizer = tiny.make_tokenizer("chatml")
    tokenizer.chat_template = None
    with pytest.raises(RecipeError, match="no chat template"):
        ChatTemplate(tokenizer, VARIABLES)


@pytest.mark.parametrize(
    ("family", "turns", "reason"),
    [
        ("gemma", [("system", "be kind"), ("user", "hi")], "template_error"),
        ("mistral", [("assistant", "hi")], "template_error"),
        ("mistral", [("user", "a"), ("user", "b")], "template_error"),
    ],
)
def test_a_conversation_that_the_template_refuses_is_skipped(family, turns, reason):
    skipped = encode(family, turns)
    assert isinstance(skipped, Skipped)
    assert skipped.reason == reason
    assert skipped.place == "test:1"


@pytest.mark.parametrize(
    "body", ["{{ message.content | upper }}", "{% if not loop.first %}{{ message.content }}{% endif %}"]
)
def test_a_template_that_changes_or_drops_a_message_skips_the_conversation(body):
    tokenizer = tiny.make_tokenizer("chatml")
    tokenizer.chat_template = "{% for message in messages %}" + body + "{% endfor %}"
    template = ChatTemplate(tokenizer, {})
    [skipped] = template.encode([conversation(("user", "ab"), ("assistant", "cd"))])
    assert skipped.reason == "template_rewrites"


def test_a_conversation_of_no_token_is_skipped():
    tokenizer = tiny.make_tokenizer("chatml")
    tokenizer.chat_template = tiny.BASE
    template = ChatTemplate(tokenizer, {})
    empty, whole = template.encode([conversation(("user", "")), conversation(("user", "ab"), ("assistant", "cd"))])
    assert empty.reason == "no_tokens"
    assert whole.token_id.tolist() == tokenizer("abcd")["input_ids"]


def test_the_template_never_sees_the_clock():
    [fixed] = ChatTemplate(TOKENIZERS["llama3"], {"date_string": "01 Jan 1999"}).encode([conversation(("user", "a"))])
    assert "01 Jan 1999" in TOKENIZERS["llama3"].decode(fixed.token_id)


def test_contents_may_hold_the_private_characters_that_mark_them():
    text = "".join(map(chr, range(0xF0000, 0xF0006)))
    assert encode("chatml", [("user", text)]).token_id.tolist() == apply("chatml", [("user", text)])
    text += "".join(map(chr, range(0xF0006, 0xF0008)))
    assert encode("chatml", [("user", text)]).reason == "private_use"


def test_a_cut_keeps_the_first_tokens_of_every_array():
    encoded = encode("chatml", [("user", "hello there")])
    cut = encoded.cut(5)
    assert len(cut) == 5
    for name in Encoded.__dataclass_fields__:
        assert np.array_equal(getattr(cut, name), getattr(encoded, name)[:5])
