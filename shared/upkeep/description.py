"""A cache in figures, as `python -m harvest status --json` gives them: plain values that JSON can hold."""

from pathlib import Path
from typing import Any

from shared.format.layout import Geometry
from shared.format.plan import Plan
from shared.upkeep.activity import rates, read_provenance, tokens_asked, writers
from shared.upkeep.survey import PassSurvey, survey


def describe(cache: Path) -> dict[str, Any]:
    """What a cache holds, who works on it and how fast; what is damaged is listed under ``problems``.

    Raises:
        StorageError: there is no cache at ``cache``. IdentityError: its format is newer.
    """
    found = survey(cache)
    entries = read_provenance(cache)
    at_work = writers(cache)
    living = {one.writer for one in at_work if one.state != "dead"}
    passes = []
    for one in found.passes.values():
        described = _describe_pass(one, found.plan)
        if found.plan is not None:
            described |= _speed(entries, found.plan.geometry, one, living)
        passes.append(described)
    return {
        "path": str(cache),
        **_describe_plan(found.plan),
        "passes": passes,
        "writers": [vars(one) for one in at_work],
        "problems": [problem.what for problem in found.problems],
    }


def _describe_plan(plan: Plan | None) -> dict[str, Any]:
    if plan is None:
        return {}
    return {
        "cache_id": plan.cache_id,
        "model": plan.name_of("model"),
        "dataset": plan.name_of("dataset"),
        "d_model": plan.d_model,
        "units": plan.geometry.num_units,
        "train_tokens": plan.num_train_rows,
        "held_out_tokens": plan.num_rows - plan.num_train_rows,
        "conversations": plan.num_conversations,
        "conversations_read": plan.num_read,
        "skipped": dict(sorted(plan.num_skipped.items(), key=lambda item: -item[1])),
    }


def _describe_pass(one: PassSurvey, plan: Plan | None) -> dict[str, Any]:
    """One pass; its planned figures only where the plan and the pass itself can be read."""
    records = one.records.values()
    geometry = plan.geometry if plan is not None else None
    entry = one.entry
    described: dict[str, Any] = {
        "pass": one.pass_id,
        "layers": entry.layers if entry else None,
        "compute_dtype": entry.compute_dtype if entry else None,
        "attention": entry.attention if entry else None,
        "tier": entry.tier if entry else None,
        "units": len(one.records),
        "damaged_records": one.damaged_records,
        "repaired": [record.unit for record in records if record.generation > 0],
        "tokens": sum(record.rows[1] - record.rows[0] for record in records),
        "bytes": sum(file.size for record in records for file in record.files),
        "nonfinite_rows": sum(len(rows) for record in records for rows in record.nonfinite.values()),
    }
    if geometry is not None:
        described["train_tokens"] = sum(geometry.train_rows_of(record.unit) for record in records)
        described["share_of_plan"] = described["tokens"] / geometry.num_rows
        if entry is not None and entry.tier == "mapped":  # what compression will save is not known before
            units = range(geometry.num_units)
            described["bytes_planned"] = sum(geometry.unit_bytes(unit, len(entry.layers)) for unit in units)
    return described


def _speed(
    entries: list[dict[str, Any]], geometry: Geometry, one: PassSurvey, living: set[str]
) -> dict[str, Any]:
    """Recent rates, and what is left of the tokens asked for; the time left where somebody is at work."""
    rate = rates(entries, geometry, one.pass_id)
    now = {writer: speed for writer, speed in rate.items() if writer in living}
    together = sum(now.values())
    asked = tokens_asked(entries, one.pass_id)
    found: dict[str, Any] = {"tokens_per_second": now, "last_tokens_per_second": None, "tokens_asked": asked}
    if rate and not now:
        found["last_tokens_per_second"] = list(rate.values())[-1]
    if asked is not None:
        todo = [unit for unit in geometry.fill_order(asked) if unit not in one.records]
        left = sum(len(geometry.unit_rows(unit)) for unit in todo)
        found |= {"tokens_left": left, "seconds_left": left / together if together and left else None}
    return found
