"""Recipes of the train stage, and the names of SAEs."""

import pytest

from shared.errors import RecipeError
from shared.recipe import read_recipe
from train.config import plan_saes, read_train_config, sae_tables


def plans(recipe, expansions=None, d_in=64):
    return plan_saes(sae_tables(recipe, expansions), read_train_config(recipe), 9, d_in)


def test_without_a_recipe_there_are_two_batchtopk_saes():
    assert [plan.name.rsplit("-", 1)[0] for plan in plans({})] == ["batchtopk-512-k32-s0", "batchtopk-1024-k32-s0"]


def test_expansions_repeat_every_table_of_the_recipe():
    recipe = {"sae": [{"architecture": "topk", "k": 4}, {"architecture": "jumprelu", "l0": 20.0}]}
    names = [plan.name.rsplit("-", 1)[0] for plan in plans(recipe, [2.0, 4.0])]
    assert names == ["topk-128-k4-s0", "topk-256-k4-s0", "jumprelu-128-l0-20-s0", "jumprelu-256-l0-20-s0"]


@pytest.mark.parametrize(("override", "names"), [
    ("sae.k=5", ["batchtopk-512-k5-s0", "batchtopk-1024-k5-s0"]),
    ("sae.architecture=topk", ["topk-512-k32-s0", "topk-1024-k32-s0"]),
    ("sae.expansion=2", ["batchtopk-128-k32-s0"]),
    ("sae.d_sae=99", ["batchtopk-99-k32-s0"]),
])
def test_an_override_alone_changes_the_default(override, names):
    assert [plan.name.rsplit("-", 1)[0] for plan in plans(read_recipe(None, [override]))] == names


def test_a_table_of_a_recipe_that_gives_no_width_is_one_sae():
    assert [plan.config.d_sae for plan in plans({"sae": [{"k": 5}]})] == [512]


def test_a_name_depends_on_what_the_weights_depend_on():
    name = plans({})[0].name
    assert plans({"train": {"checkpoint_minutes": 9.0, "log_steps": 3}})[0].name == name
    for train in ({"lr": 1e-3}, {"data_seed": 1}, {"policy": {"max_norm": 5.0}}, {"batch_size": 7}):
        assert plans({"train": train})[0].name != name


def test_a_width_given_either_way_is_the_same_sae():
    one = plans({"sae": [{"architecture": "topk", "expansion": 4.0}]})
    other = plans({"sae": [{"architecture": "topk", "d_sae": 256}]})
    assert one[0].name == other[0].name


@pytest.mark.parametrize(("recipe", "message"), [
    ({"sae": [{"architecture": "topkk"}]}, r"architecture must be one of standard, gated, jumprelu.*got 'topkk'"),
    ({"sae": [{"architecture": "topk", "kk": 3}]}, r"unknown key 'kk'\. Did you mean 'k'"),
    ({"sae": [{"architecture": "topk", "k": 0}]}, r"\[\[sae\]\]\.k: .*greater than or equal to 1; got 0"),
    ({"sae": [{"architecture": "topk"}, {"architecture": "topk"}]}, "number 2 is the same SAE as another"),
    ({"train": {"warmup_share": 0.5, "decay_share": 0.8}},
     r"warmup_share \(0\.5\) and decay_share \(0\.8\) must add up to 1 at most"),
    ({"train": {"num_tokens": 100, "epochs": 2.0}}, r"num_tokens \(100\) and epochs \(2\.0\) both say how long"),
    ({"train": {"lr": float("inf")}}, r"\[train\]\.lr: .*finite"),
    ({"train": {"watch": "wandb"}}, r"\[train\]\.watch: expected a list such as \[\"wandb\"\]; got 'wandb'"),
    ({"sae": [{"architecture": "topk", "seed": 2**63}]}, r"\[\[sae\]\]\.seed: .*less than"),
    ({"train": {"calibration_types": 5}}, r"calibration_types: expected a list such as \[5\]; got 5"),
    ({"sae": [{"architecture": "topk", "warm_start": 5}]}, "warm_start must be the folder of an SAE; got 5"),
    ({"train": {"policy": {"drop_class": ["first"]}}}, r"\[train\]\.policy: unknown key 'drop_class'"),
])
def test_mistakes_are_named(recipe, message):
    with pytest.raises(RecipeError, match=message):
        plans(recipe)


def test_the_name_of_an_sae_depends_on_a_later_field_only_where_it_is_used():
    train = read_train_config({})

    def name(**fields):
        (plan,) = plan_saes([{"architecture": "topk", **fields}], train, 9, 64)
        return plan.name, plan.recipe["sae"]

    assert name() == name(frozen_decoder=False)
    assert "frozen_decoder" not in name()[1]
    assert name(frozen_decoder=True)[0] != name()[0]
    assert name(frozen_decoder=True)[1]["frozen_decoder"]
