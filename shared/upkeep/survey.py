"""What a cache holds as far as it can be told, when parts of it are damaged too.

Readers stop at the first damage; whoever describes, verifies or repairs a cache has to go on.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from shared.errors import CorruptError, StorageError
from shared.format.commits import Record, check_record, newest_generations, read_record, record_path
from shared.format.layout import COMMITS, PASSES, PLAN
from shared.format.plan import Pass, Plan, check_pass, read_pass, read_plan
from shared.format.plan_arrays import check_plan_names
from shared.format.tree import check_tree


@dataclass(frozen=True)
class Problem:
    """A file that decides what is there, and cannot be believed."""

    path: Path
    what: str
    pass_id: str | None = None
    unit: int | None = None
    """Of a damaged record."""


@dataclass
class PassSurvey:
    """One pass: what it is, and the records of its units that can be read."""

    pass_id: str
    entry: Pass | None
    """None where the pass's own file is missing or damaged."""
    records: dict[int, Record] = field(default_factory=dict)
    """The newest record of every unit, where it can be read and speaks of this cache."""
    newest: dict[int, int] = field(default_factory=dict)
    """The highest generation of every unit, damaged records included."""

    @property
    def damaged_records(self) -> list[int]:
        """Units whose newest record cannot be believed."""
        return [unit for unit in self.newest if unit not in self.records]


@dataclass
class Survey:
    """A cache's plan, passes and records; what of them is damaged stands in ``problems``."""

    path: Path
    plan: Plan | None
    passes: dict[str, PassSurvey] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)


def survey(cache: Path) -> Survey:
    """Look at the plan, the passes and the records of a cache.

    Raises:
        StorageError: there is no cache at ``cache``.
        IdentityError: it was written in a newer format.
        CorruptError: it holds something else than files and folders; nothing more is looked at then.
    """
    check_tree(cache)
    found = Survey(cache, None)
    try:
        plan = read_plan(cache)
        check_plan_names(cache, plan)
        found.plan = plan
    except CorruptError as error:
        found.problems.append(Problem(cache / PLAN, str(error)))
    except StorageError as error:
        if not any((cache / COMMITS).glob("*/*.json")):
            raise
        is_there = (cache / PLAN).exists()
        found.problems.append(Problem(cache / PLAN, str(error) if is_there else f"{cache / PLAN} is missing."))
    for pass_id in _pass_ids(cache):
        found.passes[pass_id] = _survey_pass(found, pass_id)
    return found


def _pass_ids(cache: Path) -> list[str]:
    named = {path.stem for path in (cache / PASSES).glob("*.json")}
    committed = {path.name for path in (cache / COMMITS).glob("*/") if any(path.glob("*.json"))}
    return sorted(named | committed)


def _survey_pass(found: Survey, pass_id: str) -> PassSurvey:
    path = found.path / PASSES / f"{pass_id}.json"
    one = PassSurvey(pass_id, None)
    try:
        entry = read_pass(path)
        if found.plan is not None:
            check_pass(found.path, found.plan, entry)
        one.entry = entry
    except (CorruptError, StorageError) as error:
        found.problems.append(Problem(path, str(error), pass_id))
    one.newest = newest_generations(found.path, pass_id)
    for unit, generation in one.newest.items():
        path = record_path(found.path, pass_id, unit, generation)
        try:
            record = read_record(path)
            if found.plan is not None:
                check_record(found.path, found.plan, pass_id, record, one.entry)
            one.records[unit] = record
        except (CorruptError, StorageError) as error:
            found.problems.append(Problem(path, str(error), pass_id, unit))
    return one


def records_of(found: Survey) -> Iterator[tuple[PassSurvey, Record]]:
    """Every record that can be believed, pass by pass."""
    for one in found.passes.values():
        for record in one.records.values():
            yield one, record
