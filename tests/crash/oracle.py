"""What must hold after any crash, in one place: every test of this folder judges with it.

1. Everything acknowledged is there, whole, with the bytes it should have.
2. Nothing unacknowledged is believed: what has a record is whole, and no data file has its final name without one.
3. `recover`, and the same command again, give a cache that is bit-identical to one that was never disturbed;
   `verify` finds nothing wrong with it, and no temporaries are left; after `gc`, nothing is that is not vouched for.
"""

import re
from collections.abc import Callable, Collection
from pathlib import Path

import numpy as np

from shared.format.commits import Record, read_record, read_records
from shared.format.layout import CLAIMS, COMMITS, GROUP, HEARTBEAT, PASSES, PLAN, PROVENANCE, SKIPPED, TMP
from shared.format.plan import read_passes
from shared.reading.cache import open_cache
from shared.upkeep.garbage import collect, find_garbage
from shared.upkeep.verify import files_to_check, verify
from shared.writing.writers import Watch, read_writer, recover
from tests.crash.small_harvest import committed_units, new_process, norms_of, rows_of
from tests.tiny import promised

_DATA_FILE = re.compile(r"layers/\d+/(resid_post|norm)/c/")


class Oracle:
    """Judges a cache against one that was never disturbed.

    Args:
        damaged: units whose first generation was damaged beforehand; nothing is expected of that one.
        rebooted: whether the machine was started anew since the crash: whose temporaries are whose is then for
            gc to tell, by watching, and not for the next writer.
    """

    def __init__(self, undisturbed: Path, damaged: Collection[int] = (), rebooted: bool = False) -> None:
        self._promised = promised(undisturbed)
        self._damaged = set(damaged)
        self._rebooted = rebooted
        cache = open_cache(undisturbed)
        self._rows = {layer: rows_of(cache.geometry, layer) for layer in cache.layers}

    def violations(
        self, cache: Path, acknowledged: Collection[int], finish: Callable[[Path], object], planned: bool = True
    ) -> list[str]:
        """Every promise that a crashed cache breaks; none is an empty list. The cache is finished thereby.

        Args:
            acknowledged: units that somebody was told are committed.
            finish: runs the same command again.
            planned: whether somebody was told that the plan is there.
        """
        found = _told(lambda: self._believed(cache, set(acknowledged), planned))
        found += _told(lambda: self._recovered(cache))
        return found + _told(lambda: self._finished(cache, finish))

    def _believed(self, cache: Path, acknowledged: set[int], planned: bool) -> list[str]:
        """What a reader sees of a cache as the crash left it."""
        if not (cache / PLAN).exists():
            return ["the plan was acknowledged and is gone"] if planned else []
        records = [record for pass_id in read_passes(cache) for record in read_records(cache, pass_id).values()]
        bad = {record.unit for record in records if record.unit in self._damaged and record.generation == 0}
        there = {record.unit for record in records} - bad
        found = [f"unit {unit} was acknowledged and is gone" for unit in sorted(acknowledged - there)]
        found += [f"{path} has its final name and no record" for path in _unrecorded(cache, records)]
        opened = open_cache(cache)
        for layer, rows in self._rows.items() if there else ():
            here = opened.rows(layer=layer, units=sorted(there))
            layer_rows = opened.layer(layer)
            wanted = [row for record in records if record.unit in there for row in range(*record.rows)]
            if sorted(here.tolist()) != sorted(wanted):
                found.append(f"layer {layer} has not the rows of its records")
            if not np.array_equal(layer_rows[here].view(np.uint16), rows[here]):
                found.append(f"layer {layer} has rows that nobody wrote")
            if not np.array_equal(layer_rows.norm(here), norms_of(rows[here])):
                found.append(f"layer {layer} has norms that nobody wrote")
        return found + damage(cache, but=bad)

    def _recovered(self, cache: Path) -> list[str]:
        if not (cache / PLAN).exists():
            return []
        before = committed_units(cache)
        new_process(cache)
        recover(cache)
        return ["recovery changed what is committed"] if committed_units(cache) != before else []

    def _finished(self, cache: Path, finish: Callable[[Path], object]) -> list[str]:
        new_process(cache)
        finish(cache)
        found = damage(cache) + ([] if self._rebooted else leftovers(cache))
        watch = Watch(0.0)
        collect(cache, watch, find_garbage(cache, watch))
        found += [f"{path} is left after gc" for path in sorted(_unvouched(cache))]
        now = promised(cache)
        for name in sorted(self._promised.keys() | now.keys()):
            if self._promised.get(name) != now.get(name):
                found.append(f"{name} is not what an undisturbed harvest leaves")
        return found


def damage(cache: Path, but: Collection[int] = ()) -> list[str]:
    """What `verify` says is wrong, but for what it says of some units."""
    files = [file for file in files_to_check(cache) if file.unit not in but]
    return [f"{checked.path}: {checked.problem}" for checked in verify(files) if checked.problem]


def leftovers(cache: Path) -> list[str]:
    """Temporaries that nobody will use any more.

    The first bytes of a writer that was killed before it had its heartbeat are gc's: it knows who is gone.
    """
    files = [path for path in (cache / TMP).rglob("*") if path.is_file()]
    return [f"{path} is left" for path in files if path.name != f"{HEARTBEAT}.new"]


def _unvouched(cache: Path) -> set[Path]:
    """Files that neither plan nor passes nor records speak of, those of older generations included."""
    records = [*cache.glob(f"{COMMITS}/*/*.json")]
    there = {path for path in cache.rglob("*") if path.is_file()}
    # A claim whose bytes a power cut took says no more whose it was. It holds nobody up: its counter stands still.
    there -= {path for path in cache.glob(f"{CLAIMS}/*/*") if not read_writer(path)}
    there -= {file.path for file in files_to_check(cache)} | {cache / name for name in (PLAN, SKIPPED, PROVENANCE)}
    there -= {cache / read_record(path).blocks.path for path in records}
    return there - {*cache.glob(f"{PASSES}/*.json"), *records}


def _unrecorded(cache: Path, records: list[Record]) -> list[Path]:
    named = {entry.path for record in records for entry in record.files}
    layers = (cache / GROUP).glob("layers/*/*/c/**/*")
    files = [path.relative_to(cache) for path in layers if path.is_file()]
    return [path for path in files if _DATA_FILE.search(str(path)) and str(path) not in named]


def _told(check: Callable[[], list[str]]) -> list[str]:
    """What a check finds; an exception is a finding too."""
    try:
        return check()
    except Exception as error:
        return [f"{type(error).__name__}: {error}"]
