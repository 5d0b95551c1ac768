"""`python -m harvest status`: what a cache holds."""

from pathlib import Path

import click

from harvest.commands.options import cache_path
from shared.commits import read_records
from shared.layout import PLAN, TMP
from shared.plan import read_passes, read_plan


@click.command()
@click.argument("caches", nargs=-1, metavar="[CACHE]...")
def status(caches: tuple[str, ...]) -> None:
    """Show the progress of caches: units, tokens and bytes, layer by layer. Default: all under caches/.

    \b
    Example:
      python -m harvest status caches/demo
    """
    paths = [cache_path(name) for name in caches] or sorted(path.parent for path in Path("caches").glob(f"*/{PLAN}"))
    if not paths:
        click.echo("No caches under caches/. Make one: make harvest MODEL=... DATA=...")
    for path in paths:
        print_status(path)


def print_status(path: Path) -> None:
    """Print what one cache holds."""
    plan = read_plan(path)
    geometry = plan.geometry
    model, data = plan.identity["model"]["name"], plan.identity["dataset"]["name"]
    click.echo(f"{path}  {model} on {data}, cache id {plan.cache_id[:12]}")
    held_out = plan.num_rows - plan.num_train_rows
    click.echo(f"  planned   {plan.num_train_rows:,} training + {held_out:,} held-out tokens")
    passes = read_passes(path)
    if not passes:
        click.echo("  harvested nothing yet")
    for pass_id, entry in passes.items():
        records = read_records(path, pass_id)
        train = sum(geometry.train_rows_of(unit) for unit in records)
        rows = sum(len(geometry.unit_rows(unit)) for unit in records)
        size = sum(file.size for record in records.values() for file in record.files)
        bad = sum(len(rows) for record in records.values() for rows in record.nonfinite.values())
        click.echo(
            f"  layers {entry.layers} ({entry.compute_dtype}, {entry.attention}): {len(records)} of "
            f"{geometry.num_units} units, {train:,} training + {rows - train:,} held-out tokens, {size / 1e9:.3f} GB"
            + (f", {bad:,} non-finite rows" if bad else "")
        )
    writers = [folder.name for folder in (path / TMP).iterdir()] if (path / TMP).is_dir() else []
    if writers:
        click.echo(f"  writers   {', '.join(sorted(writers))}")
