"""Mixtures: shares by hash, numbered sources, and an identity by content."""

import re

import numpy as np
import pytest

from harvest.config import HarvestConfig
from harvest.conversation import Conversation, Skipped
from harvest.device import find_device
from harvest.job import prepare
from harvest.mixture import find_data, is_taken
from harvest.opening import open_plan
from shared.errors import IdentityError
from shared.reading.cache import open_cache
from shared.recipe import find_recipe, read_recipe, read_table
from tests import tiny

ONE, TWO = tiny.chats(40), tiny.chats(60, seed=1)


@pytest.fixture
def files(tmp_path):
    return tiny.write_jsonl(tmp_path / "one.jsonl", ONE), tiny.write_jsonl(tmp_path / "two.jsonl", TWO)


def config(*parts, **settings):
    settings = {"model": "m", "mixture": list(parts)} | tiny.SETTINGS | settings
    return HarvestConfig.model_validate(settings)


def read(*parts):
    return [*find_data(config(*parts), "chitchat", {}).read()]


def part(path, **settings):
    return {"dataset": str(path), **settings}


def job(llama, *parts, **settings):
    return prepare(config(*parts, model=str(llama), **settings), find_device("cpu"))


def test_parts_are_read_in_order_and_numbered(files):
    found = read(*map(part, files))
    assert [row.as_dicts() for row in found] == ONE + TWO
    assert [row.source for row in found] == [0] * 40 + [1] * 60


def test_a_weight_takes_that_share_and_a_larger_one_takes_more_of_the_same():
    rows = [tiny.conversation(("user", str(number))) for number in range(4000)]
    taken = {weight: {row.key for row in rows if is_taken(row, weight, 0)} for weight in (0.1, 0.25, 1.0)}
    for weight, keys in taken.items():
        assert abs(len(keys) - 4000 * weight) <= 4 * (4000 * weight * (1 - weight)) ** 0.5  # four standard deviations
    assert taken[0.1] < taken[0.25] < taken[1.0]
    other = {row.key for row in rows if is_taken(row, 0.25, 1)}
    assert abs(len(other & taken[0.25]) - 250) < 60  # another seed, other conversations


def test_a_share_does_not_depend_on_the_other_rows_and_thins_malformed_ones_too():
    row = tiny.conversation(("user", "a"))
    assert is_taken(row, 0.5, 3) == is_taken(Conversation(row.messages, "elsewhere:9"), 0.5, 3)
    bad = [Skipped(f"a:{number}", "bad_role") for number in range(2000)]
    assert abs(sum(is_taken(row, 0.1, 0) for row in bad) - 200) < 60


def test_the_plan_says_of_each_conversation_which_set_it_is_of(llama, files, tmp_path):
    plan = open_plan(job(llama, *map(part, files)), tmp_path / "cache")
    assert plan.sources == ["one.jsonl", "two.jsonl"]
    cache = open_cache(tmp_path / "cache")
    keys = cache.array("conversations/key").read()
    first = {row.key for row in read(part(files[0]))}
    assert cache.array("conversations/source").read().tolist() == [int(key not in first) for key in keys.tolist()]
    assert np.unique(cache.array("conversations/source").read()).tolist() == [0, 1]


def test_the_same_mixture_is_accepted_and_what_differs_is_named(llama, files, tmp_path):
    one, two = files
    plan = open_plan(job(llama, part(one), part(two, weight=0.5)), tmp_path / "cache")
    moved = one.rename(tmp_path / "moved.jsonl")
    assert open_plan(job(llama, part(moved), part(two, weight=0.5)), tmp_path / "cache") == plan
    for parts, field in (
        ([part(moved), part(two, weight=0.6)], "mixture.1.weight"), ([part(moved), part(two, weight=0.5, seed=1)],
         "mixture.1.seed"), ([part(two), part(two, weight=0.5)], "mixture.0.xxh3"),
    ):
        with pytest.raises(IdentityError) as error:
            open_plan(job(llama, *parts), tmp_path / "cache")
        assert f"  dataset.{field} " in str(error.value)
    with pytest.raises(IdentityError, match=r"roles"):
        open_plan(job(llama, part(moved), part(two, weight=0.5), roles=["user", "assistant"]), tmp_path / "cache")


def test_a_recipe_has_one_table_for_each_part(files, tmp_path):
    recipe = tmp_path / "mix.toml"
    recipe.write_text('[harvest]\nmodel = "m"\n' + "".join(
        f'[[harvest.mixture]]\ndataset = "{path}"\nweight = 0.5\n' for path in files))
    table = read_table(HarvestConfig, read_recipe(find_recipe(str(recipe)))["harvest"], "[harvest]")
    mixed = find_data(table, "chitchat", {})
    assert mixed.name == "one.jsonl + two.jsonl"
    assert re.fullmatch(r"[0-9a-f]{32}", mixed.identity["mixture"]["1"]["xxh3"])
    assert 20 < len([*mixed.read()]) < 80
