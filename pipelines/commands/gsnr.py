"""``python -m pipelines gsnr``: gradient signal-to-noise ratios of SAEs, checkpoint by stream."""

import json
from pathlib import Path

import click

from harvest.device import find_device
from pipelines.gsnr import Wanted, layer_of, measure, training_cache
from pipelines.gsnr_table import as_csv, as_markdown, print_tables
from shared import storage
from shared.reading.cache import Split
from train.choose_cache import choose_cache
from train.evaluation.gsnr_rows import SUBSETS
from train.evaluation.summary import summary_console
from train.trained import read_trained

_EPILOG = """\b
Examples:
  python -m pipelines gsnr --sae runs/demo/layer9/batchtopk-*
  python -m pipelines gsnr --sae runs/fast/layer9/SAE --sae runs/bt-f/layer9/SAE --cache fast --cache bt-f
"""


@click.command(epilog=_EPILOG)
@click.option("--sae", "folders", multiple=True, required=True, type=click.Path(path_type=Path), metavar="RUN_FOLDER",
              help="A finished SAE, whose weights stay fixed. Several: give it again.")
@click.option("--cache", "names", multiple=True, metavar="NAME|PATH",
              help="A stream of activations. Several: give it again. Default: those that the SAEs were trained on.")
@click.option("--layer", type=click.IntRange(min=0), help="The layer. Default: that of the SAEs.")
@click.option("--tokens", type=click.IntRange(min=1), default=65_536, show_default=True,
              help="Rows of each stream at most.")
@click.option("--batch-size", type=click.IntRange(min=1), help="Rows in a batch. Default: each SAE's own in training.")
@click.option("--split", type=click.Choice(("held_out", "train")), default="held_out", show_default=True,
              help="Held-out conversations, which no SAE has seen, or training ones.")
@click.option("--subset", "subsets", type=click.Choice(SUBSETS), multiple=True, default=SUBSETS[:2],
              show_default=True, help="Which rows. Several: give it again.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Which rows make a batch.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), default=Path("runs/gsnr"), show_default=True,
              help="Folder for the results.")
def gsnr(folders: tuple[Path, ...], names: tuple[str, ...], layer: int | None, tokens: int, batch_size: int | None,
         split: Split, subsets: tuple[str, ...], seed: int, device: str, out: Path) -> None:
    """Measure the signal-to-noise ratio of each SAE's gradient on each cache, at fixed weights.

    For every group of parameters: E[g]^2 / Var[g] by entry, and |E g|^2 / tr Cov(g), per row and unbiased, of the
    SAE's own training loss. Caches that hold the same conversations give the same tokens in the same batches. Writes
    gsnr.json, gsnr.md and gsnr.csv; docs/metrics.md has the formulas, and what such a ratio is confounded with.

    Takes 16 bytes of memory for each parameter of an SAE, and 8 for those of its largest tensor.
    """
    where = layer_of(folders, layer)
    if names:
        caches = [choose_cache(name, where) for name in names]
    else:
        records = {record["cache_id"]: record for record in map(read_trained, folders)}
        caches = [training_cache(record, ()) for record in records.values()]
    wanted = Wanted(folders, where, tuple(dict.fromkeys(subsets)), split, tokens, batch_size, seed)
    content = measure(wanted, caches, str(find_device(device).device))
    print_tables(content, summary_console())
    storage.make_folder(out)
    text = json.dumps(content, indent=1, allow_nan=False) + "\n"
    for name, written in (("gsnr.json", text), ("gsnr.md", as_markdown(content)), ("gsnr.csv", as_csv(content))):
        storage.write_file(out / name, written.encode())
        click.echo(str(out / name))
