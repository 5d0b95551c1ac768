"""A comparison from folders to tables: what is read, checked and measured, in that order."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pipelines.comparison.caches import check_caches, find_caches
from pipelines.comparison.measure import MATCHED, DifferenceRow, Measured, differences, is_matched, measure, num_rows
from pipelines.comparison.members import read_members
from pipelines.comparison.sets import SeedSet, make_sets
from pipelines.titles import is_headline, subset_words
from shared.errors import RecipeError
from shared.reading.cache import Cache

UNMATCHED = (f"Sets whose L0 differs by more than {100 * MATCHED:.0f} % cannot be compared by their figures: "
             "with more latents active any SAE explains more. Look at the frontier, or train them to one L0.")
_ORDINARY = "policy"
_WARNED = ("content", _ORDINARY)
"""The subsets whose L0 a warning is about; the table marks every one."""


@dataclass(frozen=True)
class Comparison:
    """What a comparison has found."""

    measured: list[Measured]
    """The references first."""
    against: dict[str, str]
    """Label of the set that each set is compared with, by its own label; nothing of the references."""
    differences: list[DifferenceRow]
    """Of each other set to its reference."""
    caches: dict[str, Cache]
    notes: list[str]
    """What a reader must know of what was compared."""
    warnings: list[str]
    """Whose L0 is not that of the reference."""

    @property
    def sets(self) -> list[SeedSet]:
        """The sets, the references first."""
        return [found.seed_set for found in self.measured]

    def is_shown(self, subset: str, metric: str) -> bool:
        """Whether the page shows a figure: the headlines, and no subset that is another one again."""
        repeats = subset == "all_without_first" and all(
            _value(found, subset, metric) == _value(found, _ORDINARY, metric) for found in self.measured)
        return is_headline(subset, metric) and not repeats


def _value(found: Measured, subset: str, metric: str) -> float | None:
    row = found.figures.get((subset, metric))
    return None if row is None else row.value


def compare(folders: Sequence[Path], against: Path | None = None, caches: Sequence[str] = ()) -> Comparison:
    """Compare SAEs, those that differ in seeds alone as one set.

    Without ``against`` the first set is the reference, with those that differ from it in sparsity alone: each other set
    is compared with that of them whose L0 is the nearest.

    Args:
        folders: of evaluated SAEs or baselines.
        against: one of them, whose set all others are compared with.
        caches: names or paths of caches that do not lie under caches/.

    Raises:
        RecipeError: too few, one twice, all of one set, or a cache is not found. IdentityError: they cannot be
            compared. DataError: one is not evaluated, or was trained on what is compared on.
        CorruptError, StorageError: a file is damaged or cannot be read.
    """
    members, notes = read_members(folders)
    found = find_caches(members, caches)
    notes = [*check_caches(members, found), *notes]
    sets = make_sets(members)
    if len(sets) < 2:
        raise RecipeError(f"All {len(members)} SAEs differ in their seeds alone ({sets[0].label}): they are one set, "
                          "and nothing is left to compare it with. Add an SAE of another recipe.")
    references = _references(sets, against)
    measured = [measure(one) for one in [*references, *(one for one in sets if one not in references)]]
    known = measured[: len(references)]
    pairs = [(other, _nearest(other, known)) for other in measured[len(references) :]]
    return Comparison(
        measured=measured,
        against={other.seed_set.label: reference.seed_set.label for other, reference in pairs},
        differences=[row for other, reference in pairs for row in differences(other, reference)],
        caches=found,
        notes=[*notes, *_row_notes(pairs), *_seed_notes(sets)],
        warnings=[line for other, reference in pairs for line in _warnings(other, reference)],
    )


def _references(sets: Sequence[SeedSet], against: Path | None) -> list[SeedSet]:
    """The sets that the others are compared with; never all of them."""
    if against is None:
        curve = [one for one in sets if one.curve == sets[0].curve]
        return curve if len(curve) < len(sets) else [sets[0]]
    named = [one for one in sets if against.resolve() in {member.folder.resolve() for member in one.members}]
    if not named:
        raise RecipeError(f"--against {str(against)!r} is none of the SAEs that are compared. Give it as a RUN too.")
    return named


def _nearest(found: Measured, references: Sequence[Measured]) -> Measured:
    """The reference with the nearest L0 on ordinary tokens; the first where it cannot be told."""
    l0 = found.l0(_ORDINARY)
    known = [(abs(math.log(other / l0)), place) for place, reference in enumerate(references)
             if l0 and (other := reference.l0(_ORDINARY))]
    return references[min(known, default=(0.0, 0))[1]]


def _row_notes(pairs: Sequence[tuple[Measured, Measured]]) -> list[str]:
    """Where a subset is not of the same rows in both sets: another policy, or other sequences."""
    labels: dict[str, list[str]] = {}
    for found, reference in pairs:
        one, other = found.seed_set, reference.seed_set
        apart = [f"{subset_words(subset)} {num_rows(one, subset):,} against {num_rows(other, subset):,}"
                 for subset in other.members[0].sums.subsets
                 if num_rows(one, subset) and num_rows(one, subset) != num_rows(other, subset)]
        if apart:
            labels.setdefault("; ".join(apart), []).append(one.label)
    return [f"Not measured on the same tokens of these conversations as the reference: {' | '.join(names)} ({apart})."
            for apart, names in labels.items()]


def _seed_notes(sets: Sequence[SeedSet]) -> list[str]:
    single = [one.label for one in sets if len(one.members) == 1]
    if not single:
        return []
    of = "every set" if len(single) == len(sets) else " | ".join(single)
    return [f"There is one seed of {of}: whether another would turn a difference round is not known. Train several "
            "(seed = [0, 1, 2] in [[sae]])."]


def _warnings(found: Measured, reference: Measured) -> list[str]:
    """A line where the L0 of a set is not that of its reference."""
    pairs = [(subset, found.l0(subset), reference.l0(subset)) for subset in _WARNED]
    apart = [f"{l0:.1f} against {against:.1f} on {subset_words(subset)} ({100 * (l0 / against - 1):+.0f} %)"
             for subset, l0, against in pairs if l0 is not None and against is not None and not is_matched(l0, against)]
    return [f"{found.seed_set.label} has an L0 of {' and '.join(apart)}."] if apart else []
