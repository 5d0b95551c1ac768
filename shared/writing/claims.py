"""Claims: how any number of writers share the units of a cache without doing one twice.

A claim is a hard link to its writer's heartbeat file, ``claims/<pass>/<unit>.g<generation>.c<n>``: created
only if absent, and alive as long as the writer is. The claim with the highest n counts; whoever finds it dead
takes the unit over by creating n + 1. Claims only save work. What is true stands in the commit records: a
writer that was paused and wakes late finds the record and drops its work.
"""

import contextlib
import re
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from shared import storage
from shared.format.commits import record_path
from shared.format.layout import CLAIMS, HEARTBEAT, TMP
from shared.writing.writers import Watch, read_writer

_TURNS = "turns"
"""Folder of the claims of `only_one`, beside those of the passes."""

_POLL_SECONDS = 0.2
_CLAIM_NAME = re.compile(r"(\d{6})\.g(\d+)\.c(\d+)")


@dataclass(frozen=True, order=True)
class Work:
    """A unit to compute, and the generation of the record to create: 0, or one more than a damaged one's."""

    unit: int
    generation: int = 0


class Claims:
    """The claims of one writer on the units of one pass."""

    def __init__(self, cache: Path, pass_id: str, writer: str, watch: Watch | None = None) -> None:
        self._cache = cache
        self._pass_id = pass_id
        self._writer = writer
        self._heartbeat = cache / TMP / writer / HEARTBEAT
        self._watch = watch or Watch()
        self._held: dict[Work, Path] = {}
        storage.make_folder(self._folder)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    @property
    def _folder(self) -> Path:
        return self._cache / CLAIMS / self._pass_id

    def take(self, todo: list[Work]) -> Work | None:
        """Claim the first work that is neither committed nor held by a living writer; None if there is none.

        Claims on what is committed by now are given back.
        """
        self._release_committed()
        newest = _newest_claims(self._folder)
        for work in todo:
            if work in self._held or self.is_done(work):
                continue
            number = 0
            if work in newest:
                last, claim = newest[work]
                if not self._watch.is_stalled(claim):
                    continue
                number = last + 1
            path = self._folder / f"{work.unit:06d}.g{work.generation}.c{number}"
            if storage.link(self._heartbeat, path):
                self._held[work] = path
                if not self.is_done(work):  # it may have been committed, and its claim released, meanwhile
                    return work
        return None

    def share(
        self, todo: Iterable[Work], check_stop: Callable[[], None], settle: Callable[[], None] = lambda: None,
        others_did: Callable[[Work], None] = lambda work: None, waits_for: Callable[[set[str]], None] = lambda _: None,
    ) -> Iterator[Work]:
        """Claim one work after the other until all of ``todo`` is committed, by us or by others.

        Args:
            check_stop: called often; raises to end.
            settle: finishes what we are committing ourselves in the background.
            others_did: told of every work that somebody else committed.
            waits_for: told once, when there is nothing left to claim, the writers that hold the rest.
        """
        left, ours, told = list(todo), set(), False
        while left:
            for work in [work for work in left if self.is_done(work)]:
                left.remove(work)
                if work not in ours:
                    others_did(work)
            check_stop()
            if (mine := self.take(left)) is not None:
                ours.add(mine)
                yield mine
                continue
            settle()
            others = set(self.others(left).values())
            if others and not told:
                waits_for(others)
                told = True
            time.sleep(_POLL_SECONDS if others else 0)

    def is_done(self, work: Work) -> bool:
        """Whether the record is there."""
        return record_path(self._cache, self._pass_id, work.unit, work.generation).exists()

    def others(self, todo: list[Work]) -> dict[Work, str]:
        """Who holds what of ``todo`` besides us."""
        newest = _newest_claims(self._folder)
        return {
            work: read_writer(newest[work][1]) or "?"
            for work in todo if work in newest and work not in self._held and not self.is_done(work)
        }

    def _release_committed(self) -> None:
        for work in [work for work in self._held if self.is_done(work)]:
            storage.remove(self._held.pop(work))

    def release(self) -> None:
        """Give back everything that is held: others may start at once."""
        while self._held:
            storage.remove(self._held.popitem()[1])


@contextlib.contextmanager
def only_one(cache: Path, writer: str) -> Iterator[None]:
    """One process at a time, on whatever machine: for what is looked at and then written, plans and passes.

    Waits for whoever is inside; one that died there is taken over from as a unit is.
    """
    with Claims(cache, _TURNS, writer) as claims:
        while claims.take([Work(0)]) is None:
            time.sleep(_POLL_SECONDS)
        yield


def holders(cache: Path) -> dict[tuple[str, int, int], str]:
    """The writers that hold units not committed yet, by pass, unit and generation; alive or not."""
    found = {}
    for folder in sorted((cache / CLAIMS).glob("*/")):
        if folder.name == _TURNS:
            continue
        for work, (_, claim) in sorted(_newest_claims(folder).items()):
            writer = read_writer(claim)
            if writer and not record_path(cache, folder.name, work.unit, work.generation).exists():
                found[folder.name, work.unit, work.generation] = writer
    return found


def _newest_claims(folder: Path) -> dict[Work, tuple[int, Path]]:
    newest: dict[Work, tuple[int, Path]] = {}
    for work, number, path in claims_in(folder):
        if work not in newest or newest[work][0] < number:
            newest[work] = number, path
    return newest


def claims_in(folder: Path) -> Iterator[tuple[Work, int, Path]]:
    """Every claim in a pass's folder of claims: the work, the claim's number, its file."""
    if folder.is_dir():
        for path in folder.iterdir():
            if match := _CLAIM_NAME.fullmatch(path.name):
                yield Work(int(match[1]), int(match[2])), int(match[3]), path
