"""`python -m harvest doctor`: is this a place for caches?"""

import click

from harvest.commands.options import CACHES, cache_path
from shared.errors import StorageError
from shared.upkeep.doctor import examine, file_system


@click.command()
@click.argument("folder", default=f"{CACHES}/")
def doctor(folder: str) -> None:
    """Check that a folder's file system does what a cache needs, and how fast. Default: caches/.

    Creates, renames, links, locks, maps and syncs files of its own, 64 MB at most, and leaves nothing behind.
    A line for each: ok; slow, which works with the drawback that it names; FAIL, which a cache cannot do
    without. Exit code 74 if one fails.

    \b
    Example:
      python -m harvest doctor /scratch/caches
    """
    path = cache_path(folder)
    while not path.is_dir():
        path = path.absolute().parent
    click.echo(f"{path} ({file_system(path)})")
    failed = []
    for finding in examine(path):
        click.echo(f"{finding.state:4s}  {finding.name:10s}  {finding.text}")
        if finding.state == "FAIL":
            failed.append(finding.name)
    if failed:
        raise StorageError(f"{path} is no place for a cache: {', '.join(failed)} failed. Put it on another file "
                           "system, for example CACHE=/scratch/name")
