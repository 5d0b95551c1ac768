"""Mutants of the commit protocol: what the power-loss suite must not let pass.

A call of fsync is taken away, or moved, in the recording of a harvest: the simulated disk then behaves as if
the program had been written that way. The calls are found in the source, so that a new one is a new mutant.
"""

import ast
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

from shared import storage
from shared.format.commits import Record, record_path, roll_forward
from shared.format.layout import TMP
from shared.sealed_json import seal
from tests.crash.disk import Name, Operation, Sync
from tests.crash.recorder import CHECKOUT

ELSEWHERE = {"shared/upkeep/doctor.py", "harvest/jsonl_output.py", "fsync_file"}
"""Files and functions where what is fsynced is no part of a cache. `fsync_file` is for a checkpoint of training."""

_CALLS = {"fsync", "fsync_folder"}


@dataclass(frozen=True)
class FsyncCall:
    """A place in the source where something is fsynced."""

    file: str
    """Relative to the checkout."""
    function: str
    lines: range = field(compare=False)
    source: str

    def __str__(self) -> str:
        return f"{self.file}, {self.function}: without {self.source}"

    def made(self, sync: Sync) -> bool:
        """Whether this call asked for that fsync."""
        return any(file == self.file and line in self.lines for file, line in sync.frames)

    def without(self, operations: Sequence[Operation]) -> list[Operation]:
        """A recording as if the call were not in the source."""
        return [one for one in operations if not (isinstance(one, Sync) and self.made(one))]


def fsync_calls() -> list[FsyncCall]:
    """Every call of fsync on the way of a plan, a pass, a unit or an archive into a cache."""
    found: list[FsyncCall] = []
    for path in sorted([*CHECKOUT.glob("shared/**/*.py"), *CHECKOUT.glob("harvest/**/*.py")]):
        name = str(path.relative_to(CHECKOUT))
        if name not in ELSEWHERE:
            found += _calls_in(ast.parse(path.read_text()), name, path.stem)
    return [call for call in found if call.function not in ELSEWHERE]


def _calls_in(node: ast.AST, file: str, function: str) -> Iterator[FsyncCall]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.ClassDef | ast.FunctionDef):
            inner = child.name if not isinstance(node, ast.ClassDef) else f"{function}.{child.name}"
            yield from _calls_in(child, file, inner)
            continue
        if isinstance(child, ast.Call):
            name = child.func.attr if isinstance(child.func, ast.Attribute) else getattr(child.func, "id", "")
            if name in _CALLS:
                yield FsyncCall(file, function, range(child.lineno, child.end_lineno + 1), ast.unparse(child))
        yield from _calls_in(child, file, function)


def only_new_folders_synced(operations: Sequence[Operation]) -> list[Operation]:
    """A recording as if `make_folder` left a folder that was there as it is, and its name undurable perhaps."""
    [call] = [one for one in fsync_calls() if one.function == "make_folder"]
    return [
        one for before, one in pairwise([None, *operations])
        if not (isinstance(one, Sync) and call.made(one) and not isinstance(before, Name))
    ]


def names_before_bytes(operations: Sequence[Operation]) -> list[Operation]:
    """A recording as if every file were fsynced only after it has got its next name, and that name is durable."""
    return _moved(operations, lambda number, sync: sync.node > 0 and _when_named(operations, number, sync.node))


def folders_before_names(operations: Sequence[Operation]) -> list[Operation]:
    """A recording as if every folder were fsynced before its newest name, and not after."""
    return _moved(operations, lambda number, sync: sync.node <= 0 and _newest_name(operations, number, sync.node))


def _when_named(operations: Sequence[Operation], number: int, node: int) -> int | None:
    """Where the next name that a file gets has become durable; None if it gets none."""
    folder = None
    for place in range(number, len(operations)):
        one = operations[place]
        if isinstance(one, Name) and one.node == node:
            folder = one.folder
        elif isinstance(one, Sync) and one.node == folder:
            return place + 1
    return None


def _newest_name(operations: Sequence[Operation], number: int, folder: int) -> int | None:
    for place in range(number - 1, -1, -1):
        one = operations[place]
        if isinstance(one, Name) and one.folder == folder:
            return place
    return None


def _moved(operations: Sequence[Operation], where) -> list[Operation]:
    """The recording with fsyncs moved to other places; ``where`` gives the new place, or None to leave one."""
    placed = []
    for number, one in enumerate(operations):
        target = where(number, one) if isinstance(one, Sync) else None
        placed.append((number + 0.5 if not target else target - 0.25, number, one))
    return [one for _, _, one in sorted(placed, key=lambda item: item[:2])]


ORDERS = {
    "folders that were there are not fsynced again": only_new_folders_synced,
    "bytes are fsynced after the rename": names_before_bytes,
    "folders are fsynced before the rename": folders_before_names,
}
"""Mutants that move fsyncs, or take away some of a call's."""


def commit_with_the_record_last(cache: Path, record: Record) -> bool:
    """`shared.format.commits.commit` as others would write it: files get their names first, then comes the record."""
    path = record_path(cache, record.pass_id, record.unit, record.generation)
    storage.make_folder(path.parent)
    temporary = cache / TMP / record.writer / path.name
    storage.write_new_file(temporary, seal(record.model_dump(mode="json")))
    roll_forward(cache, record)
    return storage.create_if_absent(temporary, path)
