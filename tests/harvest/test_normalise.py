"""Normalisation: what a recipe may ask for is done to any conversation, exactly and once."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from harvest.config import HarvestConfig
from harvest.conversation import Conversation, Message
from harvest.identity import make_identity
from harvest.normalise import AS_IT_IS, Normalisation, normalise
from harvest.opening import open_plan, start_plan
from harvest.sources import find_source
from shared.format.tokens import TokenClass
from shared.reading.cache import open_cache
from tests import tiny
from tests.tiny import conversation

MERGE = Normalisation(merge_same_role=True)
FOLD = Normalisation(fold_system=True)
BOTH = Normalisation(merge_same_role=True, fold_system=True)

roles = st.sampled_from(["system", "user", "assistant", "tool"])
conversations = st.lists(
    st.tuples(roles, st.sampled_from(["", " ", "a", "\n b ", "c\n\nd"])), min_size=1, max_size=6
).map(lambda turns: conversation(*turns))
switches = st.builds(Normalisation, st.booleans(), st.booleans())


def turns(given_turns, asked):
    return [(message.role, message.content) for message in normalise(conversation(*given_turns), asked).messages]


@pytest.mark.parametrize(
    ("given_turns", "asked", "expected"),
    [
        ([("user", "a"), ("user", " b ")], MERGE, [("user", "a\n\n b ")]),
        ([("user", "a"), ("user", " "), ("user", ""), ("user", "b")], MERGE, [("user", "a\n\nb")]),
        ([("user", ""), ("user", " ")], MERGE, [("user", " ")]),
        ([("user", "a"), ("assistant", "b"), ("user", "a")], MERGE, [("user", "a"), ("assistant", "b"), ("user", "a")]),
        ([("system", "s"), ("system", "t"), ("user", "a")], MERGE, [("system", "s\n\nt"), ("user", "a")]),
        ([("system", "s"), ("user", "a")], FOLD, [("user", "s\n\na")]),
        ([("system", " "), ("user", "a")], FOLD, [("user", "a")]),
        ([("system", "s"), ("user", "")], FOLD, [("user", "s")]),
        ([("system", "s"), ("system", "t"), ("user", "a")], FOLD, [("user", "s\n\nt\n\na")]),
        ([("system", "s"), ("assistant", "b"), ("user", "a")], FOLD, [("assistant", "b"), ("user", "s\n\na")]),
        ([("system", "s"), ("assistant", "b")], FOLD, [("system", "s"), ("assistant", "b")]),
        ([("user", "a"), ("system", "s"), ("user", "b")], FOLD, [("user", "a"), ("system", "s"), ("user", "b")]),
        ([("system", "s"), ("user", "a"), ("user", "b")], BOTH, [("user", "s\n\na\n\nb")]),
        ([("system", "s"), ("user", "a"), ("user", "b")], FOLD, [("user", "s\n\na"), ("user", "b")]),
    ],
)
def test_turns_are_joined_by_a_blank_line(given_turns, asked, expected):
    assert turns(given_turns, asked) == expected


@given(chat=conversations, asked=switches)
def test_what_is_normalised_stays_as_it_is_and_loses_no_text(chat, asked):
    once = normalise(chat, asked)
    assert normalise(once, asked) == once
    assert (once.place, once.source) == (chat.place, chat.source)
    texts = [message.content for message in chat.messages if message.content.strip()]
    kept = [message.content for message in once.messages if message.content.strip()]
    assert sorted("\n\n".join(texts)) == sorted("\n\n".join(kept))
    if asked.merge_same_role:
        assert all(a.role != b.role for a, b in pairwise(once.messages))
    if asked.fold_system and any(message.role == "user" for message in once.messages):
        assert once.messages[0].role != "system"


@given(chat=conversations)
def test_nothing_is_done_that_was_not_asked_for(chat):
    assert normalise(chat, AS_IT_IS) is chat


def write(path, *chats):
    return tiny.write_jsonl(path, [[{"role": role, "content": text} for role, text in chat] for chat in chats])


def test_keys_are_those_of_the_normalised_conversation(tmp_path):
    apart = write(tmp_path / "a.jsonl", [("system", "s"), ("user", "a"), ("user", "b")])
    joined = write(tmp_path / "b.jsonl", [("user", "s\n\na\n\nb")])
    [one], [two] = (find_source(str(path), normalisation=BOTH).read() for path in (apart, joined))
    assert one.key == two.key == Conversation((Message("user", "s\n\na\n\nb"),), "").key
    [as_it_is] = find_source(str(apart)).read()
    assert as_it_is.key != one.key


def test_each_switch_is_part_of_the_identity_only_where_it_is_on(llama, chat_file):
    job = tiny.make_job(llama, chat_file)
    sizes = job.sizes(None)
    usual = make_identity(job.config, job.model, job.source, job.order, "t", sizes)
    for switch in ("merge_same_role", "fold_system", "drop_default_system"):
        config = HarvestConfig.model_validate(job.config.model_dump() | {switch: True})
        assert make_identity(config, job.model, job.source, job.order, "t", sizes) == {**usual, switch: True}
        assert switch not in usual


@pytest.mark.parametrize("mixed", [False, True])
def test_a_harvest_of_chats_that_the_template_refuses_takes_them_normalised(tmp_path, mixed):
    model = tiny.save_model(tmp_path / "model", "llama", "mistral")
    data = write(tmp_path / "a.jsonl", *([("system", f"s{n}"), ("user", "a"), ("user", "b"), ("assistant", "c")]
                                         for n in range(40)))
    job = tiny.make_job(model, data, merge_same_role=True, fold_system=True)
    if mixed:
        job = tiny.make_job(model, data, merge_same_role=True, fold_system=True, dataset=None,
                            mixture=[{"dataset": str(data)}])
    plan, choice, _ = start_plan(job)
    assert (plan.num_read, plan.num_skipped) == (40, {})
    keys = {Conversation((Message("user", f"s{n}\n\na\n\nb"), Message("assistant", "c")), "").key for n in range(40)}
    assert {*choice.train["key"].tolist(), *choice.held_out["key"].tolist()} == keys


def test_a_harvest_leaves_the_default_system_prompt_out(tmp_path, qwen2):
    data = write(tmp_path / "a.jsonl", *([("user", f"a{n}"), ("assistant", "c")] for n in range(40)))
    for drops in (False, True):
        plan = open_plan(tiny.make_job(qwen2, data, drop_default_system=drops), tmp_path / str(drops))
        cache = open_cache(tmp_path / str(drops))
        found = {*cache.conversation(np.flatnonzero(cache.token_class == TokenClass.DEFAULT_SYSTEM)).tolist()}
        assert len(found) == (0 if drops else plan.num_conversations)


def test_the_switches_are_off_unless_the_recipe_says_so():
    config = HarvestConfig.model_validate({"model": "m"})
    assert (config.merge_same_role, config.fold_system, config.drop_default_system) == (False, False, False)
