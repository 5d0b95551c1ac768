"""`python -m harvest repair`: compute damaged units again."""

from pathlib import Path

import click

from harvest.commands.options import cache_path, parse_numbers
from harvest.commands.report import number_ranges
from harvest.commands.verify import check_files
from harvest.from_plan import find_planned_model
from harvest.remedy import Damage, is_archive, sort_damage, what_to_do
from harvest.repair import Changed, repair_units, restore_metadata
from shared.errors import CorruptError, RecipeError
from shared.format.identity import two_columns
from shared.upkeep.survey import Survey, survey
from shared.upkeep.verify import default_threads, surveyed_files

_NEEDED = ("tokens/token_id/", "sequences/offset/")
"""Arrays of the plan that units are computed from."""


@click.command()
@click.argument("cache")
@click.option("--units", "--unit", "units", metavar="NUMBERS", help='Just these, unread: "3 7". Default: verify.')
@click.option("--model", help="Where the model is, if it is not a hub's: the folder. Its weights are compared.")
@click.option("--trust-remote-code", is_flag=True, help="Run the model's own code, if the cache was made with it.")
@click.option("--device", default="auto", show_default=True, help="auto (as before if it can be), cpu, cuda, cuda:N.")
@click.option("--threads", type=click.IntRange(min=1), help="CPU threads. Default: those the units were made with.")
def repair(
    cache: str, units: str | None, model: str | None, trust_remote_code: bool, device: str, threads: int | None
) -> None:
    """Verify a cache and compute its damaged units again, with the model and the rows that its plan names.

    A repaired unit is committed as a new generation of its record, then verified; no other file is touched.
    Can be killed and given again. What the plan wrote (tokens, tokenizer, plan.json) cannot be computed from
    the cache: you are told what to do.

    \b
    Examples:
      python -m harvest repair caches/demo
      python -m harvest repair caches/mine --units "3 7" --model path/to/model
    """
    path = cache_path(cache)
    found = survey(path)
    damage = _find_damage(found, units)
    if not damage:
        click.echo(f"{path}: nothing to repair")
        return
    _check_repairable(found, damage)
    assert found.plan is not None
    source = find_planned_model(path, found.plan, model, trust_remote_code) if damage.units else None
    if damage.metadata:
        for failed in restore_metadata(found, damage.metadata):
            damage.plan.append(failed)
            damage.metadata.remove(failed)
        click.echo(f"{path}: {len(damage.metadata)} zarr.json files written again")
    if source is not None:
        changed = repair_units(found, damage.units, source, device, threads)
        _warn_of_changed(changed)
        _verify_repaired(path, damage)
        click.echo(f"{path}: {damage.num_units} units computed again and verified")
    if damage.plan:
        raise CorruptError("\n".join([f"{len(damage.plan)} files of {path} are still damaged.",
                                      *what_to_do(path, Damage(plan=damage.plan))]))


def _find_damage(found: Survey, units: str | None) -> Damage:
    """What the user names, or what is found by reading everything."""
    if units is None:
        for problem in found.problems:
            click.echo(problem.what, err=True)
        bad, _ = check_files(surveyed_files(found), default_threads())
        return sort_damage(found, bad)
    damage = sort_damage(found, [])
    wanted = set(parse_numbers(units, "--units") or [])
    there = {unit for one in found.passes.values() for unit in one.newest}
    if absent := wanted - there:
        raise RecipeError(f"--units: {number_ranges(absent)} of {found.path} were never committed; units there: "
                          f"{number_ranges(there) or 'none'}. To harvest more: python -m harvest run ...")
    damage.units = {
        one.pass_id: wanted & one.newest.keys() for one in found.passes.values() if wanted & one.newest.keys()
    }
    damage.archived = is_archive(found, damage)
    return damage


def _check_repairable(found: Survey, damage: Damage) -> None:
    """Stop where the cache itself does not hold what its units follow from.

    Raises:
        CorruptError: the plan or a pass is damaged. RecipeError: it is an archive.
    """
    if damage.archived:
        raise RecipeError("\n".join([f"{found.path}: the units of an archive cannot be computed in place.",
                                     *what_to_do(found.path, damage)]))
    arrays = [path for path in damage.plan if any(name in str(path) for name in _NEEDED)]
    if found.plan is None or damage.passes or (damage.units and arrays):
        count = len(damage.plan) + len(damage.passes)
        raise CorruptError("\n".join([
            f"{found.path} cannot be repaired yet: {count} files that its units follow from are damaged themselves.",
            *what_to_do(found.path, damage),
        ]))


def _warn_of_changed(changed: list[Changed]) -> None:
    for one in changed:
        click.echo(f"Warning: unit {one.unit} of pass {one.pass_id} has other bytes than it was committed with first.",
                   err=True)
    if changed and (made := next((one.made for one in changed if one.made), [])):
        click.echo("It was made otherwise, so its rows may differ in their last bits:", err=True)
        click.echo("\n".join(two_columns(made, "before", "now")), err=True)
    elif changed:
        click.echo("Device, threads and versions are the same: the bytes were expected to be, too.", err=True)


def _verify_repaired(path: Path, damage: Damage) -> None:
    """Raises CorruptError if a repaired unit does not read back as it was written."""
    found = survey(path)
    files = [
        file for file in surveyed_files(found, set().union(*damage.units.values()))
        if file.pass_id in damage.units and file.unit in damage.units[file.pass_id]
    ]
    bad, _ = check_files(files, default_threads())
    if bad:
        raise CorruptError(f"{len(bad)} files of {path} are damaged again after they were repaired, the first is "
                           f"{bad[0].path}: this disk cannot be trusted. Copy the cache to another one.")
