"""`python -m harvest gc`: remove what killed writers left behind."""

import click

from harvest.commands.options import cache_path
from shared.errors import CorruptError, StorageError
from shared.format.layout import PLAN, TMP
from shared.upkeep.garbage import collect, elsewhere, find_garbage, watch_for
from shared.upkeep.survey import survey
from shared.writing.writers import PATIENCE_SECONDS, Watch


@click.command()
@click.argument("cache")
@click.option("--dry-run", is_flag=True, help="Say what would be removed; change nothing.")
@click.option("--stalled", is_flag=True, help="Also of writers of other machines that stand still for a minute: only "
                                              "if you know that those processes have ended, not just paused.")
def gc(cache: str, dry_run: bool, stalled: bool) -> None:
    """Remove what is certainly dead in a cache, and print the bytes freed.

    That is: temporaries, claims and block checksums of writers that have ended, and what a killed --fresh left
    beside the cache. What is committed stays, and so does everything of a writer that is running or paused.
    After a clean end there is nothing to collect.

    \b
    Example:
      python -m harvest gc caches/demo --dry-run
    """
    path = cache_path(cache)
    was_planned = (path / PLAN).exists() or (path.exists() and not (path / TMP).is_dir())
    if was_planned and (problems := survey(path).problems):
        raise CorruptError(f"{problems[0].what} Nothing is removed from a damaged cache. See: python -m harvest verify "
                           f"{path}")
    watch = Watch()
    if stalled and elsewhere(path):
        click.echo(f"Watching writers of other machines for {PATIENCE_SECONDS:.0f} s ...", err=True)
        watch = watch_for(PATIENCE_SECONDS, path)
    garbage = find_garbage(path, watch)
    if not path.exists() and not garbage:
        raise StorageError(f"There is no cache at {path}.")
    for one in garbage:
        click.echo(f"{one.path}  {one.size:,} bytes: {one.why}")
    if not dry_run:
        collect(path, watch, garbage)
    freed = sum(one.size for one in garbage)
    click.echo(f"{path}: {len(garbage)} leftovers, {freed:,} bytes {'to free' if dry_run else 'freed'}")
    kept = [heartbeat.parent.name for heartbeat in elsewhere(path)]
    if kept and not stalled:
        click.echo(f"Kept: {', '.join(kept)} of another machine, or from before this one was started anew. If those "
                   "processes have ended: --stalled")
