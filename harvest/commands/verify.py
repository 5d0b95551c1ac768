"""`python -m harvest verify`: every file of a cache against plan and records."""

import contextlib
import time
from collections.abc import Sequence

import click

from harvest.commands.options import cache_path, parse_numbers
from harvest.commands.report import number_ranges
from harvest.remedy import sort_damage, what_to_do
from shared.errors import CorruptError, RecipeError
from shared.progress import Progress
from shared.upkeep.survey import records_of, survey
from shared.upkeep.verify import Checked, FileToCheck, default_threads, surveyed_files
from shared.upkeep.verify import verify as verify_files

_MB = 10**6


@click.command()
@click.argument("cache")
@click.option("--units", "--unit", "units", metavar="NUMBERS", help='Only these units: "3 7 10-12".')
@click.option("--layers", "--layer", "layers", metavar="NUMBERS", help='Only these layers: "4 12".')
@click.option("--threads", type=click.IntRange(min=1), help="Files read beside each other. Default: by the cores.")
def verify(cache: str, units: str | None, layers: str | None, threads: int | None) -> None:
    """Read every file of a cache and compare each block with what was committed.

    Names every damaged file, its unit, how many of its blocks, and what to type; exit code 77 then. With
    --units or --layers only files of units are read, not the plan's.

    \b
    Examples:
      python -m harvest verify caches/demo
      python -m harvest verify caches/demo --units "3 7" --layers 9
    """
    path = cache_path(cache)
    found = survey(path)
    for problem in found.problems:
        click.echo(problem.what, err=True)
    files = surveyed_files(found, parse_numbers(units, "--units"), parse_numbers(layers, "--layers"))
    if not files and not found.problems:
        there = number_ranges(record.unit for _, record in records_of(found)) or "none"
        raise RecipeError(f"{path}: nothing is committed of what was asked for. Units there: {there}.")
    started = time.monotonic()
    bad, size = check_files(files, threads or default_threads())
    if not found.problems and not bad:
        rate = size / (time.monotonic() - started)
        click.echo(f"{path}: {len(files)} files, {size / 1e9:.3f} GB at {rate / 1e9:.2f} GB/s, all as committed")
        return
    damage = sort_damage(found, bad)
    of_units = "; ".join(f"units {number_ranges(numbers)} of pass {name}" for name, numbers in damage.units.items())
    raise CorruptError("\n".join([
        f"{len(bad) + len(found.problems)} of {len(files) + len(found.problems)} files of {path} are damaged"
        + (f": {of_units}." if of_units else "."),
        *what_to_do(path, damage),
    ]))


def check_files(files: Sequence[FileToCheck], threads: int) -> tuple[list[Checked], int]:
    """Check files with progress, naming the damaged ones on stderr; returns those, and the bytes read."""
    bad, size = [], 0
    with Progress("verify", total=sum(map(_size, files)) // _MB, unit="MB") as progress:
        for checked in verify_files(files, threads):
            progress.advance((size + checked.size) // _MB - size // _MB)
            size += checked.size
            if checked.problem:
                bad.append(checked)
                click.echo(f"{checked.path}: {checked.problem}", err=True)
    return bad, size


def _size(file: FileToCheck) -> int:
    with contextlib.suppress(OSError):
        return file.path.stat().st_size
    return 0
