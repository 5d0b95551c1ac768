"""``python -m pipelines compare``: SAEs on the same held-out conversations, as paired differences."""

import shlex
from pathlib import Path

import click
from rich.box import SIMPLE_HEAD
from rich.table import Table

from pipelines.comparison.comparison import UNMATCHED, Comparison
from pipelines.comparison.comparison import compare as compare_saes
from pipelines.comparison.page import signed, write_comparison
from pipelines.titles import METRICS, is_headline, is_loss
from shared.redaction import without_secrets
from train.evaluation.summary import summary_console

_SHOWN = (("content", "explained_variance"), ("content", "l0"), ("policy", "explained_variance"), ("policy", "l0"),
          ("special_without_first", "explained_variance"))

_EPILOG = """\b
Examples:
  python -m pipelines compare runs/demo/layer9/batchtopk-* runs/demo/layer9/jumprelu-* --out comparison
  python -m pipelines compare runs/fast/layer9 runs/block/layer9 --cache fast --cache block --out comparison
"""


@click.command(epilog=_EPILOG)
@click.argument("runs", metavar="RUN...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--out", "folder", type=click.Path(path_type=Path, file_okay=False), required=True,
              help="Folder for the page and its CSV files.")
@click.option("--against", type=click.Path(path_type=Path), metavar="RUN",
              help="The one of them that all others are compared with.")
@click.option("--cache", "caches", multiple=True, metavar="NAME|PATH",
              help="A cache of theirs that does not lie under caches/; SAEs of several caches need all.")
def compare(runs: tuple[Path, ...], folder: Path, against: Path | None, caches: tuple[str, ...]) -> None:
    """Compare SAEs on the held-out conversations that all of them were evaluated on.

    RUN is the folder of an SAE or a baseline that was evaluated, or a layer's, which stands for all SAEs in it. SAEs
    that differ in their seeds alone make one set, whose figures are means. Differences are paired by conversation and
    have 95 % intervals; docs/metrics.md says how. The first set is the reference, with those that differ from it in
    sparsity alone: every other is compared with the one of them that has the nearest L0.
    SAEs of several caches may be compared where these are of one model and hold out the same conversations.
    Writes index.html, a page that needs nothing else, and its data as CSV.
    """
    comparison = compare_saes(runs, against, caches)
    page = write_comparison(comparison, folder, _typed(runs, folder, against, caches))
    console = summary_console()
    for label, other in comparison.against.items():
        console.print(_table(comparison, label, other))
    for note in comparison.notes:
        console.print(note, highlight=False, soft_wrap=True, markup=False)
    for warning in comparison.warnings:
        click.echo(f"Warning: {warning}", err=True)
    if comparison.warnings:
        click.echo(UNMATCHED, err=True)
    click.echo(f"page     {page}")


def _table(comparison: Comparison, label: str, against: str) -> Table:
    """The differences of a set that are read first."""
    table = Table(title=f"{label}\nless {against}", title_justify="left", title_style="bold",
                  box=SIMPLE_HEAD, padding=(0, 1))
    table.add_column("subset", min_width=21, overflow="fold")
    table.add_column("figure", no_wrap=True)
    for heading in ("reference", "set", "difference", "95 % interval", "seeds ±"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("an effect?")
    last = None
    for row in comparison.differences:
        shown = (row.subset, row.metric) in _SHOWN or (
            is_loss(row.subset) and is_headline(row.subset, row.metric) and row.metric in {"kl", "delta_ce"})
        if row.set != label or not shown:
            continue
        form = METRICS[row.metric].form
        ends = "–" if row.low is None or row.high is None else (
            f"{signed(row.low, row.metric)} to {signed(row.high, row.metric)}")
        title = METRICS[row.metric].title.replace("explained", "expl.")
        table.add_row("" if row.subset == last else row.subset, title, format(row.against_value, form),
                      format(row.value, form), signed(row.difference, row.metric), ends,
                      "–" if row.seed_sd is None else format(row.seed_sd, form),
                      row.verdict + (", L0 apart" if row.l0_matched == "no" and row.metric != "l0" else ""))
        last = row.subset
    return table


def _typed(runs: tuple[Path, ...], folder: Path, against: Path | None, caches: tuple[str, ...]) -> str:
    """The command that was typed."""
    words = ["python", "-m", "pipelines", "compare", *map(str, runs), "--out", str(folder)]
    words += ["--against", str(against)] if against else []
    for cache in caches:
        words += ["--cache", cache]
    return without_secrets(shlex.join(words))
