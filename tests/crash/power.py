"""Power cuts: from a recording, every state that a cut after any call may leave, each of them only once."""

import json
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

from tests.crash.disk import Disk, Operation

Tree = dict[str, bytes | None]

_LARGE = 50_000


@dataclass(frozen=True)
class CrashState:
    """What a power cut leaves, and what had been promised by then."""

    tree: Tree
    said: frozenset
    after: int
    """Number of the call after which the power was cut."""
    number_lost: int
    number_kept: int
    key: int
    """Equal for states that nobody can tell apart."""


class CrashStates:
    """The states that cuts may leave: none of the unsynced changes survive, or all, or all but up to three, or
    only up to three of them."""

    def __init__(
        self, start: Disk, operations: Sequence[Operation], up_to: int = 3, cuts: Collection[int] | None = None,
        seen: set[int] | None = None,
    ) -> None:
        """Args:
            up_to: how many changes survive alone, or are lost alone.
            cuts: after how many operations the power is cut; after every number of them by default.
            seen: keys of states that are left out; those that are given are added.
        """
        self._start = start
        self._operations = operations
        self._up_to = up_to
        self._cuts = range(len(operations) + 1) if cuts is None else set(cuts)
        self._seen = set() if seen is None else seen
        self.num_built = 0

    def __iter__(self) -> Iterator[CrashState]:
        disk = self._start.copy()
        for number, operation in enumerate([None, *self._operations]):
            if operation is not None:
                disk.apply(operation)
            if number not in self._cuts:
                continue
            said = frozenset(disk.said)
            choices = disk.choices()
            for kept in _subsets(len(choices), self._up_to):
                self.num_built += 1
                tree = disk.state([choices[index] for index in kept])
                key = _key(tree, said)
                if key not in self._seen:
                    self._seen.add(key)
                    yield CrashState(tree, said, number, len(choices) - len(kept), len(kept), key)


def _subsets(number: int, up_to: int) -> Iterator[tuple[int, ...]]:
    """Subsets of ``range(number)`` that hold at most ``up_to``, or lack at most as many; each once."""
    for size in range(number + 1):
        if size <= up_to or number - size <= up_to:
            yield from combinations(range(number), size)


def _key(tree: Tree, said: frozenset) -> int:
    """Equal for states that differ only in bytes of temporaries that no record names: nobody reads those."""
    named = _named_by_records(tree)
    seen = set()
    for path, data in tree.items():
        is_read = not path.startswith("tmp/") or path in named or path.endswith("/heartbeat")
        seen.add((path, data if is_read else type(data)))
    return hash((said, frozenset(seen)))  # the hash of a bytes object is kept in it: most are the same objects


def _named_by_records(tree: Tree) -> set[str]:
    named = set()
    for path, data in tree.items():
        if path.startswith("commits/") and path.endswith(".json") and data:
            try:
                named |= {entry["temporary"] for entry in json.loads(data)["files"]}
            except (ValueError, KeyError, TypeError):
                continue  # a damaged record; what it named is judged by its bytes
    return named


def materialise(tree: Tree, folder: Path) -> Path:
    """Write a state into a folder that is made for it; large files, which nobody changes, are links to one copy."""
    pool = folder.with_name("pool")
    pool.mkdir(exist_ok=True)
    folder.mkdir()
    for path, data in sorted(tree.items()):
        if data is None:
            (folder / path).mkdir()
        elif len(data) < _LARGE:
            (folder / path).write_bytes(data)
        else:
            copy = pool / f"{hash(data)}-{len(data)}"
            if not copy.exists():
                copy.write_bytes(data)
            (folder / path).hardlink_to(copy)
    return folder
