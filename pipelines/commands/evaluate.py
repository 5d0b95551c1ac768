"""``python -m pipelines evaluate``: repeat the held-out metrics of a layer's SAEs."""

from pathlib import Path

import click

from harvest.device import find_device
from pipelines import plots
from pipelines.figures_table import as_markdown
from pipelines.report import PLOT
from pipelines.runs import baselines_of, finished_folders, read_runs
from shared import storage
from shared.errors import DataError
from train.baselines import evaluate_baselines
from train.choose_cache import choose_cache
from train.evaluate import evaluate_saes
from train.summary import print_summary, summary_console
from train.training_set import layer_folder

TABLE = "table.md"

_EPILOG = """\b
Example:
  python -m pipelines evaluate --layer 9 --cache demo --baselines
"""


@click.command(epilog=_EPILOG)
@click.option("--layer", type=click.IntRange(min=0), required=True, help="The layer whose SAEs are evaluated.")
@click.option("--cache", "cache_name", metavar="NAME|PATH", help="Default: the one under caches/ that holds the layer.")
@click.option("--runs", type=click.Path(path_type=Path, file_okay=False), default=Path("runs"), show_default=True,
              help="Folder of all runs.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
@click.option("--baselines", is_flag=True, help="Fit and measure baselines too: PCA and random directions at the SAEs' "
              "numbers of latents, the mean of each token, identity.")
def evaluate(layer: int, cache_name: str | None, runs: Path, device: str, baselines: bool) -> None:
    """Repeat the metrics of every finished SAE of a layer on the cache's held-out conversations.

    Writes eval.json and the sums behind it beside each SAE again and, in the layer's folder, table.md and
    explained_variance_l0.png; with --baselines the same files for each baseline under baselines/, which stand in the
    table from then on. docs/metrics.md has the formulas.
    These are the metrics that a cache is enough for. Those that need the language model itself (what its own
    loss becomes when the SAE stands in for the layer) are a later version's.
    """
    cache = choose_cache(cache_name, layer)
    folders = finished_folders(runs, cache, layer)
    where = str(find_device(device).device)
    if not evaluate_saes(cache, layer, folders, where):
        raise DataError(f"{cache.path} has no held-out rows of layer {layer}, so there is nothing to measure on.")
    folder = layer_folder(runs, cache, layer)
    if baselines:
        evaluate_baselines(cache, layer, folders, folder, where)
    finished, compared = read_runs(folders), baselines_of(folder, cache, layer)
    print_summary([one.evaluation for one in (*finished, *compared)], summary_console())
    storage.write_file(folder / TABLE, as_markdown([*finished, *compared]).encode())
    plots.write_png(plots.explained_variance_l0(finished), folder / PLOT)
    for path in (folder / TABLE, folder / PLOT):
        click.echo(str(path))
