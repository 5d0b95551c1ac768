"""``python -m pipelines evaluate``: repeat the held-out metrics of a layer's SAEs."""

from pathlib import Path

import click

from harvest.device import find_device
from pipelines import plots
from pipelines.figures_table import as_markdown
from pipelines.report import PLOT
from pipelines.runs import finished_folders, read_runs
from shared import storage
from shared.errors import DataError
from train.choose_cache import choose_cache
from train.evaluate import evaluate_saes
from train.summary import print_summary, summary_console
from train.training_set import layer_folder

TABLE = "table.md"

_EPILOG = """\b
Example:
  python -m pipelines evaluate --layer 9 --cache demo
"""


@click.command(epilog=_EPILOG)
@click.option("--layer", type=click.IntRange(min=0), required=True, help="The layer whose SAEs are evaluated.")
@click.option("--cache", "cache_name", metavar="NAME|PATH", help="Default: the one under caches/ that holds the layer.")
@click.option("--runs", type=click.Path(path_type=Path, file_okay=False), default=Path("runs"), show_default=True,
              help="Folder of all runs.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
def evaluate(layer: int, cache_name: str | None, runs: Path, device: str) -> None:
    """Repeat the metrics of every finished SAE of a layer on the cache's held-out conversations.

    Writes eval.json beside each SAE again and, in the layer's folder, table.md and explained_variance_l0.png.
    These are the metrics that a cache is enough for. Those that need the language model itself (what its own
    loss becomes when the SAE stands in for the layer) are a later version's.
    """
    cache = choose_cache(cache_name, layer)
    folders = finished_folders(runs, cache, layer)
    if not evaluate_saes(cache, layer, folders, str(find_device(device).device)):
        raise DataError(f"{cache.path} has no held-out rows of layer {layer}, so there is nothing to measure on.")
    finished = read_runs(folders)
    print_summary([run.evaluation for run in finished], summary_console())
    folder = layer_folder(runs, cache, layer)
    storage.write_file(folder / TABLE, as_markdown(finished).encode())
    plots.write_png(plots.explained_variance_l0(finished), folder / PLOT)
    for path in (folder / TABLE, folder / PLOT):
        click.echo(str(path))
