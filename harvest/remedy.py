"""What to type when files of a cache are damaged: what repair can do, and what it cannot."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from shared.format.layout import PASSES, PLAN
from shared.upkeep.survey import Survey
from shared.upkeep.verify import Checked


@dataclass
class Damage:
    """Everything that is wrong with a cache, by what can be done about it."""

    units: dict[str, set[int]] = field(default_factory=dict)
    """Units with damaged files or records, by pass: they can be computed again."""
    metadata: list[Path] = field(default_factory=list)
    """zarr.json files: they follow from the plan."""
    plan: list[Path] = field(default_factory=list)
    """Files that the plan wrote, plan.json among them: only the conversations have what is in them."""
    passes: list[Path] = field(default_factory=list)
    """Files of passes."""
    archived: bool = False
    """Some of the units are an archive's."""

    @property
    def num_units(self) -> int:
        return sum(map(len, self.units.values()))

    def __bool__(self) -> bool:
        return bool(self.units or self.metadata or self.plan or self.passes)


def sort_damage(found: Survey, bad: Sequence[Checked]) -> Damage:
    """Damaged files by what can be done about them.

    Args:
        bad: the files with a problem, as `shared.upkeep.verify.verify` found them.
    """
    damage = Damage()
    for problem in found.problems:
        if problem.unit is not None and problem.pass_id is not None:
            damage.units.setdefault(problem.pass_id, set()).add(problem.unit)
        elif problem.path.name == PLAN:
            damage.plan.append(problem.path)
        else:
            damage.passes.append(problem.path)
    for checked in bad:
        file = checked.file
        assert file is not None
        if file.unit is not None and file.pass_id is not None:
            damage.units.setdefault(file.pass_id, set()).add(file.unit)
        elif file.path.name == "zarr.json":
            damage.metadata.append(file.path)
        else:
            damage.plan.append(file.path)
    damage.archived = is_archive(found, damage)
    return damage


def is_archive(found: Survey, damage: Damage) -> bool:
    """Whether damaged units are of a pass whose blocks are compressed."""
    entries = [found.passes[pass_id].entry for pass_id in damage.units]
    return any(entry is not None and entry.tier == "archive" for entry in entries)


def what_to_do(cache: Path, damage: Damage) -> list[str]:
    """A line for each kind of damage that there is, with the command or the steps that mend it."""
    lines = []
    if damage.plan:
        names = ", ".join(str(path.relative_to(cache)) for path in damage.plan[:4])
        more = f" and {len(damage.plan) - 4} more" if len(damage.plan) > 4 else ""
        lines.append(
            f"The plan's files cannot be computed from the cache: {names}{more}. The harvest command that made it, "
            "with plan instead of run and another --cache, writes the same bytes: copy these files from there."
        )
    if damage.passes:
        names = ", ".join(f"{PASSES}/{path.name}" for path in damage.passes)
        lines.append(
            f"A pass's file can be written again: remove {names}, and give the harvest command that made its layers "
            "once more."
        )
    if damage.archived:
        lines.append(
            f"Make the archive anew: remove {cache}, and compress once more the cache that it came from, which repair "
            f"can mend: python -m harvest compress SOURCE {cache}"
        )
    elif damage.units or damage.metadata:
        lines.append(f"{'Then the rest' if lines else 'They'} can be computed again: python -m harvest repair {cache}")
    return lines
