"""What every command of ours has in common: one-line errors, exit codes, signals."""

import errno
import faulthandler
import math
import os
import resource
import shlex
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from types import FrameType
from typing import NoReturn, Self

from shared.errors import StorageError, TryAgainError, UserError
from shared.redaction import without_secrets

_ONE_SIGNAL = 3.0
"""Signals within so many seconds of the first are one: a scheduler may send it to every process of a job, and torchrun,
which got it too, hands it on to its workers."""

_first_signal = -math.inf
"""When the signal came at which we began to stop, on the clock that runs on."""

_DISK_ERRORS = {errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.ESTALE}
"""Met anywhere, while a folder is listed or a file closed, they are the file system's and no bug of ours."""


def run_command(command: Callable[[], object]) -> None:
    """Run a command line program; print a `UserError` without a traceback and end with its exit code.

    Everything else is a bug and keeps its traceback, without secrets that it may quote. Ctrl-C ends with 130,
    SIGTERM with 143.
    """
    faulthandler.enable()  # a bus error (a mapped file truncated under us) prints where it happened
    _allow_open_files()
    sys.unraisablehook = _stop_again
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _stop_at_once)
    try:
        command()
    except UserError as error:
        _end(error)
    except Exception as error:
        if isinstance(error, OSError) and error.errno in _DISK_ERRORS:
            full = error.errno in {errno.ENOSPC, errno.EDQUOT}
            _end((TryAgainError if full else StorageError)(f"The file system failed: {error}."))
        sys.stderr.write(without_secrets("".join(traceback.format_exception(error))))
        sys.exit(1)
    except SystemExit as end:
        if end.code == 128 + signal.SIGTERM:
            wait_to_be_requeued()
        raise


def _allow_open_files(wanted: int = 65_536) -> None:
    """Raise the limit of open files as far as we may: a unit is one for each of its layers and shards."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = wanted if hard == resource.RLIM_INFINITY else min(hard, wanted)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _end(error: UserError) -> NoReturn:
    """Say what is wrong and end with its exit code."""
    sys.stderr.write(f"Error: {error.told()}\n")
    if isinstance(error, TryAgainError):
        sys.stderr.write(f"To go on: {resume_command()}\n")
    sys.exit(error.exit_code)


def resume_command() -> str:
    """This command as it was typed, to be typed again; what would start over is left out."""
    return without_secrets(shlex.join(word for word in sys.orig_argv if word not in {"--fresh", "--yes"}))


def wait_to_be_requeued(seconds: float = 600.0) -> None:
    """Under SLURM, stay after a clean stop until SLURM ends the job, ten minutes at most.

    SLURM requeues a preempted job that it had to kill; one that ends by itself in its grace time is a failed
    job (seen with SLURM 22.05; NERSC gives the same advice). To requeue it ourselves would bring back jobs
    that their user cancelled. A second signal ends the wait.
    """
    if "SLURM_JOB_ID" not in os.environ:
        return
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _end_at_once)
    sys.stderr.write("Stopped, all is safe. Waiting for SLURM to end this job, so that it requeues a preempted one.\n")
    sys.stderr.flush()
    time.sleep(seconds)  # goes on after a signal whose handler returns


class _Stopped(SystemExit):
    """Unwinds a command at a signal."""


def _stop_at_once(number: int, _: FrameType | None) -> None:
    """While no work is open: unwind and end."""
    global _first_signal
    if not _is_the_first_again():
        _first_signal = time.monotonic()
        sys.stderr.write(f"\nStopped by {signal.Signals(number).name}. The same command again goes on from here.\n")
        raise _Stopped(128 + number)


def _stop_again(lost: "sys.UnraisableHookArgs") -> None:
    """Python drops what is raised while it frees an object, in ``__del__`` or a weak reference's callback. A signal may
    come just then, and a scheduler sends it once: give it to ourselves again when that is over."""
    global _first_signal
    if not isinstance(lost.exc_value, _Stopped):
        sys.__unraisablehook__(lost)
        return
    _first_signal = -math.inf
    threading.Timer(0.01, os.kill, (os.getpid(), lost.exc_value.args[0] - 128)).start()


class StopSignal:
    """Notes SIGTERM and SIGINT, so that a loop can end at a safe point. A second signal ends at once, if it comes
    more than `_ONE_SIGNAL` seconds after the first.

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
        global _first_signal
        if self.exit_code is not None:
            _end_at_once(number, None)
            return
        _first_signal = time.monotonic()
        self.exit_code = 128 + number
        sys.stderr.write(f"\n{signal.Signals(number).name}: stopping at the next safe point; once more, after "
                         f"{_ONE_SIGNAL:.0f} seconds, stops now.\n")


def _end_at_once(number: int, _: FrameType | None) -> None:
    """At a second signal: as a kill would. To unwind while a thread commits could clean up under it, and recovery
    handles kills."""
    if not _is_the_first_again():
        os._exit(128 + number)


def _is_the_first_again() -> bool:
    return time.monotonic() - _first_signal < _ONE_SIGNAL

