"""``python -m train run``: train a set of SAEs on one layer of a cache, then evaluate them."""

import json
from pathlib import Path

import click
import torch

from shared.errors import RecipeError
from shared.format.layout import PLAN
from shared.recipe import find_recipe, read_recipe
from train.choose_cache import CACHES, choose_cache
from train.config import plan_saes, read_train_config, sae_tables
from train.evaluate import EVAL, evaluate_saes, not_evaluated
from train.run import train_saes
from train.summary import print_summary, summary_console
from train.training_set import layer_folder, start_over

_EPILOG = """\b
Example:
  python -m train run --layer 9 --expansion "8 16" --set sae.k=32
  python -m train run --recipe demo --cache caches/demo --layer 9
The same command again goes on where it stopped. Results are under runs/<cache>/layer<L>/.
"""


@click.command(epilog=_EPILOG)
@click.option("--recipe", "recipe_name", metavar="NAME", help="A recipe of pipelines/recipes/, or a .toml file.")
@click.option("--cache", "cache_name", metavar="NAME|PATH",
              help="Default: the recipe's, or the one under caches/ that holds the layer.")
@click.option("--layer", type=click.IntRange(min=0), help="The layer to train on, 0-based.")
@click.option("--set", "overrides", multiple=True, metavar="TABLE.KEY=VALUE", help="Change a value of the recipe.")
@click.option("--expansion", metavar='"8 16"', help="Widths as multiples of d_model, one SAE each.")
@click.option("--runs", type=click.Path(path_type=Path, file_okay=False), default=Path("runs"), show_default=True,
              help="Folder for results.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
@click.option("--threads", type=click.IntRange(min=1), help="CPU threads. Default: torch's.")
@click.option("--fresh", is_flag=True, help="Start over: remove what these SAEs have left. Asks first.")
@click.option("--yes", is_flag=True, help="Do not ask.")
def run(recipe_name: str | None, cache_name: str | None, layer: int | None, overrides: tuple[str, ...],
        expansion: str | None, runs: Path, device: str, threads: int | None, fresh: bool, yes: bool) -> None:
    """Train SAEs on one layer of a cache and evaluate them on its held-out conversations.

    Without a recipe: BatchTopK at 8x and 16x the model's width, k = 32.
    """
    recipe = read_recipe(find_recipe(recipe_name) if recipe_name else None, overrides)
    train = read_train_config(recipe)
    tables = sae_tables(recipe, _expansions(expansion))
    layer = layer if layer is not None else train.layer
    if layer is None:
        raise RecipeError("Which layer? Give --layer L (make train: LAYER=L), or layer in the recipe's [train] table.")
    plan_saes(tables, train, layer, 4096)  # every mistake in the recipe is found before a cache is opened
    if cache_name is None and recipe_name is not None and (CACHES / Path(recipe_name).stem / PLAN).exists():
        cache_name = Path(recipe_name).stem  # the cache that the same recipe harvests
    cache = choose_cache(cache_name, layer)
    saes = plan_saes(tables, train, layer, cache.d_model)
    device = _device(device)
    if threads is not None:
        torch.set_num_threads(threads)
    folder = layer_folder(runs, cache, layer)
    if fresh and any((folder / sae.name).exists() for sae in saes):
        names = "\n  ".join(str(folder / sae.name) for sae in saes)
        if not yes:
            click.confirm(f"Remove and train again:\n  {names}\nGo on?", abort=True)
        start_over(folder, saes)
    folders = train_saes(cache, layer, train, saes, runs=runs, device=device,
                         say=lambda line: click.echo(line, err=True))
    missing = not_evaluated(cache, layer, folders)
    if missing and not evaluate_saes(cache, layer, missing, device):
        click.echo(f"Warning: {cache.path} has no held-out rows of layer {layer}, so there is no eval.json. Harvest "
                   "with a held-out share to get figures.", err=True)
    evaluations = [json.loads((path / EVAL).read_text(encoding="utf-8")) for path in folders if (path / EVAL).exists()]
    if evaluations:
        print_summary(evaluations, summary_console())
    for path in folders:
        click.echo(str(path))


def _expansions(text: str | None) -> list[float] | None:
    if not text:
        return None
    try:
        values = [float(part) for part in text.replace(",", " ").split()]
    except ValueError:
        values = []
    if not values or min(values) <= 0:
        raise RecipeError(f"--expansion must be positive numbers such as \"8 16\"; got {text!r}.")
    return values


def _device(name: str) -> str:
    count = torch.cuda.device_count()
    if name == "auto":
        return "cuda" if count else "cpu"
    known = ["cpu", "cuda", *(f"cuda:{number}" for number in range(count))]
    if name not in known or (name == "cuda" and not count):
        raise RecipeError(f"--device {name!r}: there are {count} CUDA devices here. Take auto, cpu"
                          + (", cuda or cuda:N." if count else "."))
    if name.startswith("cuda:"):
        torch.cuda.set_device(name)  # streams and events are the current device's
    return name
