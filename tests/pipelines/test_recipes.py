"""Every recipe in the repository can be run."""

from pathlib import Path

import pytest

from harvest.config import HarvestConfig
from pipelines.recipe import read_whole_recipe
from shared.recipe import RECIPES, read_recipe, read_table
from train.config import plan_saes, read_train_config, sae_tables

ALL = sorted(RECIPES.glob("*.toml"))


@pytest.mark.parametrize("path", ALL, ids=lambda path: path.stem)
def test_every_table_of_a_recipe_is_valid(path: Path):
    recipe = read_recipe(path)
    if "harvest" in recipe:
        # Those of the paper leave the model to the command line: MODEL=...
        read_table(HarvestConfig, {"model": "org/name", **recipe["harvest"]}, "[harvest]")
    train = read_train_config(recipe)
    assert plan_saes(sae_tables(recipe, None), train, train.layer or 0, 576)


@pytest.mark.parametrize("path", ALL, ids=lambda path: path.stem)
def test_every_recipe_takes_other_widths(path: Path):
    recipe = read_recipe(path)
    train = read_train_config(recipe)
    as_written, planned = (plan_saes(sae_tables(recipe, widths), train, 0, 576) for widths in (None, [2.0, 4.0]))
    assert {sae.config.d_sae for sae in planned} == {1152, 2304}
    assert {sae.architecture for sae in planned} == {sae.architecture for sae in as_written}


def test_the_demo_is_a_whole_recipe():
    recipe = read_whole_recipe("demo")
    assert recipe.harvest.model == "smollm2-135m-instruct"
    assert recipe.harvest.layers == [9, 15]
    assert [(sae.architecture, sae.config.d_sae) for sae in recipe.plan(576)] == [
        ("batchtopk", 4608), ("jumprelu", 4608), ("standard", 4608)]
