"""`python -m harvest compress`: a cache written anew as an archive, a third smaller."""

import os

import click

from harvest.commands.options import cache_path
from shared.format.layout import Tier
from shared.upkeep.transcode import transcode

threads_option = click.option("--threads", type=click.IntRange(min=1), help="Default: one a core.")


@click.command()
@click.argument("cache")
@click.argument("dest")
@threads_option
def compress(cache: str, dest: str, threads: int | None) -> None:
    """Write a cache anew as an archive: DEST, a folder or a name under caches/, takes about 0.7 of the disk.

    Rows, plan and ids are the same; training, `verify` and notebooks read both. Only harvest into an archive you
    cannot: `expand` it first. The cache itself stays as it is. The same command again goes on where it stopped, and
    takes over what was harvested or repaired since.

    \b
    Example:
      python -m harvest compress caches/demo caches/demo-archive
    """
    run(cache, dest, "archive", threads)


def run(cache: str, dest: str, tier: Tier, threads: int | None) -> None:
    """Write a cache in the other tier, and say how much smaller or larger it is and how fast that went."""
    source, target = cache_path(cache), cache_path(dest)
    threads = threads or os.cpu_count() or 1
    done = transcode(source, target, tier, threads)
    before, after = done.source_bytes, done.target_bytes
    change = f"{before / after:.3f}x smaller" if after < before else f"{after / before:.3f}x larger"
    click.echo(f"{source} {before / 1e9:.3f} GB -> {target} {after / 1e9:.3f} GB, {change}; rows equal bit for bit")
    if done.units:
        speed = done.row_bytes / done.seconds / 1e9
        click.echo(f"{done.units} units in {done.seconds:.1f} s, {speed:.2f} GB/s of rows on {threads} threads")
    else:
        click.echo("nothing was left to do")
