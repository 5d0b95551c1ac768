"""``python -m pipelines demo``: conversations -> cache -> SAEs -> a page that shows them."""

import shlex
from pathlib import Path

import click

from harvest.commands.options import cache_path
from harvest.device import find_device
from harvest.job import prepare
from pipelines.demo import Places, Result, remove_all, run_recipe
from pipelines.recipe import read_whole_recipe
from shared.redaction import without_secrets

LOSS_TOKENS = 3_000
"""Held-out tokens that the language model is run on: for three SAEs about eight passes of the whole model over them."""

_EPILOG = """\b
Examples:
  python -m pipelines demo
  python -m pipelines demo --set harvest.num_tokens=60000 --set train.num_tokens=150000
  python -m pipelines demo --recipe my/recipe.toml --cache /scratch/mine
The same command again goes on where it stopped, and skips what is done.
"""


@click.command(epilog=_EPILOG)
@click.option("--recipe", "recipe_name", metavar="NAME", default="demo", show_default=True,
              help="A recipe of pipelines/recipes/ with tables [harvest], [train] and [[sae]], or a .toml file.")
@click.option("--set", "overrides", multiple=True, metavar="TABLE.KEY=VALUE", help="Change a value of the recipe.")
@click.option("--cache", "cache_name", metavar="NAME|PATH", help="Default: caches/<recipe>.")
@click.option("--runs", type=click.Path(path_type=Path, file_okay=False), default=Path("runs"), show_default=True,
              help="Folder for results.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
@click.option("--loss-tokens", type=click.IntRange(min=0), default=LOSS_TOKENS, show_default=True,
              help="Held-out tokens that the language model is run on with each SAE in it. 0: leave that out.")
@click.option("--fresh", is_flag=True, help="Start over: remove this recipe's cache, SAEs and page. Asks first.")
@click.option("--yes", is_flag=True, help="Do not ask.")
def demo(recipe_name: str, overrides: tuple[str, ...], cache_name: str | None, runs: Path, device: str,
         loss_tokens: int, fresh: bool, yes: bool) -> None:
    """Harvest, train, evaluate and report: everything there is, in one go.

    Leaves a cache, one folder for each SAE, and a page that opens in a browser.
    """
    recipe = read_whole_recipe(recipe_name, overrides)
    places = Places(cache_path(cache_name or recipe.name), runs)
    where = find_device(device)
    if fresh:
        saes = recipe.plan(prepare(recipe.harvest, where).d_model)
        if not yes:
            click.confirm(f"Remove {places.cache}, {places.report} and the recipe's {len(saes)} SAEs?", abort=True)
        remove_all(recipe, places, saes)
    typed = _typed(recipe_name, overrides, cache_name, runs, loss_tokens)
    result = run_recipe(recipe, places, where, loss_tokens, typed, say=lambda line: click.echo(line, err=True))
    for line in closing_lines(result, places):
        click.echo(line)


def closing_lines(result: Result, places: Places) -> list[str]:
    """Where everything is, and what to type next."""
    cache = result.cache
    others = [layer for layer in cache.layers if layer != result.layer]
    lines = [
        "",
        f"page     {result.page}",
        f"cache    {places.cache}  (layers {', '.join(map(str, cache.layers))})",
        *(f"{'SAEs' if number == 0 else '    '}     {folder}" for number, folder in enumerate(result.folders)),
        "",
        "next",
        f"  open {result.page} in a browser",
    ]
    lines += [f"  make train LAYER={layer}{_cache_variable(places)}" for layer in others[:1]]
    return [*lines, "  or in a notebook, started here:",
            "    import torch",
            "    from shared import open_cache",
            "    from train.export import load_sae",
            f'    cache, sae = open_cache("{places.cache}"), load_sae("{result.folders[0]}")',
            f'    rows = cache.rows(layer={result.layer}, classes=["assistant"], split="held_out")',
            f"    x = cache.layer({result.layer})[rows[:100]].astype(\"float32\")      # numpy [100, {cache.d_model}]",
            "    latents = sae.encode(torch.from_numpy(x))         # [100, d_sae], and sae.decode(latents)",
            "    print(cache.tokens(rows[:20]))"]


def _cache_variable(places: Places) -> str:
    """What ``make train`` must be told of the cache: nothing, where it lies under caches/."""
    return "" if places.cache == Path("caches") / places.cache.name else f" CACHE={shlex.quote(str(places.cache))}"


def _typed(recipe_name: str, overrides: tuple[str, ...], cache_name: str | None, runs: Path,
           loss_tokens: int) -> str:
    """The command that was typed, without what leaves the result as it is."""
    words = ["python", "-m", "pipelines", "demo"]
    if recipe_name != "demo":
        words += ["--recipe", recipe_name]
    for override in overrides:
        words += ["--set", override]
    if cache_name is not None:
        words += ["--cache", cache_name]
    if runs != Path("runs"):
        words += ["--runs", str(runs)]
    if loss_tokens != LOSS_TOKENS:
        words += ["--loss-tokens", str(loss_tokens)]
    return without_secrets(shlex.join(words))
