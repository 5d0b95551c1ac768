"""`python -m harvest add-layers`: more layers over the same rows."""

import click
import torch

from harvest.commands.options import cache_path, parse_numbers
from harvest.commands.report import print_done
from harvest.device import find_device
from harvest.from_plan import find_planned_model
from harvest.more_layers import add_layers as harvest_layers
from harvest.more_layers import pass_of_layers
from shared.errors import RecipeError
from shared.format.plan import read_passes, read_plan
from shared.reading.cache import open_cache


@click.command()
@click.argument("cache")
@click.option("--layers", required=True, metavar="NUMBERS", help='Decoder layers, 0-based: "4 20".')
@click.option("--model", help="Where the model is, if it is not a hub's: the folder. Its weights are compared.")
@click.option("--compute-dtype", type=click.Choice(["float32", "bfloat16"]), help="Default: as the layers there.")
@click.option("--trust-remote-code", is_flag=True, help="Run the model's own code, if the cache was made with it.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
@click.option("--threads", type=click.IntRange(min=1), help="CPU threads. Default: the cores.")
def add_layers(
    cache: str, layers: str, model: str | None, compute_dtype: str | None, trust_remote_code: bool, device: str,
    threads: int | None,
) -> None:
    """Harvest more layers for the rows that a cache holds, beside what is there. The same command again resumes.

    Everything but the layers follows from the cache's plan: no data set is read. Any number of these commands
    may run at once; they share the units.

    \b
    Examples:
      python -m harvest add-layers caches/demo --layers "4 20"
      python -m harvest add-layers caches/mine --layers 20 --model path/to/model
    """
    path = cache_path(cache)
    plan = read_plan(path)
    if any(entry.tier == "archive" for entry in read_passes(path).values()):
        raise RecipeError(f"{path} is an archive: add the layers to the cache that it was compressed from, or to one "
                          f"made by python -m harvest expand, and compress that.")
    wanted = pass_of_layers(path, plan, parse_numbers(layers, "--layers") or [], compute_dtype)
    source = find_planned_model(path, plan, model, trust_remote_code)
    if threads:
        torch.set_num_threads(threads)
    done = harvest_layers(path, plan, wanted, source, find_device(device))
    print_done(open_cache(path), path, done.layers)
