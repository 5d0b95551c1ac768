"""The options that `harvest run` and `harvest plan` share, and what they resolve to."""

import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click

from harvest.config import HarvestConfig
from harvest.device import find_device
from harvest.job import ALLOWED, Job, prepare
from shared.errors import RecipeError
from shared.format.layout import PLAN
from shared.format.plan import read_plan
from shared.recipe import find_recipe, read_recipe, read_table
from shared.registry import MODELS
from shared.writing.writers import remove_cache

CACHES = Path("caches")

CommandT = TypeVar("CommandT", bound=Callable[..., Any])


def source_options(command: CommandT) -> CommandT:
    """Add the options that name a model and a data set to a command."""
    return _add(command, [
        click.option("--model", help="Alias, hub id org/name, or local folder."),
        click.option("--dataset", help="File, folder or pattern of files (JSONL, Parquet, Arrow; .gz, .zst), alias or "
                                       "hub id. Default: the model's."),
        click.option("--recipe", help="Recipe of pipelines/recipes, or a .toml file."),
        click.option("--set", "overrides", multiple=True, metavar="TABLE.KEY=VALUE", help="Override a recipe's key."),
    ])


def harvest_options(command: CommandT) -> CommandT:
    """Add the shared options to a command: those that name model and data set, and those of the cache."""
    return source_options(_add(command, [
        click.option("--num-tokens", type=int, help="Training rows wanted; rounded up to whole units."),
        click.option("--layers", help='Decoder layers, 0-based: "4 12 20".'),
        click.option("--cache", "cache_name", help="Name under caches/, or a path. Default: from model and data."),
        click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N."),
        click.option("--allow", multiple=True, type=click.Choice(ALLOWED),
                     help="Let a run differ from the cache's plan: batch-budget takes this run's or device's own."),
        click.option("--processes", type=click.IntRange(min=1), default=os.cpu_count,
                     help="Processes that encode the conversations of a new plan. Default: the cores."),
        click.option("--fresh", is_flag=True, help="Remove the cache that is there and start over (asks)."),
        click.option("--yes", is_flag=True, help="Answer yes to --fresh."),
    ]))


def _add(command: CommandT, options: Sequence[Callable[[CommandT], CommandT]]) -> CommandT:
    for option in reversed(options):
        command = option(command)
    return command


def resolve(
    model: str | None, dataset: str | None, num_tokens: int | None, layers: str | None, cache_name: str | None,
    recipe: str | None, overrides: tuple[str, ...], device: str, fresh: bool, yes: bool, allow: tuple[str, ...] = (),
) -> tuple[Job, Path]:
    """The job and the cache folder that the options name; options win over ``--set`` and the recipe.

    Raises:
        UserError: anything that is wrong with the options, the model or the data set.
    """
    raw = read_recipe(find_recipe(recipe) if recipe else None, overrides)
    table = dict(raw.get("harvest", {}))
    named = {"model": model, "dataset": dataset, "num_tokens": num_tokens, "layers": parse_numbers(layers, "--layers")}
    table |= {key: value for key, value in named.items() if value is not None}
    if "model" not in table and table.keys() <= HarvestConfig.model_fields.keys():
        raise RecipeError(f"No model given. Expected --model (make: MODEL=) with one of {', '.join(MODELS)}, "
                          "a hub id org/name or a local folder.")
    config = read_table(HarvestConfig, table, "[harvest]")
    cache = cache_path(cache_name or default_cache_name(config, recipe))
    there = read_plan(cache) if (cache / PLAN).exists() and not fresh else None
    job = prepare(config, find_device(device), there, allow)
    if fresh and cache.exists():
        if not yes:
            click.confirm(f"Remove {cache} and all that is in it?", abort=True)
        remove_cache(cache)
    return job, cache


def cache_path(name: str) -> Path:
    """A cache's folder: a bare name lies under caches/.

    Raises:
        RecipeError: a URL, or a file; caches are folders.
    """
    if "://" in name:
        raise RecipeError(f"--cache {name!r}: a cache is a folder of a file system. Mount it, and give its path.")
    path = Path(name) if "/" in name or name in {".", ".."} else CACHES / name
    if path.is_file():
        raise RecipeError(f"{str(path)!r} is a file, and a cache is a folder. Choose another place: --cache NAME "
                          "(make: CACHE=name)")
    return path


def default_cache_name(config: HarvestConfig, recipe: str | None) -> str:
    """The recipe's name, or the model's with the data set's where that is not the model's own."""
    if recipe:
        return Path(recipe).stem
    model = _slug(config.model)
    if config.mixture:
        return f"{model}-mixture"
    return f"{model}-{_slug(Path(config.dataset).stem.removesuffix('.jsonl'))}" if config.dataset else model


def _slug(name: str) -> str:
    tail = name.rstrip("/").split("/")[-1].lower()
    return "".join(char if char.isalnum() or char in "._-" else "-" for char in tail).lstrip(".") or "cache"


def parse_numbers(text: str | None, option: str) -> list[int] | None:
    """Numbers of layers or units, separated by spaces or commas; "3-7" is a range.

    Raises:
        RecipeError: anything else.
    """
    if text is None:
        return None
    numbers: list[int] = []
    for word in text.replace(",", " ").split():
        match = re.fullmatch(r"(\d{1,9})(?:-(\d{1,9}))?", word)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (0, -1)
        if not first <= last < first + 1_000_000:
            raise RecipeError(f"{option} {text!r}: expected numbers from 0 like \"4 12 20\", or ranges like \"0-3\".")
        numbers += range(first, last + 1)
    return numbers
