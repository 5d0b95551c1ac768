"""Figures of sets with their intervals, and paired differences of sets to a reference.

Over the members m of a set S, with figure F and draws r of the conversations (`train.evaluation.paired`):

    F_S         = mean over m of F_m                 seed_sd_S = standard deviation over m, with 1 / (n - 1)
    interval    = percentiles over r of the mean over m of F_m,r
    D           = F_S - F_R, of each draw likewise; the draws are the same for both
    seed_sd_D   = sqrt(seed_sd_S^2 + seed_sd_R^2): how far two SAEs that differ in nothing but the seed come apart

An effect counts where the interval of D does not hold 0 and |D| exceeds seed_sd_D: other conversations would not turn
it round, and another seed would not have made it.
"""

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from pipelines.comparison.sets import SeedSet, seeds_of
from pipelines.loss.figures import loss_figures
from pipelines.titles import METRICS, in_order, is_loss, l0_subset
from train.evaluation.bootstrap import interval, resampled_sums
from train.evaluation.metrics import Floats
from train.evaluation.paired import ConversationSums, activation_figures

COUNTS, WITHIN_SEEDS, HOLDS_ZERO, NO_SEEDS, NO_INTERVAL, OTHER_TOKENS = (
    "counts", "within seeds", "holds 0", "no seeds", "no interval", "other tokens")
"""What may be said of a difference."""

MATCHED = 0.05
"""By how much of itself the L0 of two SAEs may differ for their figures to be compared."""


@dataclass(frozen=True)
class FigureRow:
    """One figure of a set."""

    set: str
    subset: str
    metric: str
    unit: str
    num_rows: int
    num_saes: int
    value: float
    low: float | None
    high: float | None
    seed_sd: float | None


@dataclass(frozen=True)
class MemberRow:
    """One figure of one SAE, as its eval.json has it."""

    set: str
    sae: str
    folder: str
    seed: int | None
    data_seed: int | None
    cache: str
    cache_id: str
    subset: str
    metric: str
    num_rows: int
    value: float


@dataclass(frozen=True)
class DifferenceRow:
    """One figure of a set less that of the reference."""

    set: str
    against: str
    subset: str
    metric: str
    unit: str
    num_rows: int
    against_num_rows: int
    value: float
    against_value: float
    difference: float
    low: float | None
    high: float | None
    seed_sd: float | None
    verdict: str
    l0: float | None
    against_l0: float | None
    l0_matched: str
    """"yes", "no", or nothing where one of them has no latents."""


Samples = dict[tuple[str, str], Floats]
"""Resampled figures [resamples] by subset and metric."""


@dataclass(frozen=True)
class Measured:
    """A set with what it has of figures."""

    seed_set: SeedSet
    figures: dict[tuple[str, str], FigureRow]
    samples: Samples

    def l0(self, subset: str) -> float | None:
        """Its L0 where a subset's figures are measured."""
        row = self.figures.get((l0_subset(subset), "l0"))
        return None if row is None else row.value


def measure(seed_set: SeedSet) -> Measured:
    """The figures of a set, on every subset that all of its members have, in the order of `in_order`."""
    members = seed_set.members
    samples = _samples([member.sums for member in members], partial(activation_figures, d_in=members[0].d_in))
    loss = [member.loss for member in members if member.loss is not None]
    if len(loss) == len(members):
        samples |= _samples(loss, loss_figures)
    figures = {}
    for subset in in_order(list(dict.fromkeys(subset for subset, _ in samples))):
        for metric in METRICS:
            values = [member.figure(subset, metric) for member in members]
            if (subset, metric) not in samples or None in values:
                continue
            known = [value for value in values if value is not None]
            low, high = interval(samples[subset, metric]) or (None, None)
            figures[subset, metric] = FigureRow(
                seed_set.label, subset, metric, METRICS[metric].unit, num_rows(seed_set, subset), len(members),
                statistics.fmean(known), low, high, statistics.stdev(known) if len(known) > 1 else None)
    return Measured(seed_set, figures, samples)


def _samples(sums: Sequence[ConversationSums], figures_of: Callable[[dict[str, Floats]], dict[str, Floats]]) -> Samples:
    """Means over SAEs of their resampled figures; NaN on a subset that fewer than two conversations have rows of."""
    drawn = [figures_of(resampled_sums(each.sums)) for each in sums]
    samples: Samples = {}
    for subset in sums[0].subsets:
        if not all(subset in each.subsets for each in sums):
            continue
        columns = [each.subsets.index(subset) for each in sums]
        many = (sums[0].sums["n"][:, columns[0]] > 0).sum() > 1
        for metric in METRICS:
            if all(metric in found for found in drawn):
                found = np.mean([each[metric][:, column] for each, column in zip(drawn, columns, strict=True)], axis=0)
                samples[subset, metric] = found if many else np.full_like(found, np.nan)
    return samples


def num_rows(seed_set: SeedSet, subset: str) -> int:
    """The held-out rows, or predicted tokens, of a subset."""
    return int(seed_set.members[0].figures(subset).get("num_tokens" if is_loss(subset) else "num_rows", 0))


def member_rows(measured: Sequence[Measured]) -> list[MemberRow]:
    """Every figure of every SAE."""
    rows = []
    for found in measured:
        for member in found.seed_set.members:
            seed, data_seed = seeds_of(member) or (None, None)
            for subset, metric in found.figures:
                value = member.figure(subset, metric)
                assert value is not None
                rows.append(MemberRow(found.seed_set.label, member.run.name, str(member.folder), seed,
                                      data_seed, str(member.run.evaluation["cache"]), member.cache_id, subset,
                                      metric, num_rows(found.seed_set, subset), value))
    return rows


def differences(found: Measured, reference: Measured) -> list[DifferenceRow]:
    """Every figure of a set less that of the reference, on what both have."""
    rows = []
    for key, own in found.figures.items():
        other = reference.figures.get(key)
        if other is None:
            continue
        subset, metric = key
        value = own.value - other.value
        low, high = interval(found.samples[key] - reference.samples[key]) or (None, None)
        seeds = None if own.seed_sd is None or other.seed_sd is None else math.hypot(own.seed_sd, other.seed_sd)
        l0, against = found.l0(subset), reference.l0(subset)
        matched = "" if l0 is None or against is None else "yes" if is_matched(l0, against) else "no"
        rows.append(DifferenceRow(
            own.set, other.set, subset, metric, own.unit, own.num_rows, other.num_rows, own.value, other.value, value,
            low, high, seeds,
            verdict(value, low, high, seeds) if own.num_rows == other.num_rows else OTHER_TOKENS, l0, against, matched))
    return rows


def verdict(difference: float, low: float | None, high: float | None, seed_sd: float | None) -> str:
    """Whether a difference counts (science: the interval leaves out 0, and it exceeds what seeds do), or why not."""
    if low is None or high is None:
        return NO_INTERVAL
    if low <= 0 <= high:
        return HOLDS_ZERO
    if seed_sd is None:
        return NO_SEEDS
    return COUNTS if abs(difference) > seed_sd else WITHIN_SEEDS


def is_matched(l0: float, against: float) -> bool:
    """Whether two L0 are near enough for the other figures to be compared."""
    return abs(l0 - against) <= MATCHED * against
