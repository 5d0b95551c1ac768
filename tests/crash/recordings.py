"""Recording programs for the simulated disk, undisturbed or killed once, and judging what power cuts leave of them."""

import contextlib
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

from shared import storage
from shared.format.commits import new_writer_id
from shared.writing import writers
from shared.writing.writers import Watch
from tests.crash.disk import Disk, Operation, Said
from tests.crash.oracle import Oracle
from tests.crash.power import CrashState, materialise
from tests.crash.recorder import Recorder
from tests.crash.small_harvest import committed_units, new_process

Program = Callable[[Path, Callable[[object], object]], object]
"""Works on a cache and tells what it has acknowledged: "plan", units."""

_NO_PROCESS = 99_999_999


@dataclass(frozen=True)
class Recording:
    """What happened from a durable start on."""

    start: Disk
    operations: list[Operation]

    def killed_after(self) -> int:
        """Number of operations before the program was killed; 0 if it was not."""
        return next((number for number, one in enumerate(self.operations) if one == Said("killed")), 0)


class Killed(BaseException):
    """SIGKILL, as far as one process can have it."""


def nobody(what: object) -> None:
    """Hears what a program acknowledges, and keeps nothing."""


def operations_of(cache: Path, program: Program) -> list[str]:
    """The operations of the I/O module that a program takes, in order."""
    new_process(cache)
    seen: list[str] = []
    with storage.observe(lambda operation, path: seen.append(operation)):
        program(cache, nobody)
    return seen


def before_fsyncs(operations: list[str], made_by: tuple[str, ...] = ("mkdir", "link", "rename", "unlink")) -> list[int]:
    """Where to kill so that a name was just made and is not durable yet."""
    return [
        number for number in range(1, len(operations))
        if operations[number] == "fsync_folder" and operations[number - 1] in made_by
    ]


def record(cache: Path, program: Program, kill_before: int | None = None) -> Recording:
    """Let a program run on a cache, and write it down; at its end it has acknowledged all that is committed.

    Args:
        cache: its folder, which may be empty.
        kill_before: kill it before this operation of the I/O module, and let it run again.
    """
    cache.mkdir(exist_ok=True)
    count = iter(range(10**9))

    def die(operation: str, path: Path) -> None:
        if next(count) >= kill_before:
            raise Killed

    new_process(cache)
    with of_another_process(), Recorder(cache) as recorder:
        if kill_before is not None:
            with contextlib.suppress(Killed), storage.observe(die):
                program(cache, recorder.say)
                raise AssertionError("it ended before it could be killed")
            recorder.say("killed")
            new_process(cache)
        program(cache, recorder.say)
        for unit in sorted(committed_units(cache)):
            recorder.say(unit)
    recorder.check()
    return Recording(recorder.start, recorder.operations)


@contextlib.contextmanager
def of_another_process() -> Iterator[None]:
    """What is done here was done by processes that are gone afterwards: their ids are nobody's."""
    numbers = iter(range(10**6))
    host = re.sub(r"-\d+-[0-9a-f]+$", "", new_writer_id())
    with patch.object(writers, "new_writer_id", lambda: f"{host}-{_NO_PROCESS}-{next(numbers):06x}"):
        yield


@contextlib.contextmanager
def _rebooted() -> Iterator[None]:
    """The machine was started anew: heartbeats of before are another machine's, and a minute has passed."""
    with (
        patch.object(writers, "_boot_id", lambda: "after-the-power-cut"),
        patch.object(Watch.__init__, "__defaults__", (0.0,)),
    ):
        yield


class Judge:
    """Writes crash states into a folder and lets an oracle judge them.

    Args:
        program: what runs again after the power cut.
        always: what was acknowledged before the recording.
    """

    def __init__(
        self, oracle: Oracle, folder: Path, program: Program, always: frozenset = frozenset({"plan"})
    ) -> None:
        self._oracle = oracle
        self._folder = folder
        self._program = program
        self._always = always

    def violations(self, state: CrashState) -> list[str]:
        """The promises that the state breaks."""
        cache = materialise(state.tree, self._folder / "state")
        said = state.said | self._always
        units = {word for word in said if isinstance(word, int)}
        try:
            with _rebooted():
                return self._oracle.violations(cache, units, lambda cache: self._program(cache, nobody), "plan" in said)
        finally:
            shutil.rmtree(cache)
