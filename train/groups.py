"""Which SAEs a recipe asks for over layers and token policies, in groups that share every batch.

    [train]
    layer = [9, 15]                 # the same SAEs on each layer

    [[train.policy]]                # and with each policy: this one is the default
    [[train.policy]]
    keep_classes = ["assistant"]

SAEs on the same layer and policy are a group: they share batch size, data_seed, and so reads, transfers and
statistics. Lists in [[sae]] tables are `train.grid`'s.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from shared.errors import RecipeError
from shared.recipe import RawRecipe
from train.config import SAEPlan, TrainConfig, plan_saes, read_train_config, sae_tables
from train.grid import as_list


@dataclass(frozen=True)
class Group:
    """SAEs that share a layer and a token policy, and so every batch."""

    layer: int
    train: TrainConfig
    saes: list[SAEPlan]


def train_configs(recipe: RawRecipe, layers: Sequence[int] = ()) -> list[TrainConfig]:
    """The [train] table for each layer and token policy; ``layers`` come before the recipe's.

    Raises:
        RecipeError: no layer is given, or a table is wrong.
    """
    table = recipe.get("train", {})
    chosen = list(layers) or as_list(table.get("layer"))
    if not chosen:
        raise RecipeError("Which layer? Give --layer L (make train: LAYER=L), or layer in the recipe's [train] table.")
    policies: list[dict[str, Any]] = [{"policy": policy} for policy in as_list(table.get("policy"))] or [{}]
    return [read_train_config({**recipe, "train": {**table, "layer": layer, **policy}})
            for layer in chosen for policy in policies]


def plan_groups(recipe: RawRecipe, configs: Sequence[TrainConfig], expansions: Sequence[float] | None,
                d_in: int) -> list[Group]:
    """The SAEs of a recipe for each of `train_configs`, on inputs of width ``d_in``.

    Raises:
        RecipeError: a [[sae]] table is wrong, or the same SAE is asked for twice.
    """
    tables = sae_tables(recipe, expansions)
    groups: list[Group] = []
    for train in configs:
        assert train.layer is not None
        if any((other.layer, other.train.policy) == (train.layer, train.policy) for other in groups):
            raise RecipeError(f"[train] asks for layer {train.layer} with the policy \"{train.policy.describe()}\" "
                              "twice. Leave one of them out.")
        groups.append(Group(train.layer, train, plan_saes(tables, train, train.layer, d_in)))
    return groups


def share_of(groups: Sequence[Group], rank: int, world_size: int) -> list[Group]:
    """What process ``rank`` of ``world_size`` trains: neighbours, of about equal width in sum.

    It depends on the recipe alone. Neighbours share their layer's batches, so a layer is read by few processes.
    """
    widths = [sae.config.d_sae or 1 for group in groups for sae in group.saes]
    total, before, place, shares = sum(widths), 0, 0, []
    for group in groups:
        mine = []
        for sae in group.saes:
            middle = before + widths[place] / 2
            if int(middle * world_size / total) == rank:
                mine.append(sae)
            before, place = before + widths[place], place + 1
        if mine:
            shares.append(Group(group.layer, group.train, mine))
    return shares
