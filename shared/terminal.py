"""What every command of ours has in common: one-line errors, exit codes, signals."""

import faulthandler
import os
import signal
import sys
from collections.abc import Callable
from types import FrameType
from typing import Self

from shared.errors import UserError


def run_command(command: Callable[[], object]) -> None:
    """Run a command line program; print a `UserError` without a traceback and end with its exit code.

    Everything else is a bug and keeps its traceback. Ctrl-C ends with 130, SIGTERM with 143.
    """
    faulthandler.enable()  # a bus error (a mapped file truncated under us) prints where it happened
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _stop_at_once)
    try:
        command()
    except UserError as error:
        sys.stderr.write(f"Error: {error}\n")
        sys.exit(error.exit_code)


def _stop_at_once(number: int, _: FrameType | None) -> None:
    """Before any work is open: unwind and end."""
    sys.stderr.write(f"\nStopped by {signal.Signals(number).name}. The same command again goes on from here.\n")
    sys.exit(128 + number)


class StopSignal:
    """Notes SIGTERM and SIGINT, so that a loop can end at a safe point. A second signal ends at once.

    A context manager around a loop that looks at ``exit_code`` (None, 130 or 143) between steps.
    """

    exit_code: int | None = None

    def __enter__(self) -> Self:
        self._previous = {number: signal.signal(number, self._note) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _note(self, number: int, _: FrameType | None) -> None:
        if self.exit_code is not None:
            # As a kill would: unwinding while a thread commits could clean up under it. Recovery handles kills.
            os._exit(128 + number)
        self.exit_code = 128 + number
        sys.stderr.write(f"\n{signal.Signals(number).name}: stopping at the next safe point; once more stops now.\n")
