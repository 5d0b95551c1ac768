"""What goes on in a cache: who writes it and holds which units, how fast, and how much was asked for.

Writers are told by their heartbeats and claims. Rates come from provenance.jsonl, which is outside every
promise: lines that are no JSON of ours are passed over.
"""

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from shared import storage
from shared.digests import canonical_json
from shared.format.layout import HEARTBEAT, PROVENANCE, TMP, Geometry
from shared.writing.claims import holders
from shared.writing.writers import Watch, beating_for, is_on_this_machine

State = Literal["alive", "dead", "elsewhere"]

_LAST_BYTES = 1 << 20
_RECENT_UNITS = 8


@dataclass
class Activity:
    """One writer of a cache."""

    writer: str
    state: State
    """"elsewhere": on another machine, or started before this one was; only watching it for a minute would tell."""
    seconds: float | None
    """How long it has lived, by its own counter."""
    units: dict[str, list[int]] = field(default_factory=dict)
    """The units that it holds, by pass."""


def writers(cache: Path) -> list[Activity]:
    """Everyone who has a folder of temporaries in the cache or holds a unit of it, in order of names."""
    watch = Watch()
    found = {}
    for heartbeat in sorted((cache / TMP).glob(f"*/{HEARTBEAT}")):
        state: State = "alive" if is_on_this_machine(heartbeat) else "elsewhere"
        state = "dead" if watch.is_dead(heartbeat) else state
        found[heartbeat.parent.name] = Activity(heartbeat.parent.name, state, beating_for(heartbeat))
    for (pass_id, unit, _), writer in holders(cache).items():
        # Whose folder is gone has ended, and its claims mean nothing.
        one = found.setdefault(writer, Activity(writer, "dead", None))
        one.units.setdefault(pass_id, []).append(unit)
    return [found[writer] for writer in sorted(found)]


def note_start(cache: Path, writer: str, pass_id: str, num_tokens: int) -> None:
    """Leave a line in provenance.jsonl: a writer begins, and how many training tokens it was asked for."""
    started = datetime.now(UTC).isoformat(timespec="seconds")
    entry = {"writer": writer, "pass": pass_id, "asked": num_tokens, "started": started}
    storage.append_line(cache / PROVENANCE, canonical_json(entry).decode())


def read_provenance(cache: Path) -> list[dict[str, Any]]:
    """The last entries of provenance.jsonl, oldest first: a megabyte of them at most."""
    try:
        with (cache / PROVENANCE).open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - _LAST_BYTES))
            lines = file.read(_LAST_BYTES).splitlines()[size > _LAST_BYTES :]
    except OSError:
        return []
    entries = []
    for line in lines:
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(entry, dict):
            entries.append(entry)
    return entries


def rates(entries: Iterable[Mapping[str, Any]], geometry: Geometry, pass_id: str) -> dict[str, float]:
    """Tokens a second of each writer over its last eight units of a pass, in the order of their latest units.

    What a writer computed in vain counts as time.
    """
    work: dict[str, list[tuple[int, float]]] = {}
    for entry in entries:
        unit, seconds, writer = entry.get("unit"), entry.get("seconds"), entry.get("writer")
        if entry.get("pass") != pass_id or not isinstance(unit, int) or not isinstance(writer, str):
            continue
        if isinstance(seconds, int | float) and 0 < seconds < 1e9 and 0 <= unit < geometry.num_units:
            rows = len(geometry.unit_rows(unit)) if entry.get("won", True) else 0
            work[writer] = [*work.pop(writer, []), (rows, seconds)][-_RECENT_UNITS:]
    return {writer: sum(rows for rows, _ in done) / sum(s for _, s in done) for writer, done in work.items()}


def tokens_asked(entries: Sequence[Mapping[str, Any]], pass_id: str) -> int | None:
    """Training tokens that the newest harvest of a pass was asked for; None if no entry says."""
    for entry in reversed(entries):
        asked = entry.get("asked")
        if entry.get("pass") == pass_id and isinstance(asked, int):
            return asked
    return None
