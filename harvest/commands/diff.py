"""`python -m harvest diff`: how two caches differ."""

import sys
from pathlib import Path

import click

from harvest.commands.options import cache_path
from harvest.commands.report import number_ranges
from shared.format.commits import Record, read_records
from shared.format.identity import differences, two_columns
from shared.format.plan import Pass, read_passes, read_plan


@click.command()
@click.argument("one")
@click.argument("other")
def diff(one: str, other: str) -> None:
    """Compare two caches by their records: what they were made from, their passes, units and rows.

    Prints each difference. Exit code 0: the same; 1: different. A cache and its archive are the same. The files
    themselves are not read: whether they are what the records say, verify tells.

    \b
    Example:
      python -m harvest diff caches/demo /backup/demo
    """
    lines = compare(cache_path(one), cache_path(other))
    if not lines:
        click.echo("The same: identity, passes, units and their rows.")
        return
    for line in lines:
        click.echo(line)
    sys.exit(1)


def compare(one: Path, other: Path) -> list[str]:
    """Lines about everything in which two caches differ; none if they are the same."""
    lines = []
    if found := differences(read_plan(one).identity, read_plan(other).identity):
        lines += ["identity:", *two_columns(found, str(one), str(other))]
    passes, other_passes = read_passes(one), read_passes(other)
    for pass_id in sorted({*passes, *other_passes}):
        if pass_id not in passes or pass_id not in other_passes:
            entry = passes.get(pass_id) or other_passes[pass_id]
            lines.append(f"{_name(entry)}: only in {one if pass_id in passes else other}")
            continue
        name = _name(passes[pass_id])
        records, other_records = read_records(one, pass_id), read_records(other, pass_id)
        for here, there, where in ((records, other_records, one), (other_records, records, other)):
            if alone := here.keys() - there.keys():
                lines.append(f"{name}: units {number_ranges(alone)} only in {where}")
        lines += _different_rows(name, records, other_records, str(one), str(other))
    return lines


def _name(entry: Pass) -> str:
    return f"layers {entry.layers} ({entry.compute_dtype}, {entry.attention})"


def _different_rows(
    name: str, records: dict[int, Record], other: dict[int, Record], here: str, there: str
) -> list[str]:
    """The units that both have with other digests, and what their records say of how the first was made."""
    units = [unit for unit in records if unit in other and not _same_rows(records[unit], other[unit])]
    if not units:
        return []
    made = differences(records[units[0]].made_with, other[units[0]].made_with)
    lines = [f"{name}: units {number_ranges(units)} have other rows"]
    return lines + (two_columns(made, here, there) if made else [])


def _same_rows(one: Record, other: Record) -> bool:
    """Whether two records promise the same rows, compressed or not: both hold the crc32c of every block of rows."""
    return one.blocks.xxh3 == other.blocks.xxh3
