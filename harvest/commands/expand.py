"""`python -m harvest expand`: an archive as a cache that is memory-mapped, and harvested into, again."""

import click

from harvest.commands.compress import run, threads_option


@click.command()
@click.argument("cache")
@click.argument("dest")
@threads_option
def expand(cache: str, dest: str, threads: int | None) -> None:
    """Write an archive anew as an ordinary cache: DEST, a folder or a name under caches/.

    Its files are those of the cache that was compressed, byte for byte, but for records and provenance. The
    archive stays as it is. The same command again goes on where it stopped.

    \b
    Example:
      python -m harvest expand caches/demo-archive caches/demo
    """
    run(cache, dest, "mapped", threads)
