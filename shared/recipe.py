"""Recipes: TOML files with one table a stage, validated whole before anything is loaded.

This module reads the file and the ``--set`` overrides and knows which tables there are. What may stand
in a table is each stage's own pydantic model, which derives from `Table`.
"""

import json
import tomllib
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from shared.errors import RecipeError

TABLES = ("harvest", "train", "sae")
"""The tables of a recipe. ``[[sae]]`` may be there several times, once for each SAE to train."""

RECIPES = Path("pipelines/recipes")

DEFAULT_SAES: tuple[dict[str, Any], ...] = ({"architecture": "batchtopk", "expansion": [8.0, 16.0]},)
"""The [[sae]] tables of a recipe that has none, before overrides: BatchTopK at two widths."""

_IN_PLACE_OF = {"train.num_tokens": "epochs", "train.epochs": "num_tokens",
                "sae.d_sae": "expansion", "sae.expansion": "d_sae"}
"""Keys that say the same thing in two ways: an override of one drops the recipe's other."""

RawRecipe = dict[str, Any]
"""A recipe as read, before a stage has validated its tables."""


class Table(BaseModel):
    """Base of every recipe table: frozen, no unknown keys, the docstring under a field describes it."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)


TableT = TypeVar("TableT", bound=BaseModel)


def find_recipe(name: str) -> Path:
    """The path of a recipe called by name ("demo") or by path ("my/recipe.toml").

    Raises:
        RecipeError: there is no such recipe; the message lists those there are.
    """
    path = Path(name) if name.endswith(".toml") else RECIPES / f"{name}.toml"
    if not path.is_file():
        known = sorted(p.stem for p in RECIPES.glob("*.toml"))
        hint = _did_you_mean(name, known)
        raise RecipeError(f"No recipe {name!r}.{hint} Known recipes: {', '.join(known)}; or a path to a .toml file.")
    return path


def read_recipe(path: Path | None, overrides: Sequence[str] = ()) -> RawRecipe:
    """Read a recipe and apply ``table.key=value`` overrides (values are TOML; bare words are strings).

    An override of ``sae`` changes every ``[[sae]]`` entry (`DEFAULT_SAES` where there is none), and so with every
    table that is there several times.

    Raises:
        RecipeError: the file is no TOML, a table is unknown, or an override is malformed.
    """
    recipe: RawRecipe = {}
    if path is not None:
        try:
            recipe = tomllib.loads(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise RecipeError(f"{path} is not a readable TOML file: {error}. Mend it; pipelines/recipes/ has "
                              "examples.") from error
    for table in recipe:
        if table not in TABLES:
            raise RecipeError(f"{path}: unknown table [{table}].{_did_you_mean(table, TABLES)} "
                              f"Tables: {', '.join(TABLES)}.")
        _check_table(path, table, recipe[table])
    keys = {override.partition("=")[0].strip() for override in overrides}
    if "sae" not in recipe and any(key.startswith("sae.") for key in keys):
        # The source of a warm start brings its width along.
        dropped = {"expansion"} if "sae.warm_start" in keys else set()
        recipe["sae"] = [{key: value for key, value in table.items() if key not in dropped} for table in DEFAULT_SAES]
    for override in overrides:
        _apply(recipe, override)
    return recipe


def read_table(model: type[TableT], table: Mapping[str, object], where: str) -> TableT:
    """Validate one table by its model. ``where`` ("[train]") is quoted in messages.

    Raises:
        RecipeError: every problem on a line of its own, each with the key, the value and what was expected.
    """
    try:
        return model.model_validate(dict(table))
    except ValidationError as error:
        raise RecipeError("\n".join(_explain(problem, model, where) for problem in error.errors())) from None


def _check_table(path: Path | None, name: str, value: object) -> None:
    entries = value if name == "sae" and isinstance(value, list) else [value]
    if not all(isinstance(entry, dict) for entry in entries):
        shape = "[[sae]] tables" if name == "sae" else f"a table [{name}]"
        raise RecipeError(f"{path}: {name} must be {shape}; got {value!r}.")


def _apply(recipe: RawRecipe, override: str) -> None:
    key, equals, text = override.partition("=")
    path = key.strip().split(".")
    if not equals or len(path) < 2 or path[0] not in TABLES:
        raise RecipeError(f"--set {override!r}: expected TABLE.KEY=VALUE with a table of {', '.join(TABLES)}, "
                          "for example train.lr=1e-3.")
    value = _parse_value(text.strip())
    table = recipe.setdefault(path[0], {})
    entries = table if isinstance(table, list) else [table]
    for part in path[1:-1]:
        inner = [entry.setdefault(part, {}) for entry in entries]
        entries = [entry for found in inner for entry in (found if isinstance(found, list) else [found])]
        for entry in entries:
            if not isinstance(entry, dict):
                raise RecipeError(f"--set {override!r}: {part} is no table; it is {entry!r}. "
                                  "Expected TABLE.KEY=VALUE.")
    for entry in entries:
        entry[path[-1]] = value
        entry.pop(_IN_PLACE_OF.get(key.strip(), ""), None)


def _parse_value(text: str) -> object:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text  # a bare word: --set harvest.model=org/name


def _explain(problem: Any, model: type[BaseModel], where: str) -> str:
    """One line for one pydantic error: ``[train]: unknown key 'lrr'. Did you mean 'lr'?``"""
    location = [str(part) for part in problem["loc"]]
    if problem["type"] == "extra_forbidden":
        fields: type[BaseModel] = model
        for part in location[:-1]:
            inner = fields.model_fields[part].annotation if part in fields.model_fields else None
            if not (isinstance(inner, type) and issubclass(inner, BaseModel)):
                break
            fields = inner
        place = ".".join([where, *location[:-1]])
        return f"{place}: unknown key {location[-1]!r}.{_did_you_mean(location[-1], list(fields.model_fields))}"
    place = ".".join([where, *location])
    if problem["type"] == "missing":
        return f"{place} is missing. Put it into the recipe, or: --set {place.replace('[', '').replace(']', '')}=VALUE"
    if problem["type"] in {"tuple_type", "list_type"}:
        example = json.dumps([problem["input"]], default=str)
        return f"{place}: expected a list such as {example}; got {problem['input']!r}."
    message = problem["msg"].removeprefix("Value error, ").removeprefix("Input ")
    return f"{place}: {message[0].lower() + message[1:]}; got {problem['input']!r}."


def _did_you_mean(word: str, known: Sequence[str]) -> str:
    close = get_close_matches(word, known, n=1, cutoff=0.5)
    return f" Did you mean {close[0]!r}?" if close else ""
