"""How the SAEs of a comparison were made: their resolved recipes as TOML that `python -m train run` takes again."""

import json
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from pipelines.comparison.members import Member
from pipelines.comparison.sets import SeedSet


def commands_of(one: SeedSet) -> list[tuple[str, str]]:
    """What makes the SAEs of a set: a recipe as TOML and the command that takes it, one for each order of rows.

    Of a baseline or an SAE that was made elsewhere the first is empty.
    """
    first = one.members[0]
    evaluation = first.run.evaluation
    layer, cache = str(evaluation["layer"]), str(evaluation["cache"])
    if "recipe" not in first.record:
        kind = ["--baselines"] if "baseline" in evaluation else ["--sae", str(evaluation["source"])]
        return [("", shlex.join(["python", "-m", "pipelines", "evaluate", "--layer", layer, "--cache", cache, *kind]))]
    by_order: dict[int, list[Member]] = {}
    for member in one.members:
        by_order.setdefault(member.record["recipe"]["train"]["data_seed"], []).append(member)
    command = shlex.join(["python", "-m", "train", "run", "--recipe", "recipe.toml", "--cache", cache])
    return [(as_toml(members), command) for members in by_order.values()]


def as_toml(members: Sequence[Member]) -> str:
    """The recipe of SAEs that differ in the seed of their weights alone."""
    record = members[0].record
    recipe = record["recipe"]
    seeds = [member.record["recipe"]["sae"]["seed"] for member in members]
    train = {"layer": recipe["layer"], **recipe["train"]}
    sae = {**recipe["sae"], "seed": seeds if len(seeds) > 1 else seeds[0]}
    if record.get("warm_start"):
        sae["warm_start"] = record["warm_start"]["folder"]
    tables = {name: value for name, value in train.items() if isinstance(value, Mapping)}
    lines = ["[train]", *_pairs(train)]
    for name, table in tables.items():
        lines += ["", f"[train.{name}]", *_pairs(table)]
    return "\n".join([*lines, "", "[[sae]]", *_pairs(sae)]) + "\n"


def _pairs(table: Mapping[str, Any]) -> list[str]:
    """Lines of key = value; what is None is left out, for TOML has no such value and it is a default."""
    return [f"{key} = {json.dumps(value)}" for key, value in table.items()
            if value is not None and not isinstance(value, Mapping)]
