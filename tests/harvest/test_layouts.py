"""Column layouts: every way to write a conversation makes the same one; what is more than text is skipped."""

import json
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harvest.config import LayoutName
from harvest.conversation import ROLES, Conversation, Skipped, parse_row
from harvest.known_datasets import KNOWN_DATASETS
from harvest.layouts import LAYOUTS, detect_layout
from harvest.sources import find_source
from shared.errors import DataError, RecipeError
from tests import tiny

TURNS = [("system", "be kind"), ("user", "a"), ("assistant", " b\n"), ("user", "")]
SPEAKERS = {"system": "system", "user": "human", "assistant": "gpt"}
MESSAGES = [{"role": role, "content": content} for role, content in TURNS]
FROM_VALUE = [{"from": SPEAKERS[role], "value": content} for role, content in TURNS]

ROWS = {
    "messages": {"messages": MESSAGES},
    "messages-json": {"messages": json.dumps(MESSAGES)},
    "conversations": {"conversations": FROM_VALUE},
    "conversation": {"conversation": MESSAGES},
}


@pytest.mark.parametrize(("layout", "row"), ROWS.items())
def test_every_layout_makes_the_same_conversation(layout, row):
    assert detect_layout(row) == layout
    assert parse_row(row, "a:1", layout, ROLES) == Conversation(tiny.conversation(*TURNS).messages, "a:1")


def test_a_prompt_and_its_response_are_a_user_and_an_assistant():
    row = {"prompt": "a", "response": "b"}
    assert detect_layout(row) == "prompt-response"
    parsed = parse_row(row, "a:1", "prompt-response", ROLES)
    assert parsed.as_dicts() == [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]


@pytest.mark.parametrize(
    ("row", "layout"),
    [
        ({"messages": MESSAGES, "conversations": FROM_VALUE, "prompt": "a", "response": "b", "text": "c"}, "messages"),
        ({"messages": None, "conversations": FROM_VALUE}, "conversations"),
        ({"conversations": MESSAGES}, "conversations"),
        ({"conversation": FROM_VALUE}, "conversation"),
        ({"prompt": "a", "text": "c"}, "text"),
        ({"messages": "hello"}, None), ({"messages": []}, None), ({"messages": ["hello"]}, None),
        ({"prompt": MESSAGES, "response": "b"}, None), ({}, None), ([], None), (None, None),
    ],
)
def test_a_layout_is_known_by_the_columns_and_what_they_hold(row, layout):
    assert detect_layout(row) == layout


def test_speakers_and_roles_are_understood_in_both_columns():
    one = parse_row({"conversations": MESSAGES}, "a:1", "conversations", ROLES)
    two = parse_row({"conversation": FROM_VALUE}, "a:1", "conversation", ROLES)
    assert one == two == Conversation(tiny.conversation(*TURNS).messages, "a:1")


def with_message(**more):
    return {"messages": [MESSAGES[1] | more]}


@pytest.mark.parametrize(
    ("row", "layout", "reason"),
    [
        ({"messages": MESSAGES, "tools": [{"name": "search"}]}, "messages", "has_tools"),
        ({"messages": MESSAGES, "functions": "[{}]"}, "messages", "has_tools"),
        (with_message(tool_calls=[{"id": 1}], content=None), "messages", "has_tools"),
        (with_message(function_call={"name": "f"}), "messages", "has_tools"),
        ({"messages": MESSAGES, "images": [b"png"]}, "messages", "has_media"),
        ({"conversations": FROM_VALUE, "image": "a.png"}, "conversations", "has_media"),
        (with_message(content=[{"type": "text", "text": "a"}, {"type": "image_url"}]), "messages", "has_media"),
        (with_message(content=[{"type": "text", "text": "a"}]), "messages", "bad_content"),
        (with_message(role="tool"), "messages", "unknown_role"),
        (with_message(role="narrator"), "messages", "unknown_role"),
        ({"conversations": [{"from": "observation", "value": "42"}]}, "conversations", "unknown_role"),
        ({"conversations": [{"from": 3, "value": "42"}]}, "conversations", "bad_role"),
        ({"conversations": [{"from": "gpt"}]}, "conversations", "bad_content"),
        ({"conversations": ["hello"]}, "conversations", "bad_message"),
        ({"conversations": None}, "conversations", "no_messages"),
        ({"messages": "[{"}, "messages-json", "not_json"),
        ({"messages": "[" * 100_000}, "messages-json", "not_json"),
        ({"messages": "{}"}, "messages-json", "no_messages"),
        ({"messages": MESSAGES}, "messages-json", "no_messages"),
        ({"prompt": "a"}, "prompt-response", "no_messages"),
        ({"prompt": "a", "response": None}, "prompt-response", "bad_content"),
    ],
)
def test_what_is_more_or_less_than_text_is_skipped_with_its_reason(row, layout, reason):
    skipped = parse_row(row, "a:1", layout, ROLES)
    assert isinstance(skipped, Skipped)
    assert skipped.reason == reason


@pytest.mark.parametrize("nothing", [None, [], "", "[]", "null", {}])
def test_columns_that_a_set_fills_with_nothing_do_not_count(nothing):
    row = {"messages": [MESSAGES[1] | {"tool_calls": nothing}], "tools": nothing, "images": nothing}
    assert isinstance(parse_row(row, "a:1", "messages", ROLES), Conversation)


def test_a_recipe_may_ask_for_more_roles():
    row = with_message(role="tool")
    assert isinstance(parse_row(row, "a:1", "messages", [*ROLES, "tool"]), Conversation)


json_values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.text(max_size=3), st.sampled_from(["[]", "[{}]", "human"])),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.sampled_from(
            ["messages", "conversations", "conversation", "prompt", "response", "role", "content", "from", "value",
             "type", "tools", "images", "tool_calls"]), inner, max_size=4),
    ),
    max_leaves=8,
)


@given(row=json_values, layout=st.sampled_from([*LAYOUTS]))
def test_any_row_of_any_layout_is_a_conversation_or_skipped(row, layout):
    assert detect_layout(row) in {*LAYOUTS, None}
    assert isinstance(parse_row(row, "a:1", layout, ROLES), Conversation | Skipped)


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_the_first_row_that_fits_decides_for_the_whole_set(tmp_path):
    rows = [{}, {"messages": 3}, ROWS["conversations"], ROWS["messages"], ROWS["conversations"]]
    found = [*find_source(write(tmp_path / "a.jsonl", rows)).read()]
    assert [getattr(row, "reason", "ok") for row in found] == ["no_messages", "no_messages", "ok", "no_messages", "ok"]


def test_a_named_layout_is_taken_and_part_of_the_identity(tmp_path):
    path = write(tmp_path / "a.jsonl", [{**ROWS["messages"], "prompt": "a", "response": "b"}])
    [row] = find_source(path, layout="prompt-response").read()
    assert [message.content for message in row.messages] == ["a", "b"]
    assert find_source(path, layout="prompt-response").identity["layout"] == "prompt-response"
    assert {*find_source(path).identity} == {"name", "xxh3"}  # as it was before there were layouts


def test_plain_text_is_refused_for_chats_and_there_for_others(tmp_path):
    path = write(tmp_path / "a.jsonl", [{"text": "Once"}])
    with pytest.raises(DataError, match=r"holds plain text \(a.jsonl:1\)"):
        list(find_source(path).read())
    assert [*find_source(path, layout="text", text=True).rows()] == [("a.jsonl:1", {"text": "Once"})]
    for name in path, "pile-uncopyrighted":
        with pytest.raises(RecipeError, match="plain text"):
            find_source(name, layout="text")


def test_the_table_and_the_recipe_name_layouts_that_there_are():
    assert get_args(LayoutName) == tuple(LAYOUTS)
    assert {known.layout for known in KNOWN_DATASETS.values()} <= {*LAYOUTS, None}
    assert len(KNOWN_DATASETS) == 6
    assert all(known.repo.count("/") == 1 and known.licence for known in KNOWN_DATASETS.values())
