"""Grids: which SAEs a recipe asks for, in which groups, and who of several processes trains which."""

import itertools
import re
import tomllib
from pathlib import Path

import pytest
from pydantic import Field

from shared.errors import RecipeError
from shared.recipe import read_recipe
from train.architectures import ARCHITECTURES
from train.architectures.topk import TopKConfig, TopKSAE
from train.groups import plan_groups, share_of, train_configs
from train.policy import TokenPolicy

GRID = {
    "train": {"layer": [9, 15], "policy": [{}, {"keep_classes": ["assistant"]}]},
    "sae": [{"architecture": ["topk", "batchtopk"], "expansion": [2, 4], "k": [4, 8], "seed": [0, 1]},
            {"architecture": "standard", "l0": 20.0, "lr": [1e-3, 2e-3]}],
}


def groups(recipe, layers=()):
    return plan_groups(recipe, train_configs(recipe, layers), None, 64)


def short(sae):
    return sae.name.rsplit("-", 1)[0]


def test_every_combination_of_lists_is_an_sae_and_every_layer_and_policy_a_group():
    found = groups(GRID)
    assert [group.layer for group in found] == [9, 9, 15, 15]
    assert [group.train.policy for group in found] == [TokenPolicy(), TokenPolicy(keep_classes=("assistant",))] * 2
    topk = [f"{kind}-{width}-k{k}-s{seed}" for kind, width, k, seed in
            itertools.product(("topk", "batchtopk"), (128, 256), (4, 8), (0, 1))]
    for group in found:
        assert [short(sae) for sae in group.saes] == [*topk, *["standard-512-l0-20-s0"] * 2]
        assert [sae.config.lr for sae in group.saes[-2:]] == [1e-3, 2e-3]
        assert all(sae.recipe["layer"] == group.layer for sae in group.saes)
    names = [(group.layer, sae.name) for group in found for sae in group.saes]
    assert len({*names}) == len(names) == 72


def test_the_grid_of_the_readme_is_as_large_as_it_says():
    readme = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    [text] = [block for block in re.findall(r"```toml\n(.*?)```", readme, re.DOTALL) if "[[sae]]" in block]
    found = groups(tomllib.loads(text))
    assert "2 layers x 2 policies x 24 SAEs" in text
    assert [len(group.saes) for group in found] == [24] * 4


def test_an_sae_of_a_grid_has_the_name_that_it_has_alone():
    one = {"train": {"layer": 15, "policy": {"keep_classes": ["assistant"]}},
           "sae": [{"architecture": "batchtopk", "expansion": 4, "k": 8, "seed": 1}]}
    [alone] = groups(one)
    assert alone.saes[0].name in {sae.name for sae in groups(GRID)[3].saes}


def test_layers_on_the_command_line_come_before_the_recipes():
    assert [group.layer for group in groups(GRID, [3])] == [3, 3]


def test_an_override_changes_every_policy_and_every_table(tmp_path):
    path = tmp_path / "grid.toml"
    path.write_text("[train]\nlayer = 1\n[[train.policy]]\n[[train.policy]]\ndrop_classes = []\n"
                    "[[sae]]\n[[sae]]\nk = 4\n")
    recipe = read_recipe(path, ["train.policy.max_norm=3", "sae.seed=[5, 6]"])
    assert [config.policy.max_norm for config in train_configs(recipe)] == [3, 3]
    names = [f"batchtopk-512-k{k}-s{seed}" for k in (32, 4) for seed in (5, 6)]
    assert [short(sae) for sae in groups(recipe)[0].saes] == names


def test_a_key_whose_value_is_a_list_varies_over_a_list_of_lists(monkeypatch):
    class Nested(TopKConfig):
        shares: tuple[float, ...] = Field(default=())

    class NestedSAE(TopKSAE):
        Config = Nested

    monkeypatch.setitem(ARCHITECTURES, "nested", NestedSAE)
    for value, expected in (([0.5, 1.0], [(0.5, 1.0)]), ([[0.5, 1.0], [1.0]], [(0.5, 1.0), (1.0,)])):
        [group] = groups({"train": {"layer": 1}, "sae": [{"architecture": "nested", "shares": value}]})
        assert [sae.config.shares for sae in group.saes] == expected


@pytest.mark.parametrize(("table", "message"), [
    ({"architecture": ["topk", "relu"]}, r"\(architecture = relu\)\.architecture must be one of .*got 'relu'"),
    ({"architecture": "topk", "k": [4, 0]}, r"\(k = 0\)\.k: .*greater than or equal to 1; got 0"),
    ({"architecture": "topk", "k": [4, "x"]}, r"\(k = x\)\.k: .*valid integer"),
    ({"architecture": "topk", "seed": [1, 1]}, r"\(seed = 1\) is the same SAE as another one"),
    ({"architecture": "topk", "k": []}, r"\.k is an empty list"),
])
def test_mistakes_name_the_combination(table, message):
    with pytest.raises(RecipeError, match=message):
        groups({"train": {"layer": 1}, "sae": [table]})


@pytest.mark.parametrize("world_size", [1, 2, 3, 8, 100])
def test_processes_share_every_sae_once_in_pieces_of_about_equal_width(world_size):
    whole = groups(GRID)
    shares = [share_of(whole, rank, world_size) for rank in range(world_size)]
    together = [(group.layer, sae.name) for share in shares for group in share for sae in group.saes]
    assert together == [(group.layer, sae.name) for group in whole for sae in group.saes]  # each once, in order
    widths = [sum(sae.config.d_sae for group in share for sae in group.saes) for share in shares]
    assert max(widths) - sum(widths) / world_size <= 512  # the widest SAE is 512 latents
    assert sum(len(share) for share in shares) <= len(whole) + world_size - 1  # a group is divided where it must be
