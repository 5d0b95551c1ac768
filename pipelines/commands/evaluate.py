"""``python -m pipelines evaluate``: held-out metrics of a layer's SAEs, from the cache and with the language model."""

from pathlib import Path

import click
from click.core import ParameterSource

from harvest.device import find_device
from pipelines.figures_table import as_markdown
from pipelines.foreign_source import find_sae
from pipelines.loss.run import LOSS_TOKENS, Wanted, measure_loss, open_model
from pipelines.loss.streams import STREAMS, parse_streams
from pipelines.loss.summary import print_losses
from pipelines.plots.scatter import explained_variance_l0
from pipelines.plots.style import write_png
from pipelines.report import PLOT
from pipelines.runs import baselines_of, finished_folders, foreign_folders, read_runs
from shared import storage
from shared.errors import DataError, UserError
from shared.reading.cache import Cache
from train.choose_cache import choose_cache
from train.evaluation.baselines import fit_baselines
from train.evaluation.evaluate import evaluate as evaluate_subjects
from train.evaluation.evaluate import not_evaluated, sae_subject
from train.evaluation.foreign import add_foreign
from train.evaluation.summary import print_summary, summary_console
from train.training_set import layer_folder

TABLE = "table.md"

_EPILOG = """\b
Example:
  python -m pipelines evaluate --layer 9 --cache demo --baselines
  python -m pipelines evaluate --layer 9 --loss-tokens 50000 --streams "conversations blocks"
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
@click.option("--loss-tokens", type=click.IntRange(min=0), default=LOSS_TOKENS, show_default=True,
              help="Held-out tokens that the language model is run on, in whole conversations. 0: without the model.")
@click.option("--streams", "streams", default=STREAMS[0], show_default=True, metavar="NAMES",
              help=f"What the model reads: {', '.join(STREAMS)}, or both.")
@click.option("--model", help="Where the model is, if it is not a hub's: the folder. Its weights are compared.")
@click.option("--trust-remote-code", is_flag=True, help="Run the model's own code, if the cache was made with it.")
@click.pass_context
def evaluate(context: click.Context, layer: int, cache_name: str | None, sources: tuple[str, ...], runs: Path,
             device: str, baselines: bool, loss_tokens: int, streams: str, model: str | None,
             trust_remote_code: bool) -> None:
    """Repeat the metrics of every finished SAE of a layer on the cache's held-out conversations.

    With --sae, those of another's SAE instead, from a folder or the model hub; they go to foreign-<name>/ in the
    layer's folder. Writes eval.json and the sums behind it beside each SAE and, in the layer's folder, table.md and
    explained_variance_l0.png of all that were evaluated; with --baselines the same files for each baseline under
    baselines/, which stand in the table from then on.

    Then the language model's own metrics, in eval_loss.json: what its loss becomes, on the first --loss-tokens
    held-out tokens, when the reconstruction stands in for the layer's output. They need the model that the cache was
    made with. Where it is not here, a line says so, and the rest is written; where it was asked for (by one of the
    last four options), that is an error, after the rest is written. docs/metrics.md has the formulas.
    """
    cache = choose_cache(cache_name, layer)
    wanted = Wanted(loss_tokens, parse_streams(streams))
    chosen = [_foreign(source, runs, cache, layer) for source in sources]
    ours = finished_folders(runs, cache, layer)
    where = find_device(device)
    if len(cache.rows(layer=layer, split="held_out")) == 0:
        raise DataError(f"{cache.path} has no held-out rows of layer {layer}, so there is nothing to measure on.")
    folder = layer_folder(runs, cache, layer)
    subjects = [sae_subject(cache, layer, path, str(where.device)) for path in chosen or ours]
    if baselines:
        subjects += fit_baselines(cache, layer, ours, folder, str(where.device))
    evaluate_subjects(cache, layer, subjects, str(where.device))
    missing = None
    if loss_tokens:
        try:
            language_model = open_model(cache, layer, where, model, trust_remote_code, download=_is_asked(context))
        except UserError as error:
            missing = error
        else:
            measure_loss(cache, layer, subjects, language_model, wanted)
    stale = not_evaluated(cache, layer, ours)  # with --sae, ours may be of other held-out rows
    finished = read_runs([*(path for path in ours if path not in stale), *foreign_folders(runs, cache, layer)])
    compared = baselines_of(folder, cache, layer)
    console = summary_console()
    print_summary([one.evaluation for one in (*finished, *compared)], console)
    print_losses([one.loss for one in (*finished, *compared) if one.loss is not None], console)
    storage.write_file(folder / TABLE, as_markdown([*finished, *compared]).encode())
    write_png(explained_variance_l0(finished), folder / PLOT)
    for path in (*chosen, folder / TABLE, folder / PLOT):
        click.echo(str(path))
    if missing is not None and _is_asked(context):
        raise missing
    if missing is not None:
        click.echo(f"Without the language model's metrics. {missing.told()}", err=True)


def _is_asked(context: click.Context) -> bool:
    """Whether the user asked for the language model's metrics, by an option that is of no use otherwise."""
    return any(context.get_parameter_source(name) == ParameterSource.COMMANDLINE
               for name in ("loss_tokens", "streams", "model", "trust_remote_code"))


def _foreign(source: str, runs: Path, cache: Cache, layer: int) -> Path:
    """The folder of a foreign SAE's results; says where the SAE was made for something else."""
    folder, commit = find_sae(source)
    target, mismatches = add_foreign(runs, cache, layer, folder, source, commit)
    for mismatch in mismatches:
        click.echo(f"Warning: {source}: {mismatch}", err=True)
    return target
