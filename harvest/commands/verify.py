"""`python -m harvest verify`: every file of a cache against plan and records."""

import click

from harvest.commands.options import cache_path
from shared.errors import CorruptError
from shared.progress import Progress
from shared.verify import files_to_check
from shared.verify import verify as verify_files


@click.command()
@click.argument("cache")
def verify(cache: str) -> None:
    """Read every file of a cache and compare it with what was committed. Exit code 77 if one differs.

    \b
    Example:
      python -m harvest verify caches/demo
    """
    path = cache_path(cache)
    files = files_to_check(path)
    bad = []
    size = 0
    with Progress("verify", total=len(files), unit="files") as progress:
        for checked in verify_files(files):
            size += checked.size
            if checked.problem:
                bad.append(checked)
                click.echo(f"{checked.path}: {checked.problem}", err=True)
            progress.advance(1)
    if bad:
        raise CorruptError(f"{len(bad)} of {len(files)} files of {path} are damaged, the first is {bad[0].path}.")
    click.echo(f"{path}: {len(files)} files, {size / 1e9:.3f} GB, all as committed")
