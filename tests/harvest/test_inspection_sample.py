"""What is sampled of a data set and of a cache: the same conversations, no more rows than asked."""

import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from harvest.conversation import parse_row
from harvest.inspection_sample import Wanted, inspect_cache, inspect_source
from harvest.inspection_view import facts
from harvest.opening import open_plan
from shared.errors import DataError
from shared.format.tokens import TokenClass
from shared.reading.cache import open_cache
from tests import tiny

ALL = Wanted(sample=None)


@dataclass
class Endless:
    """A source that never ends, and counts what is read of it."""

    name: str = "endless"
    num_read: int = 0

    @property
    def names(self):
        return [self.name]

    def read(self):
        while True:
            self.num_read += 1
            content = f"hello {self.num_read}"
            yield parse_row({"messages": [{"role": "user", "content": content}]}, f"endless:{self.num_read - 1}")


@pytest.fixture
def job(llama, chat_file):
    return tiny.make_job(llama, chat_file)


def test_a_cache_and_the_data_it_was_made_from_have_the_same_statistics(cache, job):
    of_data, of_cache = inspect_source(job, ALL), inspect_cache(cache, ALL)
    one, other = of_data.statistics, of_cache.statistics
    for name in ("num_tokens", "by_class", "by_role", "scripts", "num_system", "num_bos", "num_escaped", "first_ids",
                 "num_default_system", "num_truncated", "by_source"):
        assert getattr(one, name) == getattr(other, name), name
    assert sorted(one.lengths) == sorted(other.lengths)
    assert sorted(one.turns) == sorted(other.turns)
    assert other.num_tokens == cache.num_rows
    assert of_data.settings == of_cache.settings
    assert (of_data.extent, of_cache.extent) == ("all 60 rows", "all 60 conversations of the plan")


def test_where_blocks_begin_is_left_to_the_plan(llama, chat_file, tmp_path):
    job = tiny.make_job(llama, chat_file, order="block", block_length=64)
    open_plan(job, tmp_path / "cache")
    of_data, of_cache = inspect_source(job, ALL), inspect_cache(open_cache(tmp_path / "cache"), ALL)
    assert of_data.statistics.by_class[TokenClass.FIRST] == 0
    assert of_cache.statistics.by_class[TokenClass.FIRST] == len(open_cache(tmp_path / "cache").sequence_offset) - 1
    assert of_data.statistics.scripts == of_cache.statistics.scripts
    assert "blocks of 64 tokens" in dict(facts(of_cache))["order"]
    assert "separators" in dict(facts(of_data))["order"]


def test_a_conversation_of_a_cache_is_the_rows_of_the_cache(cache):
    [seen] = inspect_cache(cache, Wanted(numbers=(17,))).shown
    start, stop = cache.conversation_offset[17:19]
    for name in ("token_id", "token_class", "token_type", "role", "turn"):
        assert np.array_equal(getattr(seen.encoded, name), getattr(cache, name)[start:stop])


def test_held_out_conversations_of_a_cache_are_shown_as_such(cache):
    last = cache.plan.num_conversations - 1
    first, held_out = inspect_cache(cache, Wanted(numbers=(0, last))).shown
    assert (first.place, held_out.place) == ("to train on", "held out")


def test_no_more_rows_are_read_than_the_sample_and_one(job):
    source = Endless()
    found = inspect_source(replace(job, source=source), Wanted(sample=100))
    assert source.num_read == 101  # the last one tells that there are more
    assert found.statistics.num_rows == 100
    assert found.extent.startswith("the first 100 rows (there are more")


def test_a_row_behind_the_sample_is_read_on_to_and_not_counted(job):
    source = Endless()
    found = inspect_source(replace(job, source=source), Wanted(sample=10, numbers=(70,), places=("endless:90",)))
    assert [seen.number for seen in found.shown] == [70, 90]
    assert found.statistics.num_rows == 10
    assert source.num_read == 91


def test_an_even_sample_reads_to_the_end(job):
    found = inspect_source(job, Wanted(sample=20, evenly=True, conversations=20))
    assert found.extent == "20 of 60 rows, evenly"
    numbers = [seen.number for seen in found.shown]
    assert numbers[0] == 0
    assert numbers[-1] >= 50
    assert len(numbers) == 20


def test_a_sample_larger_than_the_data_is_all_of_it(job):
    assert inspect_source(job, Wanted(sample=60)).extent == "all 60 rows"
    assert inspect_source(job, Wanted(sample=61, evenly=True)).extent == "all 60 rows"


def test_rows_that_are_skipped_are_counted_and_can_be_looked_at(llama, tmp_path):
    data = tiny.write_jsonl(tmp_path / "mixed.jsonl", tiny.chats(8))
    with data.open("a") as file:
        file.write("{broken\n" + json.dumps({"messages": [{"role": "wizard", "content": "abra"}]}) + "\n")
    found = inspect_source(tiny.make_job(llama, data), Wanted(places=("mixed.jsonl:10",), numbers=(0, 8)))
    assert found.statistics.skipped == {"not_json": 1, "unknown_role": 1}
    assert [seen.skipped and seen.skipped.reason for seen in found.shown] == [None, "not_json", "unknown_role"]
    assert "wizard" in found.shown[2].skipped.detail
    [note] = found.notes
    assert "would stop: 2 of 10 rows are malformed" in note


def test_data_with_no_conversation_is_an_error(llama, tmp_path):
    (tmp_path / "bad.jsonl").write_text("{broken\n")
    with pytest.raises(DataError, match="nothing can be harvested"):
        inspect_source(tiny.make_job(llama, tmp_path / "bad.jsonl"), Wanted())


def test_of_a_mixture_rows_of_each_data_set_are_taken(llama, chat_file, tmp_path):
    other = tiny.write_jsonl(tmp_path / "other.jsonl", tiny.chats(30, seed=1))
    parts = [{"dataset": str(chat_file)}, {"dataset": str(other), "weight": 0.5}]
    job = tiny.make_job(llama, chat_file, dataset=None, mixture=parts)
    found = inspect_source(job, Wanted(sample=5))
    assert found.statistics.num_rows == 10
    assert found.statistics.by_source.keys() == {0, 1}
    assert found.extent.count("the first 5 rows") == 2


def test_a_conversation_over_max_length_is_shown_as_the_model_sees_it(llama, chat_file):
    found = inspect_source(tiny.make_job(llama, chat_file, max_length=20), ALL)
    assert found.statistics.num_truncated == 60
    assert found.statistics.num_tokens == 60 * 20
    assert all(len(seen.encoded) == 20 < seen.length for seen in found.shown)


def test_no_weights_are_needed(llama, chat_file, tmp_path):
    folder = Path(shutil.copytree(llama, tmp_path / "model", ignore=shutil.ignore_patterns("*.safetensors")))
    assert inspect_source(tiny.make_job(folder, chat_file), Wanted(sample=3)).statistics.num_conversations == 3


def test_a_default_system_prompt_is_told_though_every_conversation_brings_its_own(qwen2, tmp_path):
    data = tiny.write_jsonl(tmp_path / "own.jsonl", [tiny.chats(1)[0]] * 2)
    found = inspect_source(tiny.make_job(qwen2, data), Wanted())
    assert found.statistics.num_default_system == 0
    assert found.default_system == tiny.DEFAULT_SYSTEM
