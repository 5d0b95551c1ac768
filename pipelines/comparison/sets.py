"""SAEs that differ in their seeds alone make one set: its figures are means, with the spread over seeds beside them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pipelines.comparison.members import Member
from pipelines.runs import FinishedRun
from shared.digests import canonical_json

_SEEDS = (("sae", "seed"), ("train", "data_seed"))
_SPARSITY = (("sae", "k"), ("sae", "l0"), ("sae", "l1_coefficient"), ("sae", "sparsity_coefficient"))


@dataclass(frozen=True)
class SeedSet:
    """Some SAEs of one recipe, each with another seed; often a single one."""

    label: str
    """A short name, unlike those of the other sets of a comparison."""
    curve: str
    """What it shares with sets that differ in sparsity alone: "BatchTopK 8x"."""
    members: tuple[Member, ...]


def seeds_of(member: Member) -> tuple[int, int] | None:
    """Seed of the initial weights and of the order of rows; None of a baseline or what was made elsewhere."""
    recipe = member.record.get("recipe")
    if recipe is None:
        return None
    return int(recipe["sae"]["seed"]), int(recipe["train"]["data_seed"])


def make_sets(members: Sequence[Member]) -> list[SeedSet]:
    """Put SAEs that differ in seeds alone into sets, in the order of their first members.

    A copy of an SAE, with seeds that its set has already, opens a set of its own.
    """
    groups: list[tuple[bytes, list[Member]]] = []
    for member in members:
        likeness, seeds = _likeness(member, _SEEDS), seeds_of(member)
        for known, others in groups:
            if known == likeness and seeds not in map(seeds_of, others):
                others.append(member)
                break
        else:
            groups.append((likeness, [member]))
    found = [others for _, others in groups]
    firsts = [others[0] for others in found]
    labels = _labels(firsts, [_label(others) for others in found])
    labels = [f"{label}, {first.folder}" if labels.count(label) > 1 else label
              for label, first in zip(labels, firsts, strict=True)]
    return [SeedSet(label, curve, tuple(others))
            for label, curve, others in zip(labels, _curves(firsts), found, strict=True)]


def recipe_without(member: Member, left_out: Sequence[tuple[str, str]]) -> dict[str, Any]:
    """The resolved recipe of an SAE of ours without some (table, key); nothing of others."""
    recipe = member.record.get("recipe") or {}
    return {table: {key: value for key, value in values.items() if (table, key) not in left_out}
            if isinstance(values, dict) else values for table, values in recipe.items()}


def _likeness(member: Member, left_out: Sequence[tuple[str, str]]) -> bytes:
    """What SAEs of a set, or of a curve, share: recipe, cache, training rows and length."""
    if seeds_of(member) is None:
        return canonical_json({"folder": str(member.folder.resolve())})
    record = member.record
    return canonical_json({"recipe": recipe_without(member, left_out), "cache_id": record["cache_id"],
                           "units": record["units"], "num_steps": record["resolved"]["num_steps"]})


def _label(members: Sequence[Member]) -> str:
    """The label of a set; a single SAE keeps the seed in its own."""
    run = members[0].run
    if isinstance(run, FinishedRun) and not run.is_foreign and len(members) > 1:
        return run.label_of_any_seed
    return run.label


def _curves(firsts: Sequence[Member]) -> list[str]:
    """The curve that each set lies on, by the first member of each: one label for what differs in sparsity alone."""
    by_likeness: dict[bytes, Member] = {}
    likeness = [_likeness(first, (*_SEEDS, *_SPARSITY)) for first in firsts]
    for known, first in zip(likeness, firsts, strict=True):
        by_likeness.setdefault(known, first)
    heads = list(by_likeness.values())
    labels = dict(zip(by_likeness, _labels(heads, [_kind(head) for head in heads], _SPARSITY), strict=True))
    return [labels[known] for known in likeness]


def _kind(member: Member) -> str:
    """Architecture and width of an SAE of ours; the label of others."""
    run = member.run
    return run.kind if isinstance(run, FinishedRun) and not run.is_foreign else run.label


def _labels(firsts: Sequence[Member], labels: Sequence[str], left_out: Sequence[tuple[str, str]] = ()) -> list[str]:
    """Labels with what differs between those that are alike, three facts at most."""
    told = list(labels)
    for label in dict.fromkeys(labels):
        alike = [number for number, other in enumerate(labels) if other == label]
        facts = [_facts(firsts[number], (*_SEEDS, *left_out)) for number in alike]
        keys = [key for key in dict.fromkeys(key for fact in facts for key in fact)
                if len({fact.get(key) for fact in facts}) > 1]
        for number, fact in zip(alike, facts, strict=True):
            told[number] += "".join(f", {key} {fact.get(key, 'none')}" for key in keys[:3])
    return told


def _facts(member: Member, left_out: Sequence[tuple[str, str]]) -> dict[str, str]:
    """What may tell SAEs of one label apart, the plainest first."""
    recipe, facts = recipe_without(member, left_out), {"cache": str(member.run.evaluation["cache"])}
    for table in ("train", "sae"):
        for key, value in recipe.get(table, {}).items():
            if isinstance(value, dict):
                facts |= {f"{key}.{name}": str(inner) for name, inner in value.items()}
            else:
                facts[f"{table}.{key}" if key in facts else key] = str(value)
    return facts
