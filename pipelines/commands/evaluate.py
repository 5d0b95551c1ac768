"""``python -m pipelines evaluate``: repeat the held-out metrics of a layer's SAEs."""

from pathlib import Path

import click

from harvest.device import find_device
from pipelines.figures_table import as_markdown
from pipelines.foreign_source import find_sae
from pipelines.plots.scatter import explained_variance_l0
from pipelines.plots.style import write_png
from pipelines.report import PLOT
from pipelines.runs import baselines_of, finished_folders, foreign_folders, read_runs
from shared import storage
from shared.errors import DataError
from shared.reading.cache import Cache
from train.choose_cache import choose_cache
from train.evaluation.baselines import evaluate_baselines
from train.evaluation.evaluate import evaluate_saes, not_evaluated
from train.evaluation.foreign import add_foreign
from train.evaluation.summary import print_summary, summary_console
from train.training_set import layer_folder

TABLE = "table.md"

_EPILOG = """\b
Example:
  python -m pipelines evaluate --layer 9 --cache demo --baselines
  python -m pipelines evaluate --layer 9 --sae path/to/folder --sae org/name/layers.9
"""


@click.command(epilog=_EPILOG)
@click.option("--layer", type=click.IntRange(min=0), required=True, help="The layer whose SAEs are evaluated.")
@click.option("--cache", "cache_name", metavar="NAME|PATH", help="Default: the one under caches/ that holds the layer.")
@click.option("--sae", "sources", multiple=True, metavar="FOLDER|ORG/NAME[/FOLDER]",
              help="Evaluate an SAE made elsewhere, in the layout of SAELens, dictionary_learning or sparsify.")
@click.option("--runs", type=click.Path(path_type=Path, file_okay=False), default=Path("runs"), show_default=True,
              help="Folder of all runs.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
@click.option("--baselines", is_flag=True, help="Fit and measure baselines too: PCA and random directions at the SAEs' "
              "numbers of latents, the mean of each token, identity.")
def evaluate(layer: int, cache_name: str | None, sources: tuple[str, ...], runs: Path, device: str,
             baselines: bool) -> None:
    """Repeat the metrics of every finished SAE of a layer on the cache's held-out conversations.

    With --sae, those of another's SAE instead, from a folder or the model hub; they go to foreign-<name>/ in the
    layer's folder. Writes eval.json and the sums behind it beside each SAE and, in the layer's folder, table.md and
    explained_variance_l0.png of all that were evaluated; with --baselines the same files for each baseline under
    baselines/, which stand in the table from then on. docs/metrics.md has the formulas.
    These are the metrics that a cache is enough for. Those that need the language model itself (what its own
    loss becomes when the SAE stands in for the layer) are a later version's.
    """
    cache = choose_cache(cache_name, layer)
    chosen = [_foreign(source, runs, cache, layer) for source in sources]
    ours = finished_folders(runs, cache, layer)
    where = str(find_device(device).device)
    if not evaluate_saes(cache, layer, chosen or ours, where):
        raise DataError(f"{cache.path} has no held-out rows of layer {layer}, so there is nothing to measure on.")
    folder = layer_folder(runs, cache, layer)
    if baselines:
        evaluate_baselines(cache, layer, ours, folder, where)
    stale = not_evaluated(cache, layer, ours)  # with --sae, ours may be of other held-out rows
    finished = read_runs([*(path for path in ours if path not in stale), *foreign_folders(runs, cache, layer)])
    compared = baselines_of(folder, cache, layer)
    print_summary([one.evaluation for one in (*finished, *compared)], summary_console())
    storage.write_file(folder / TABLE, as_markdown([*finished, *compared]).encode())
    write_png(explained_variance_l0(finished), folder / PLOT)
    for path in (*chosen, folder / TABLE, folder / PLOT):
        click.echo(str(path))


def _foreign(source: str, runs: Path, cache: Cache, layer: int) -> Path:
    """The folder of a foreign SAE's results; says where the SAE was made for something else."""
    folder, commit = find_sae(source)
    target, mismatches = add_foreign(runs, cache, layer, folder, source, commit)
    for mismatch in mismatches:
        click.echo(f"Warning: {source}: {mismatch}", err=True)
    return target
