"""[[sae]] tables whose values are lists: one SAE for each combination.

    [[sae]]
    architecture = ["topk", "batchtopk"]
    expansion = [8, 16]
    k = [16, 32, 64]
    seed = [0, 1]                   # 2 x 2 x 3 x 2 = 24 SAEs

A key whose one value is a list itself takes a list of lists to vary.
"""

import itertools
import typing
from collections.abc import Iterator, Sequence
from typing import Any

from shared.errors import RecipeError
from train.architectures import ARCHITECTURES


def sae_points(tables: Sequence[dict[str, Any]]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each SAE of some [[sae]] tables: what to call it in a message, and its table without lists.

    Raises:
        RecipeError: a list is empty.
    """
    for number, table in enumerate(tables):
        where = "[[sae]]" if len(tables) == 1 else f"[[sae]] number {number + 1}"
        empty = [key for key, value in table.items() if value == []]
        if empty:
            raise RecipeError(f"{where}.{empty[0]} is an empty list. Give it a value, or leave it out.")
        for architecture in as_list(table.get("architecture")):
            axes = {key: [architecture] if key == "architecture" else _values(architecture, key, value)
                    for key, value in table.items()}
            varied = [key for key, values in axes.items()
                      if len(values) > 1 or (key == "architecture" and isinstance(table[key], list))]
            for point in itertools.product(*axes.values()):
                chosen = dict(zip(axes, point, strict=True))
                shown = ", ".join(f"{key} = {chosen[key]}" for key in varied)
                yield f"{where} ({shown})" if shown else where, chosen


def as_list(value: Any) -> list[Any]:
    """A list as it is, nothing as none, and anything else as a list of it."""
    if value is None:
        return []
    return list(value) if isinstance(value, list) else [value]


def _values(architecture: object, key: str, value: Any) -> list[Any]:
    """The values that one key of a table stands for."""
    if not isinstance(value, list):
        return [value]
    known = ARCHITECTURES.get(architecture) if isinstance(architecture, str) else None
    field = known.Config.model_fields.get(key) if known is not None else None
    if field is not None and _takes_a_list(field.annotation) and not any(isinstance(item, list) for item in value):
        return [value]
    return list(value)


def _takes_a_list(annotation: Any) -> bool:
    return typing.get_origin(annotation) in {tuple, list} or any(map(_takes_a_list, typing.get_args(annotation)))
