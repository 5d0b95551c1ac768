"""``python -m train run``: train the SAEs that a recipe asks for, then evaluate them."""

import json
import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import click
import torch

from shared.errors import RecipeError
from shared.format.layout import PLAN
from shared.reading.cache import Cache
from shared.recipe import find_recipe, read_recipe
from train.choose_cache import CACHES, choose_cache
from train.determinism import be_deterministic
from train.dry_run import print_plan
from train.evaluation.evaluate import evaluate_saes, not_evaluated
from train.evaluation.files import EVAL
from train.evaluation.summary import print_summary, summary_console
from train.groups import Group, plan_groups, share_of, train_configs
from train.locks import locked
from train.processes import Process, this_process
from train.run import DivergedError, train_saes
from train.shards import open_shards
from train.training_set import CHECKPOINTS, layer_folder, start_over

_EPILOG = """\b
Example:
  python -m train run --layer 9 --expansion "8 16" --set sae.k=32
  python -m train run --recipe demo --cache caches/demo --layer 9
  python -m train run --layer "9 15" --set "sae.k=[16, 32, 64]" --set "sae.seed=[0, 1]" --dry-run
The same command again goes on where it stopped. Results are under runs/<cache>/layer<L>/.
On several GPUs the SAEs are shared out, one process a GPU: torchrun --nproc-per-node 8 -m train run ...
With --set train.tensor_parallel=8, too, eight of them train every SAE between them.
"""


@click.command(epilog=_EPILOG)
@click.option("--recipe", "recipe_name", metavar="NAME", help="A recipe of pipelines/recipes/, or a .toml file.")
@click.option("--cache", "cache_name", metavar="NAME|PATH",
              help="Default: the recipe's, or the one under caches/ that holds the layer.")
@click.option("--layer", "layers", metavar='"9 15"', help="The layer to train on, or several, 0-based.")
@click.option("--set", "overrides", multiple=True, metavar="TABLE.KEY=VALUE", help="Change a value of the recipe.")
@click.option("--expansion", metavar='"8 16"', help="Widths as multiples of d_model, one SAE each.")
@click.option("--runs", type=click.Path(path_type=Path, file_okay=False), default=Path("runs"), show_default=True,
              help="Folder for results.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
@click.option("--threads", type=click.IntRange(min=1), help="CPU threads. Default: torch's.")
@click.option("--deterministic", is_flag=True, help="On CUDA, only kernels that always give the same bits.")
@click.option("--dry-run", is_flag=True, help="Show the SAEs, their steps, memory and bytes to read; train nothing.")
@click.option("--fresh", is_flag=True, help="Start over: remove what these SAEs have left. Asks first.")
@click.option("--yes", is_flag=True, help="Do not ask.")
def run(recipe_name: str | None, cache_name: str | None, layers: str | None, overrides: tuple[str, ...],
        expansion: str | None, runs: Path, device: str, threads: int | None, deterministic: bool, dry_run: bool,
        fresh: bool, yes: bool) -> None:
    """Train SAEs on layers of a cache and evaluate them on its held-out conversations.

    Without a recipe: BatchTopK at 8x and 16x the model's width, k = 32. A list in a [[sae]] table, or of layers or
    policies in [train], stands for each of its values: a grid.
    """
    process = this_process()
    recipe = read_recipe(find_recipe(recipe_name) if recipe_name else None, overrides)
    configs = train_configs(recipe, _layers(layers))
    tensor_parallel = configs[0].tensor_parallel
    # What is planned for several processes can be looked at in one.
    team = process if dry_run and process.world_size == 1 else process.team(tensor_parallel)
    widths = _expansions(expansion)
    # Every mistake in the recipe is found before a cache is opened. A prime, of which no width that is given is a
    # multiple: it must not look like that of an expansion.
    plan_groups(recipe, configs, widths, 4099)
    if cache_name is None and recipe_name is not None and (CACHES / Path(recipe_name).stem / PLAN).exists():
        cache_name = Path(recipe_name).stem  # the cache that the same recipe harvests
    cache = choose_cache(cache_name, *dict.fromkeys(config.layer for config in configs if config.layer is not None))
    planned = plan_groups(recipe, configs, widths, cache.d_model)
    groups = share_of(planned, team.rank, team.world_size)
    if deterministic:
        be_deterministic()
    device = _device(device, process)
    if threads is not None:
        torch.set_num_threads(threads)
    if dry_run:
        print_plan(cache, groups, runs, device, summary_console())
        return
    with open_shards(tensor_parallel, device) as shards:
        if fresh:
            shards.first_says(lambda: _start_over(runs, cache, groups, planned, yes))
        everything: list[Path] = []
        diverged: list[DivergedError] = []
        for group in groups:
            try:
                folders = train_saes(cache, group.layer, group.train, group.saes, runs=runs, device=device,
                                     say=lambda line: click.echo(team.says(line), err=True),
                                     show_progress=process.local_rank == 0, shards=shards)
            except DivergedError as error:  # the others are evaluated, and the groups after this one trained
                diverged.append(error)
                folders = error.finished
            shards.first_says(partial(_evaluate, cache, group.layer, folders, device))
            everything += folders
    for path in everything if shards.is_first else []:
        click.echo(str(path))
    if diverged:
        all_of_them = DivergedError([line for one in diverged for line in one.messages], everything)
        if team.world_size == 1:
            raise all_of_them
        # torchrun would stop the other processes, and the SAEs that they are training, at an exit code.
        click.echo(team.says(f"Error: {all_of_them}"), err=True)


def _start_over(runs: Path, cache: Cache, groups: Sequence[Group], planned: Sequence[Group], yes: bool) -> None:
    """Remove what the SAEs of this process have left, if the user agrees; ``planned`` are those of all processes."""
    there = [layer_folder(runs, cache, group.layer) / sae.name for group in groups for sae in group.saes
             if (layer_folder(runs, cache, group.layer) / sae.name).exists()]
    if not there:
        return
    if not yes:
        names = "\n  ".join(map(str, there))
        click.confirm(f"Remove and train again:\n  {names}\nGo on?", abort=True)
    asked = {sae.name for group in planned for sae in group.saes}
    for group in groups:
        folder = layer_folder(runs, cache, group.layer)
        with locked(folder / CHECKPOINTS, [sae.name for sae in group.saes]):
            start_over(folder, group.saes, asked)


def _evaluate(cache: Cache, layer: int, folders: Sequence[Path], device: str) -> None:
    """Evaluate SAEs of a group that were not, and print the figures of all of them."""
    missing = not_evaluated(cache, layer, folders)
    if missing and not evaluate_saes(cache, layer, missing, device):
        click.echo(f"Warning: {cache.path} has no held-out rows of layer {layer}, so there is no eval.json. Harvest "
                   "with a held-out share to get figures.", err=True)
    evaluations = [json.loads((path / EVAL).read_text(encoding="utf-8")) for path in folders if (path / EVAL).exists()]
    if evaluations:
        print_summary(evaluations, summary_console())


def _layers(text: str | None) -> list[int]:
    words = (text or "").replace(",", " ").split()
    if text is not None and not (words and all(word.isdecimal() for word in words)):
        raise RecipeError(f"--layer must be numbers from 0 such as 9 or \"9 15\"; got {text!r}.")
    return [int(word) for word in words]


def _expansions(text: str | None) -> list[float] | None:
    if not text:
        return None
    try:
        values = [float(part) for part in text.replace(",", " ").split()]
    except ValueError:
        values = []
    if not values or not all(0 < value < math.inf for value in values):
        raise RecipeError(f"--expansion must be positive numbers such as \"8 16\"; got {text!r}.")
    return values


def _device(name: str, process: Process) -> str:
    """The device of a name; of several processes each takes the GPU of its own number."""
    count = torch.cuda.device_count()
    if name == "auto":
        name = "cuda" if count else "cpu"
    if name == "cuda" and process.world_size > 1:
        name = f"cuda:{process.local_rank}"
    known = ["cpu", "cuda", *(f"cuda:{number}" for number in range(count))]
    if name not in known or (name == "cuda" and not count):
        raise RecipeError(f"--device {name!r}: there are {count} CUDA devices here. Take auto, cpu"
                          + (", cuda or cuda:N." if count else "."))
    if name.startswith("cuda:"):
        torch.cuda.set_device(name)  # streams and events are the current device's
    return name
