"""``python -m pipelines table``: the paper's tables, with finished SAEs beside the published figures."""

from pathlib import Path

import click

from pipelines.paper.rows import find_folders, read_rows
from pipelines.paper.table import as_csv, as_markdown, print_tables
from shared import storage
from train.evaluation.summary import summary_console

NAME = "paper_table"

_EPILOG = """\b
Examples:
  python -m pipelines table
  python -m pipelines table runs/demo/layer9 --published --out tables
"""


@click.command(epilog=_EPILOG)
@click.argument("folders", nargs=-1, metavar="[RUN_FOLDER]...", type=click.Path(path_type=Path))
@click.option("--runs", type=click.Path(path_type=Path, file_okay=False), default=Path("runs"), show_default=True,
              help="Folder of all runs, where no RUN_FOLDER is given.")
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), help="Where the table is written. Default: "
                                                                             "the folder of all runs.")
@click.option("--published", is_flag=True, help="List the paper's other SAEs too, of which there is none here.")
def table(folders: tuple[Path, ...], runs: Path, out: Path | None, published: bool) -> None:
    """Put SAEs into the form of the FAST paper's tables, beside the figures that it published.

    RUN_FOLDER is an SAE's folder, or any folder above some. Writes paper_table.md and paper_table.csv: log2 MSE and
    log2 MSE_st of Standard and JumpReLU SAEs by model, layer, expansion and method, and for every SAE, of whatever
    architecture, L0, explained variance, and CE recovered where it was measured. docs/paper.md says how to read it.
    """
    evaluated, others = find_folders(folders or [runs])
    rows = read_rows(evaluated)
    print_tables(rows, published, summary_console())
    if others:
        count = "1 SAE is" if len(others) == 1 else f"{len(others)} SAEs are"
        click.echo(f"{count} left out for want of current figures, {others[0]} for one: make evaluate LAYER=...",
                   err=True)
    for ending, text in (("md", as_markdown(rows, published)), ("csv", as_csv(rows, published))):
        path = (out or runs) / f"{NAME}.{ending}"
        storage.make_folder(path.parent)
        storage.write_file(path, text.encode())
        click.echo(str(path))
