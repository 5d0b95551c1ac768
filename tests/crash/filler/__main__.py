"""A program that fills a planned cache with numbers and says ACK for every unit that it committed.

    python -m tests.crash.filler CACHE [--own-bytes] [--seconds-per-unit 0.2] [--patience 60] [--full-while FILE]

It imports neither torch nor zarr; the tests fork it from a warm process and kill it from outside.
"""

import argparse
import ctypes
import errno
import os
import signal
import time
from pathlib import Path

from shared import storage
from shared.writing import writers
from tests.crash.small_harvest import harvest_alone

_PR_SET_PTRACER, _ANY = 0x59616D61, -1


def hold() -> None:
    """Stop until somebody who has attached a tracer lets us go on; any process of this user may attach."""
    ctypes.CDLL(None).prctl(_PR_SET_PTRACER, ctypes.c_long(_ANY), 0, 0, 0)
    os.kill(os.getpid(), signal.SIGSTOP)


def compute(unit: int, seconds: float) -> None:
    """Take the time that a unit takes, and say that it is done."""
    time.sleep(seconds)
    print(f"COMPUTED {unit}", flush=True)


def disk_that_is_full(while_there: Path) -> storage.Observer:
    """Refuses whatever needs space for as long as a file is there."""

    def refuse(operation: str, path: Path) -> None:
        if operation in {"mkdir", "create", "allocate", "write", "link", "append"} and while_there.exists():
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    return refuse


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser()
    parser.add_argument("cache", type=Path)
    parser.add_argument("--own-bytes", action="store_true", help="rows that no other writer would write")
    parser.add_argument("--seconds-per-unit", type=float, default=0.0, help="what computing a unit takes")
    parser.add_argument("--patience", type=float, default=writers.PATIENCE_SECONDS)
    parser.add_argument("--full-while", type=Path, default=Path("/nowhere"), help="the disk is full while it is there")
    options = parser.parse_args()
    writers.BEAT_SECONDS = options.patience / 10
    with storage.observe(disk_that_is_full(options.full_while)):
        harvest_alone(
            options.cache,
            acknowledge=lambda unit: print(f"ACK {unit}", flush=True),
            seed=None if options.own_bytes else 0,
            watch=writers.Watch(options.patience),
            compute=lambda unit: compute(unit, options.seconds_per_unit),
        )


if __name__ == "__main__":
    main()
