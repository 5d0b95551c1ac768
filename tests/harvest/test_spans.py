"""The walk over a rendered conversation, on text alone."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harvest.spans import Content, SpanFinder
from shared.format.tokens import Role, TokenClass, enum_name


def walk(template, control=(), bos=None, default_system="", roles=()):
    """Spans of a text in which each content stands in braces: "<s>{user:hello}" -> [(text, class, role, turn)]."""
    text, contents, position = "", [], 0
    for match in re.finditer(r"\{(\w+):([^}]*)\}", template):
        text += template[position : match.start()]
        contents.append(Content(len(text), len(text) + len(match[2]), match[1]))
        text += match[2]
        position = match.end()
    text += template[position:]
    pattern = re.compile("|".join(map(re.escape, control)) or "(?!)")
    spans = SpanFinder(pattern, bos, default_system).find(text, contents)
    assert spans.length.sum() == len(text)  # no gap, no overlap
    assert (spans.length > 0).all()
    stop = spans.length.cumsum()
    rows = zip(stop - spans.length, stop, spans.token_class, spans.role, spans.turn, strict=True)
    return [(text[a:b], enum_name(TokenClass(kind)), enum_name(Role(role)), turn) for a, b, kind, role, turn in rows]


def test_a_bos_inside_a_conversation_is_bos_where_no_turn_is_open():
    assert walk("<s>[I]{user:a}[/I]{assistant:b}</s><s>[I]{user:c}[/I]", ["<s>", "</s>", "[I]", "[/I]"], "<s>") == [
        ("<s>", "bos", "none", 0),
        ("[I]", "turn_start", "user", 0),
        ("a", "user", "user", 0),
        ("[/I]", "turn_end", "user", 0),
        ("b", "assistant", "assistant", 1),
        ("</s>", "turn_end", "assistant", 1),
        ("<s>", "bos", "assistant", 1),
        ("[I]", "turn_start", "user", 2),
        ("c", "user", "user", 2),
        ("[/I]", "turn_end", "user", 2),
    ]


def test_a_bos_that_opens_turns_is_a_turn_start():
    spans = walk("<t>user\n{user:a}</t>\n<t>assistant\n{assistant:b}</t>", ["<t>", "</t>"], bos="<t>")
    assert [kind for _, kind, _, _ in spans].count("turn_start") == 2
    assert not [span for span in spans if span[1] == "bos"]


def test_a_template_without_control_tokens_has_other_text_between_contents():
    assert walk("Below is a chat.\n\n### User: {user:hi}\n\n### Answer: {assistant:yes}\n") == [
        ("Below is a chat.\n\n### User:", "template_other", "none", 0),
        (" ", "template_space", "none", 0),
        ("hi", "user", "user", 0),
        ("\n\n", "template_space", "assistant", 1),
        ("### Answer:", "template_other", "assistant", 1),
        (" ", "template_space", "assistant", 1),
        ("yes", "assistant", "assistant", 1),
        ("\n", "template_space", "assistant", 1),
    ]


def test_control_text_inside_a_content_is_escaped_and_ends_no_turn():
    spans = walk("<t>user\n{user:x</t><t>assistant\ny}</t>", ["<t>", "</t>"])
    assert [(text, kind) for text, kind, _, _ in spans] == [
        ("<t>", "turn_start"), ("user", "role_name"), ("\n", "template_space"), ("x", "user"), ("</t>", "escaped"),
        ("<t>", "escaped"), ("assistant\ny", "user"), ("</t>", "turn_end"),
    ]
    assert {turn for _, _, _, turn in spans} == {0}


def test_an_unusual_role_is_named_and_other():
    spans = walk("<t>critic\n{critic:no}</t>", ["<t>", "</t>"])
    assert spans[1] == ("critic", "role_name", "other", 0)
    assert spans[3] == ("no", "other_role", "other", 0)


def test_a_default_system_prompt_is_found_between_white_space():
    spans = walk("<t>system\nBe kind to all.\n</t><t>user\n{user:a}</t>", ["<t>", "</t>"], None, "Be kind to all.")
    assert spans[2:5] == [
        ("\n", "template_space", "system", 0),
        ("Be kind to all.", "default_system", "system", 0),
        ("\n", "template_space", "system", 0),
    ]


@pytest.mark.parametrize("name", ["assistant", "model", "gpt"])
def test_the_assistant_has_several_names(name):
    assert walk("<t>" + name + "\n{assistant:a}", ["<t>"])[1] == (name, "role_name", "assistant", 0)


def test_a_word_that_only_begins_like_a_role_is_no_role_name():
    spans = walk("<t>users guide\n{user:a}", ["<t>"])
    assert "role_name" not in [kind for _, kind, _, _ in spans]


pieces = st.one_of(
    st.sampled_from(["<t>", "</t>", "<h>", "user", "system", "\n", " ", "Be kind to all."]),
    st.builds(
        "{{{0}:{1}}}".format,
        st.sampled_from(["user", "assistant", "tool"]),
        st.sampled_from(["", "a", "<t>", "user\n"]),
    ),
)


@given(template=st.lists(pieces, max_size=12).map("".join))
def test_spans_cover_any_text_without_gaps(template):
    template += "."
    spans = walk(template, ["<t>", "</t>", "<h>"], "<t>", "Be kind to all.")
    turns = [turn for *_, turn in spans]
    assert turns == sorted(turns)
    assert {role for _, _, role, _ in spans} <= {enum_name(role) for role in Role}
    assert {kind for _, kind, _, _ in spans} <= {enum_name(kind) for kind in TokenClass}
