"""The plan: its arrays, its order, its identity."""

import json
import random
import shutil
from pathlib import Path

import numpy as np
import pytest

from harvest.job import shards_per_unit
from harvest.opening import open_plan
from harvest.selection import HELD_OUT_SHARE
from shared.errors import DataError, IdentityError
from shared.format.layout import PLAN, SKIPPED
from shared.reading.cache import open_cache
from tests import tiny

BELOW = int(HELD_OUT_SHARE * 2**64)


def keys(path, part):
    cache = open_cache(path)
    number = cache.plan.num_train_conversations
    found = cache.array("conversations/key").read().tolist()
    return found[:number] if part == "train" else found[number:]


def plan(path, model, data, **settings):
    return open_plan(tiny.make_job(model, data, **settings), path)


def test_ids_of_the_plan_are_those_of_apply_chat_template(cache, llama, chat_file):
    tokenizer = tiny.make_tokenizer("llama3")
    wanted = {}
    for line in chat_file.read_text().splitlines():
        messages = json.loads(line)["messages"]
        key = tiny.conversation(*((m["role"], m["content"]) for m in messages)).key
        wanted[key] = tokenizer.apply_chat_template(
            messages, tokenize=True, return_dict=False, **cache.identity["template_variables"]
        )
    found = cache.array("conversations/key").read().tolist()
    assert sorted(found) == sorted(wanted)
    for number, key in enumerate(found):
        start, stop = cache.conversation_offset[number : number + 2]
        assert cache.token_id[start:stop].tolist() == wanted[key]
        assert cache.position(np.arange(start, stop)).tolist() == list(range(stop - start))


def test_held_out_conversations_come_last_and_are_those_of_lowest_key(cache):
    assert all(key >= BELOW for key in keys(cache.path, "train"))
    held_out = keys(cache.path, "held_out")
    assert held_out == sorted(held_out)
    assert held_out
    assert all(key < BELOW for key in held_out)
    assert cache.conversation_offset[cache.plan.num_train_conversations] == cache.num_train_rows


def test_the_same_plan_is_written_twice_with_the_same_bytes(llama, chat_file, tmp_path):
    for name in ("one", "two"):
        plan(tmp_path / name, llama, chat_file)
    assert tiny.promised(tmp_path / "one") == tiny.promised(tmp_path / "two")


def test_the_order_of_the_file_does_not_change_the_rows(llama, chat_file, tmp_path):
    lines = chat_file.read_text().splitlines()
    random.Random(0).shuffle(lines)
    other = tmp_path / "shuffled.jsonl"
    other.write_text("\n".join(lines))
    plan(tmp_path / "one", llama, chat_file)
    plan(tmp_path / "two", llama, other)
    one, two = open_cache(tmp_path / "one"), open_cache(tmp_path / "two")
    assert one.cache_id != two.cache_id  # another file
    for name in ("tokens/token_id", "tokens/token_class", "conversations/key", "sequences/offset"):
        assert (one.array(name).read() == two.array(name).read()).all()


def test_no_plan_trains_on_what_another_holds_out(llama, chat_file, tmp_path):
    variants = [{}, {"seed": 1}, {"held_out_rows": 1}, {"plan_tokens": 1000}, {"max_length": 10}]
    for number, settings in enumerate(variants):
        plan(tmp_path / str(number), llama, chat_file, **settings)
    train = set().union(*(keys(tmp_path / str(number), "train") for number in range(len(variants))))
    held_out = set().union(*(keys(tmp_path / str(number), "held_out") for number in range(len(variants))))
    assert held_out
    assert not train & held_out
    assert len(keys(tmp_path / "2", "held_out")) == 1  # a limit leaves the others out of the plan altogether


def test_a_long_conversation_is_cut_and_flagged(llama, chat_file, tmp_path):
    plan(tmp_path / "cut", llama, chat_file, max_length=40)
    plan(tmp_path / "whole", llama, chat_file)
    cut, whole = open_cache(tmp_path / "cut"), open_cache(tmp_path / "whole")
    lengths = np.diff(whole.conversation_offset)
    assert (np.diff(cut.conversation_offset) == np.minimum(lengths, 40)).all()
    assert (cut.array("conversations/flags").read() == (lengths > 40)).all()
    for number in range(5):
        start, other = cut.conversation_offset[number], whole.conversation_offset[number]
        assert (cut.token_id[start : start + 10] == whole.token_id[other : other + 10]).all()


def test_skipped_rows_are_counted_and_listed(llama, chat_file, tmp_path):
    data = tmp_path / "data.jsonl"
    data.write_text(chat_file.read_text() + '{"messages": 3}\nnot json\n')
    made = plan(tmp_path / "cache", llama, data, max_skipped=0.1)
    assert made.num_read == 62
    assert made.num_skipped == {"no_messages": 1, "not_json": 1}
    listed = [json.loads(line) for line in (tmp_path / "cache" / SKIPPED).read_text().splitlines()]
    assert [skip["place"] for skip in listed] == ["data.jsonl:61", "data.jsonl:62"]
    with pytest.raises(DataError, match="2 of 62 rows are malformed"):
        plan(tmp_path / "strict", llama, data)
    assert not (tmp_path / "strict" / PLAN).exists()


def test_conversations_that_the_template_refuses_are_skipped(chat_file, tmp_path):
    model = tiny.save_model(tmp_path / "gemma", "llama", family="gemma")
    made = plan(tmp_path / "cache", model, chat_file, max_skipped=0.5)
    assert made.num_skipped == {"template_error": 20}  # every third has a system prompt
    assert made.num_conversations == 40


def test_only_held_out_conversations_are_nothing_to_train_on(llama, chat_file, cache, tmp_path):
    held_out = set(keys(cache.path, "held_out"))
    chosen = [
        messages for messages in map(lambda line: json.loads(line)["messages"], chat_file.read_text().splitlines())
        if tiny.conversation(*((m["role"], m["content"]) for m in messages)).key in held_out
    ]
    data = tiny.write_jsonl(tmp_path / "data.jsonl", chosen)
    with pytest.raises(DataError, match="left to train on"):
        plan(tmp_path / "cache", llama, data)


def test_a_folder_with_other_files_is_not_taken_for_a_cache(llama, chat_file, tmp_path):
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(IdentityError, match="other files"):
        plan(tmp_path, llama, chat_file)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize(
    ("sizes", "shards"),
    [((65_536, 2_048, 1_000_000), 1), ((65_536, 32_768, 40_960_000), 32), ((256, 512, 4096), 2), ((256, 512, 10), 1)],
)
def test_a_unit_is_at_most_64_batches_and_an_eighth_of_the_tokens(sizes, shards):
    assert shards_per_unit(*sizes) == shards


def test_no_conversation_is_longer_than_the_model_has_positions_for(llama, tmp_path):
    """Whatever max_length says: past its positions a model computes numbers that mean nothing, without a word."""
    folder = Path(shutil.copytree(llama, tmp_path / "model"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 32}))
    data = tiny.write_jsonl(tmp_path / "chats.jsonl", tiny.chats(60))
    made = plan(tmp_path / "cache", folder, data)
    cache = open_cache(tmp_path / "cache")
    assert np.diff(cache.conversation_offset).max() == 32
    assert cache.array("conversations/flags").read().all()
    assert made.identity["max_length"] == 32
