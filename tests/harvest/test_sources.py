"""Reading conversations: good rows become conversations, bad ones are skipped with a reason."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harvest.conversation import Conversation, Skipped, parse_row
from harvest.sources import check_skipped, find_source
from shared.errors import DataError, RecipeError
from tests import tiny

json_values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.sampled_from(["messages", "role", "content", "x"]), inner, max_size=3),
    ),
    max_leaves=8,
)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ([], "not_an_object"),
        ({}, "no_messages"),
        ({"messages": []}, "no_messages"),
        ({"messages": "hello"}, "no_messages"),
        ({"messages": ["hello"]}, "bad_message"),
        ({"messages": [{"content": "a"}]}, "bad_role"),
        ({"messages": [{"role": "", "content": "a"}]}, "bad_role"),
        ({"messages": [{"role": "a\n<|im_end|>", "content": "a"}]}, "bad_role"),
        ({"messages": [{"role": 3, "content": "a"}]}, "bad_role"),
        ({"messages": [{"role": "user"}]}, "bad_content"),
        ({"messages": [{"role": "user", "content": None}]}, "bad_content"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "bad_content"),
        ({"messages": [{"role": "user", "content": "\ud800"}]}, "bad_unicode"),
    ],
)
def test_a_malformed_row_is_skipped_with_its_reason(row, reason):
    skipped = parse_row(row, "here:1")
    assert isinstance(skipped, Skipped)
    assert (skipped.place, skipped.reason) == ("here:1", reason)


@given(row=json_values)
def test_any_json_is_a_conversation_or_skipped(row):
    assert isinstance(parse_row(row, "here:1"), Conversation | Skipped)


@given(lines=st.lists(st.binary(max_size=30).filter(lambda line: b"\n" not in line), max_size=5))
def test_a_file_of_any_bytes_is_read_line_by_line(tmp_path_factory, lines):
    path = tmp_path_factory.mktemp("bytes") / "data.jsonl"
    path.write_bytes(b"\n".join(lines))
    rows = list(find_source(str(path)).read())
    assert len(rows) == sum(bool(line.strip()) for line in lines)


def test_rows_keep_their_place_and_extra_keys_are_ignored(tmp_path):
    path = tmp_path / "mine.jsonl"
    row = {"id": 7, "messages": [{"role": "user", "content": "a", "name": "x"}]}
    path.write_text("{broken\n\n" + json.dumps(row) + "\n")
    bad, good = find_source(str(path)).read()
    assert (bad.place, bad.reason) == ("mine.jsonl:1", "not_json")
    assert good.place == "mine.jsonl:3"
    assert good.as_dicts() == [{"role": "user", "content": "a"}]


def test_deeply_nested_json_is_skipped(tmp_path):
    path = tmp_path / "deep.jsonl"
    path.write_text("[" * 100_000)
    [row] = find_source(str(path)).read()
    assert row.reason == "not_json"


def test_the_key_of_a_conversation_is_its_roles_and_contents():
    keys = {
        tiny.conversation(("user", "a"), ("assistant", "b")).key,
        tiny.conversation(("user", "b"), ("assistant", "a")).key,
        tiny.conversation(("user", "ab")).key,
        tiny.conversation(("user", "a")).key,
        tiny.conversation(("assistant", "a")).key,
    }
    assert len(keys) == 5
    here = tiny.conversation(("user", "a"))
    assert Conversation(here.messages, "elsewhere").key == here.key


def test_a_file_is_known_by_its_name_and_bytes(tmp_path):
    path = tiny.write_jsonl(tmp_path / "a.jsonl", tiny.chats(2))
    before = find_source(str(path)).identity
    tiny.write_jsonl(path, tiny.chats(3))
    after = find_source(str(path)).identity
    assert before["name"] == after["name"] == "a.jsonl"
    assert before["xxh3"] != after["xxh3"]


@pytest.mark.parametrize("name", ["nosuch.jsonl", "./nosuch", "/nosuch/data.json", "tulu", "a/b/c", ""])
def test_an_unknown_data_set_names_what_is_known(name):
    with pytest.raises(RecipeError, match="chitchat"):
        find_source(name)


def test_a_data_file_of_another_kind_is_refused(tmp_path):
    (tmp_path / "data.csv").write_text("a,b")
    with pytest.raises(RecipeError, match="expected JSONL"):
        find_source(str(tmp_path / "data.csv"))


def test_too_many_malformed_rows_stop_and_a_few_do_not():
    examples = [Skipped("a:1", "bad_role", "got 3")]
    check_skipped(1000, {"bad_role": 10}, examples, 0.01)
    with pytest.raises(DataError, match=r"11 of 1,000 rows.*a:1: bad_role"):
        check_skipped(1000, {"bad_role": 11}, examples, 0.01)
    with pytest.raises(DataError, match="All 5 rows are malformed"):
        check_skipped(5, {"bad_role": 5}, examples, 1.0)
    with pytest.raises(DataError, match="empty"):
        check_skipped(0, {}, [], 1.0)
