"""A whole recipe: every table validated by its own stage's model before either stage starts."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harvest.config import HarvestConfig
from shared.errors import RecipeError
from shared.recipe import find_recipe, read_recipe, read_table
from train.config import SAEPlan, TrainConfig, plan_saes, read_train_config, sae_tables

_ANY_WIDTH = 4096
"""Stands for d_model while the tables are checked: the model's own is known only once it is found."""


@dataclass(frozen=True)
class WholeRecipe:
    """The validated tables of a recipe that goes from conversations to SAEs."""

    name: str
    harvest: HarvestConfig
    train: TrainConfig
    layer: int
    tables: list[dict[str, Any]]
    """The [[sae]] tables, each known to be valid."""

    def plan(self, d_in: int) -> list[SAEPlan]:
        """The SAEs to train on inputs of width ``d_in``."""
        return plan_saes(self.tables, self.train, self.layer, d_in)


def read_whole_recipe(name: str, overrides: Sequence[str] = ()) -> WholeRecipe:
    """Read a recipe by name or path, with ``table.key=value`` overrides, and validate all of its tables.

    Raises:
        RecipeError: there is no such recipe, or something in it is wrong; nothing has been loaded yet.
    """
    path = find_recipe(name)
    raw = read_recipe(path, overrides)
    harvest = read_table(HarvestConfig, raw.get("harvest", {}), "[harvest]")
    train = read_train_config(raw)
    tables = sae_tables(raw, None)
    if train.layer is None:
        raise RecipeError(f"{path}: [train].layer is missing. Say which layer to train on: --set train.layer=9")
    if harvest.layers is not None and train.layer not in harvest.layers:
        raise RecipeError(f"{path}: [train].layer is {train.layer}, but [harvest].layers are {harvest.layers}. "
                          f"Train on one of those: --set train.layer={harvest.layers[0]}")
    plan_saes(tables, train, train.layer, _ANY_WIDTH)
    return WholeRecipe(Path(name).stem, harvest, train, train.layer, tables)
