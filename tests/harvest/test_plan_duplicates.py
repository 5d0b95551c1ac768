"""Deduplication as a step of the plan."""

import json

import numpy as np
import pytest

from harvest.config import Deduplicate
from harvest.deduplicate import find_duplicates
from harvest.opening import open_plan
from harvest.selection import held_out_by
from harvest.sources import find_source
from shared.errors import IdentityError
from shared.format.layout import SKIPPED
from shared.reading.cache import open_cache
from tests import tiny

N = 6


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Sixty chats, and forty more that each share a run of words with one of them."""
    made = tiny.chats(60, seed=1)
    text = " ".join(f"unique{number}" for number in range(8))
    rows = [[{"role": "user", "content": f"{chat[0]['content']} {text}{number}"}, *chat[1:]]
            for number, chat in enumerate(made)]
    runs = [" ".join(f"w{number}x{place}" for place in range(N)) for number in range(40)]
    first = [[{"role": "user", "content": f"a{number} {run}"}] for number, run in enumerate(runs)]
    again = [[{"role": "user", "content": f"{run} b{number}"}] for number, run in enumerate(runs)]
    return tiny.write_jsonl(tmp_path_factory.mktemp("data") / "data.jsonl", [*rows, *first, *again])


def planned(path, llama, data, **settings):
    open_plan(tiny.make_job(llama, data, **settings), path)
    cache = open_cache(path)
    return cache, cache.array("conversations/key").read().tolist()


def test_duplicates_are_left_out_counted_and_listed(llama, data, tmp_path):
    options = Deduplicate(n=N)
    source = find_source(str(data))
    keys = [conversation.key for conversation in source.read()]
    found = find_duplicates(source.read, options)
    dropped = {keys[number] for number in found.number.tolist()}
    assert len(dropped) >= 40
    cache, there = planned(tmp_path / "cache", llama, data, deduplicate={"n": N}, max_skipped=0.0)
    assert sorted(there) == sorted({*keys} - dropped)
    assert cache.plan.num_skipped == {"duplicate": len(found)}
    assert cache.plan.num_read == len(there) + len(found)
    listed = [json.loads(line) for line in (tmp_path / "cache" / SKIPPED).read_text().splitlines()]
    assert [skip["reason"] for skip in listed] == ["duplicate"] * len(found)
    assert all(f"{key:016x}" in skip["detail"] for key, skip in zip(found.key.tolist(), listed, strict=True))


def test_where_they_stay_together_none_stands_on_the_other_side_than_the_first(llama, data, tmp_path):
    source = find_source(str(data))
    keys = [conversation.key for conversation in source.read()]
    found = find_duplicates(source.read, Deduplicate(n=N, action="together"))
    parted = {keys[number] for number, key in zip(found.number.tolist(), found.key.tolist(), strict=True)
              if held_out_by(keys[number]) != held_out_by(int(key))}
    assert parted, "no duplicate stands on the other side: the data tests nothing"
    cache, there = planned(tmp_path / "cache", llama, data, deduplicate={"n": N, "action": "together"}, max_skipped=0.0)
    assert sorted(there) == sorted({*keys} - parted)
    assert cache.plan.num_skipped == {"other_side": len(parted)}
    number = cache.plan.num_train_conversations
    assert not any(held_out_by(key) for key in there[:number])  # no plan trains on what another holds out
    assert all(held_out_by(key) for key in there[number:])


def test_every_setting_of_it_is_part_of_the_identity(llama, data, tmp_path):
    planned(tmp_path / "cache", llama, data, deduplicate={"n": N})
    planned(tmp_path / "cache", llama, data, deduplicate={"n": N})
    for other in (None, {"n": 7}, {"n": N, "unit": "characters"}, {"n": N, "action": "together"},
                  {"n": N, "roles": ["user"]}, {"n": N, "short_texts": "samples"}):
        with pytest.raises(IdentityError, match="deduplicate"):
            planned(tmp_path / "cache", llama, data, deduplicate=other)


def test_without_it_every_conversation_is_there(llama, data, tmp_path):
    cache, there = planned(tmp_path / "cache", llama, data)
    assert len(there) == 140
    assert not np.any(cache.array("conversations/flags").read())
