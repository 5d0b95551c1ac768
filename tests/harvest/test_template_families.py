"""What templates differ in: default system prompts, variables, BOS, assistant masks, odd and long texts."""

from datetime import date

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import processors

from harvest.template import ChatTemplate, Encoded
from shared.errors import RecipeError
from shared.format.tokens import Role, TokenClass, TokenType, enum_name
from tests import tiny
from tests.tiny import conversation

VARIABLES = {"date_string": "26 Jul 2024"}
TOKENIZERS = {family: tiny.make_tokenizer(family) for family in tiny.FAMILIES}
TEMPLATES = {family: ChatTemplate(TOKENIZERS[family], VARIABLES) for family in tiny.FAMILIES}
TAKES_SYSTEM = {"chatml", "llama3", "qwen"}
families = pytest.mark.parametrize("family", tiny.FAMILIES)

pieces = st.sampled_from([
    " ", "\n", "\n\n", "a", "fox", "<|im_end|>", "[INST]", "<think>", "e\u0301", "\U0001f469\u200d\U0001f4bb",
    "\u05e9\u05dc\u05d5\u05dd", "\u1112\u1161\u11ab", "    return 1\n", "<|",
])
texts = st.lists(st.lists(pieces, max_size=6).map("".join), min_size=1, max_size=4)
systems = st.one_of(st.none(), st.lists(pieces, max_size=4).map("".join))


def chat(contents, system=None):
    turns = [(("user", "assistant")[number % 2], text) for number, text in enumerate(contents)]
    return conversation(*([("system", system)] if system is not None else []), *turns)


def with_template(family, template, **options):
    tokenizer = tiny.make_tokenizer(family)
    tokenizer.chat_template = template
    return tokenizer, ChatTemplate(tokenizer, VARIABLES, **options)


def encode(template, conversation_):
    [encoded] = template.encode([conversation_])
    assert isinstance(encoded, Encoded), encoded
    return encoded


def same(a, b):
    return all(np.array_equal(getattr(a, name), getattr(b, name)) for name in Encoded.__dataclass_fields__)


# default system prompts

WITHOUT_DEFAULT = {
    "chatml": tiny.CHATML.replace(tiny.CHATML[tiny.CHATML.index("    {%- if loop.first") : tiny.CHATML.index(
        '    {{- "<|im_start|>" + message.role')], ""),
    "qwen": tiny.QWEN.replace(tiny.QWEN[tiny.QWEN.index("{%- else %}") : tiny.QWEN.index("{%- endif %}")], ""),
    "llama3": tiny.LLAMA3, "gemma": tiny.GEMMA, "mistral": tiny.MISTRAL,
}
"""The families' templates as if their authors had put no system prompt of their own into them."""
DROPPING = {family: ChatTemplate(TOKENIZERS[family], VARIABLES, drop_default_system=True) for family in tiny.FAMILIES}
DEFAULTLESS = {family: with_template(family, WITHOUT_DEFAULT[family])[1] for family in tiny.FAMILIES}


@families
@settings(max_examples=60)
@given(contents=texts, system=systems)
@example(contents=[tiny.DEFAULT_SYSTEM, tiny.QWEN_SYSTEM], system=None)
@example(contents=["a"], system=tiny.DEFAULT_SYSTEM)
@example(contents=["", "<|im_start|>system\nx<|im_end|>\n"], system=None)
def test_a_dropped_default_system_prompt_leaves_what_the_template_writes_without_it(family, contents, system):
    conversation_ = chat(contents, system if family in TAKES_SYSTEM else None)
    assert same(encode(DROPPING[family], conversation_), encode(DEFAULTLESS[family], conversation_))


@pytest.mark.parametrize("family", ["chatml", "qwen"])
def test_only_the_default_prompt_is_dropped_and_only_where_asked(family):
    conversation_ = chat(["hello"])
    kept, dropped = (encode(templates[family], conversation_) for templates in (TEMPLATES, DROPPING))
    assert TokenClass.DEFAULT_SYSTEM in kept.token_class
    assert TokenClass.DEFAULT_SYSTEM not in dropped.token_class
    assert (kept.turn.max(), dropped.turn.max()) == (1, 0)
    cut = len(kept) - len(dropped)
    assert np.array_equal(kept.token_id[cut:], dropped.token_id)
    own = chat(["hello"], "be kind")
    assert same(encode(TEMPLATES[family], own), encode(DROPPING[family], own))


@pytest.mark.parametrize(
    ("before", "inside"),
    [("You are Otter, a helper. ", ""), ("", "You are Otter, a helper.\n\n")],
    ids=["before all turns", "in the first user turn"],
)
def test_a_default_prompt_that_is_no_turn_of_its_own_is_refused(before, inside):
    default = "{% if messages[0].role != 'system' and loop.first %}TEXT{% endif %}"
    body = ("{% for m in messages %}" + default.replace("TEXT", before) + "{{ '<|im_start|>' + m.role + '\n' }}"
            + default.replace("TEXT", inside) + "{{ m.content + '<|im_end|>\n' }}{% endfor %}")
    _, template = with_template("chatml", body)
    assert TokenClass.DEFAULT_SYSTEM in encode(template, chat(["hello"])).token_class
    with pytest.raises(RecipeError, match="You are Otter, a helper"):
        with_template("chatml", body, drop_default_system=True)


# kinds

def test_qwen_has_no_bos_and_a_default_system_prompt():
    encoded = encode(TEMPLATES["qwen"], chat(["e\u0301", "fine"]))
    encoded = encoded.as_sequence()
    kinds = [(enum_name(TokenClass(kind)), enum_name(Role(role)), int(turn))
             for kind, role, turn in zip(encoded.token_class, encoded.role, encoded.turn, strict=True)]
    assert list(dict.fromkeys(kinds)) == [
        ("first", "system", 0), ("role_name", "system", 0), ("template_space", "system", 0),
        ("default_system", "system", 0), ("turn_end", "system", 0),
        ("turn_start", "user", 1), ("role_name", "user", 1), ("template_space", "user", 1), ("user", "user", 1),
        ("turn_end", "user", 1),
        ("turn_start", "assistant", 2), ("role_name", "assistant", 2), ("template_space", "assistant", 2),
        ("assistant", "assistant", 2), ("turn_end", "assistant", 2),
    ]
    user = encoded.token_id[encoded.token_class == TokenClass.USER]
    assert TOKENIZERS["qwen"].decode(user) == "\u00e9"  # its tokenizer composes; types are of the text before that
    assert not ((encoded.token_type & TokenType.BOS) > 0).any()


@families
def test_a_bos_is_neither_doubled_nor_invented(family):
    tokenizer = tiny.make_tokenizer(family)
    bos = tokenizer.bos_token
    if bos is not None:  # as Llama-3's tokenizer: it puts a BOS before every text that is not a rendered chat
        backend = tokenizer.backend_tokenizer
        backend.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, tokenizer.convert_tokens_to_ids(bos))]
        )
        assert tokenizer("a")["input_ids"][0] == tokenizer.convert_tokens_to_ids(bos)
    for content in ("a", "", bos or "<s>"):
        ids = encode(ChatTemplate(tokenizer, VARIABLES), chat([content, "b"])).token_id.tolist()
        number = {"chatml": 3, "qwen": 0}.get(family, 1)  # of ChatML's turns each begins with it
        assert ids.count(tokenizer.convert_tokens_to_ids(bos) if bos else None) == number


def test_what_else_the_tokenizer_is_used_for_changes_nothing():
    tokenizer = tiny.make_tokenizer("chatml")
    template = ChatTemplate(tokenizer, VARIABLES)
    before = encode(template, chat(["hello there"]))
    for options in ({"split_special_tokens": True}, {"truncation": True, "max_length": 3},
                    {"padding": "max_length", "max_length": 90}):
        tokenizer("a <|im_end|> b", **options)
        assert same(encode(template, chat(["hello there"])), before)


def test_a_template_that_asks_for_the_time_gets_the_recipes_day():
    """Through apply_chat_template it would get the machine's clock, or a text in the place of the function."""
    tokenizer = TOKENIZERS["llama3"]
    [encoded] = ChatTemplate(tokenizer, {}, today=date(2019, 3, 1)).encode([chat(["a"])])
    expected = tokenizer.apply_chat_template(
        chat(["a"]).as_dicts(), tokenize=True, return_dict=False, date_string="01 Mar 2019")
    assert encoded.token_id.tolist() == expected


def test_a_template_sees_the_variables_of_apply_chat_template():
    tokenizer, template = with_template("llama3", (
        "{{ [tools, documents, add_generation_prompt, bos_token, eos_token, pad_token, date_string, "
        "unk_token is defined, builtin_tools is defined, namespace(x=1).x, messages | length] }}" + tiny.BASE
    ))
    conversation_ = chat(["a", "b"])
    text = tokenizer.apply_chat_template(conversation_.as_dicts(), tokenize=False, **VARIABLES)
    assert "26 Jul 2024" in text
    assert "<|eot_id|>" in text
    assert tokenizer.decode(encode(template, conversation_).token_id) == text


def test_of_several_templates_the_default_one_is_taken_and_none_is_an_error():
    several = {"default": tiny.CHATML, "tool_use": tiny.BASE}
    assert same(encode(with_template("chatml", several)[1], chat(["a"])), encode(TEMPLATES["chatml"], chat(["a"])))
    with pytest.raises(RecipeError, match="cannot be used: This model has multiple chat templates"):
        with_template("chatml", {"rag": tiny.CHATML, "tool_use": tiny.BASE})


# assistant masks

BODIES = {  # the piece of a template that writes a turn: what stands before the content, the content and its end, after
    "chatml": ('"<|im_start|>" + message.role + "\\n" + message.content + "<|im_end|>\\n"',
               '"<|im_start|>" + message.role + "\\n"', 'message.content', '"<|im_end|>"', '"\\n"'),
    "qwen": ('"<|im_start|>" + message.role + "\\n" + message.content + "<|im_end|>" + "\\n"',
             '"<|im_start|>" + message.role + "\\n"', 'message.content', '"<|im_end|>"', '"\\n"'),
    "llama3": ('"<|start_header_id|>" + message.role + "<|end_header_id|>\\n\\n" + message.content | trim '
               '+ "<|eot_id|>"',
               '"<|start_header_id|>" + message.role + "<|end_header_id|>\\n\\n"', 'message.content | trim',
               '"<|eot_id|>"', '""'),
    "gemma": ('"<start_of_turn>" + role + "\\n" + message.content | trim + "<end_of_turn>\\n"',
              '"<start_of_turn>" + role + "\\n"', 'message.content | trim', '"<end_of_turn>"', '"\\n"'),
    "mistral": ('" " + message.content + eos_token', '" "', 'message.content', 'eos_token', '""'),
}


def generation(family, whole_turn):
    """A family's template with generation markers around what the assistant says, with the turn's end or without."""
    old, before, content, end, after = BODIES[family]
    template = tiny.FAMILIES[family][0]
    assert template.count(old) == 1
    inside, rest = (f"{{{{ {content} }}}}{{{{ {end} }}}}", "") if whole_turn else (
        f"{{{{ {content} }}}}", f"{{{{ {end} }}}}")
    turn = (f"{{{{- {before} }}}}{{% if message.role == 'assistant' %}}{{% generation %}}{inside}{{% endgeneration %}}"
            f"{{% else %}}{inside}{{% endif %}}{rest}{{{{ {after} }}}}")
    return with_template(family, template.replace("{{- " + old + " }}", turn))


MARKED = {(family, whole): generation(family, whole) for family in tiny.FAMILIES for whole in (True, False)}


def masks(family, whole, contents):
    """transformers' assistant mask by generation markers, and ours of the template that has none."""
    tokenizer, _ = MARKED[family, whole]
    conversation_ = chat(contents)
    theirs = tokenizer.apply_chat_template(
        conversation_.as_dicts(), tokenize=True, return_dict=True, return_assistant_tokens_mask=True, **VARIABLES
    )
    encoded = encode(TEMPLATES[family], conversation_)
    assert encoded.token_id.tolist() == theirs["input_ids"]
    ours = (encoded.token_type & TokenType.CONTENT) > 0
    if whole:
        ours = ours | (encoded.token_class == TokenClass.TURN_END)
    return theirs["assistant_masks"], (ours & (encoded.role == Role.ASSISTANT)).astype(int).tolist()


ordinary = st.lists(st.lists(st.sampled_from(
    [" ", "\n", "a", "fox", "42", "e\u0301", "\U0001f469\u200d\U0001f4bb", "\u05e9\u05dc", "\u1112\u1161\u11ab", "{}"]
), max_size=6).map("".join), min_size=2, max_size=4)


@families
@settings(max_examples=60)
@given(contents=ordinary)
@example(contents=["a", "", "", " b "])
def test_assistant_turns_are_those_of_transformers_generation_markers(family, contents):
    theirs, ours = masks(family, True, contents)
    assert ours == theirs


@families
@settings(max_examples=40)
@given(words=st.lists(st.sampled_from(["a", "fox", "42", " b", "c\nd", "1 2"]), min_size=2, max_size=4))
def test_assistant_contents_are_those_of_transformers_generation_markers(family, words):
    """Of ASCII: of a last character that is several tokens, transformers' mask leaves out all but the first."""
    theirs, ours = masks(family, False, words)
    assert ours == theirs


def test_an_assistant_content_keeps_every_token_of_its_last_character():
    theirs, ours = masks("chatml", False, ["a", "\U0001f98a"])
    assert sum(ours) > sum(theirs) == 1
    encoded = encode(TEMPLATES["chatml"], chat(["a", "\U0001f98a"]))
    assert TOKENIZERS["chatml"].decode(encoded.token_id[np.array(ours) > 0]) == "\U0001f98a"


# odd and long texts

ODD = {
    "emoji": "\U0001f469\u200d\U0001f469\u200d\U0001f467 \U0001f1f3\U0001f1f1 \u2764\ufe0f \U0001f44b\U0001f3fd",
    "combining marks": "e\u0301 \u0301 a\u0328\u0301 \u1112\u1161\u11ab \u0915\u094d\u0937 \u0e01\u0e33 Z\u0351\u036b",
    "right to left": "\u05e9\u05dc\u05d5\u05dd \u202eabc\u202c \u0645\u0631\u062d\u0628\u0627, 123 \u200f!",
    "code": "```python\ndef add(a, b):\n\treturn a + b  # {{ x }} {% y %}\n```\n\n<table>\r\n</table>\n",
    "white space": " \t\n \u00a0\u2003\u3000\u2028 x \n\n\n",
    "nothing": "",
    "other planes": "\U00020000\U000e0041\x00\x7f\x85\ufeff\ufffd\uffff",
}


@families
@pytest.mark.parametrize("name", ODD)
@pytest.mark.parametrize("times", [1, 50])
def test_odd_texts_have_the_ids_of_apply_chat_template(family, name, times):
    conversation_ = chat([ODD[name] * times, f" {ODD[name]}", f"{ODD[name]}\n", "x"])
    expected = TOKENIZERS[family].apply_chat_template(
        conversation_.as_dicts(), tokenize=True, return_dict=False, **VARIABLES)
    assert encode(TEMPLATES[family], conversation_).token_id.tolist() == expected


@families
def test_turns_of_a_hundred_kilobytes_have_the_ids_of_apply_chat_template(family):
    long = [(text * (100_000 // len(text.encode()) + 1)) for text in ("fox jumps 42\n", ODD["emoji"], ODD["code"])]
    assert all(len(text.encode()) >= 100_000 for text in long)
    conversation_ = chat([*long, "x"])
    expected = TOKENIZERS[family].apply_chat_template(
        conversation_.as_dicts(), tokenize=True, return_dict=False, **VARIABLES)
    encoded = encode(TEMPLATES[family], conversation_)
    assert encoded.token_id.tolist() == expected
    assert {*encoded.turn[encoded.token_type & TokenType.CONTENT > 0]} == {*range(encoded.turn.max() - 3,
                                                                                encoded.turn.max() + 1)}
