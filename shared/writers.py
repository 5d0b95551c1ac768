"""Writers of a cache: each has a folder of temporaries and holds a lock in it while it lives.

The lock tells a dead writer from a slow one without clocks: the system frees it when the process ends,
however it ends.
"""

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from shared import storage
from shared.commits import new_writer_id, read_records, roll_forward
from shared.errors import StorageError
from shared.layout import TMP
from shared.plan import read_passes

_LOCK = "lock"


@contextlib.contextmanager
def writer_folder(cache: Path) -> Iterator[str]:
    """Become a writer of a cache; yields the writer's id and removes its temporaries at the end."""
    writer = new_writer_id()
    folder = cache / TMP / writer
    storage.make_folder(folder)
    with storage.translate_errors(folder):
        descriptor = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        with contextlib.suppress(OSError):  # a file system without locks: nobody will take us for dead then
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield writer
    finally:
        os.close(descriptor)
        with contextlib.suppress(StorageError):
            storage.remove_tree(folder)


def recover(cache: Path) -> int:
    """Roll committed units forward and remove the temporaries of dead writers; returns units rolled forward.

    Called by whoever is about to work on a cache.
    """
    rolled = 0
    for pass_id in read_passes(cache):
        for record in read_records(cache, pass_id).values():
            rolled += roll_forward(cache, record) > 0
    temporaries = cache / TMP
    for folder in sorted(temporaries.iterdir()) if temporaries.is_dir() else []:
        if folder.is_dir() and _is_dead(folder / _LOCK):
            storage.remove_tree(folder)
    return rolled


def _is_dead(lock: Path) -> bool:
    """Whether the writer of this lock is certainly gone: the lock is there and nobody holds it."""
    try:
        descriptor = os.open(lock, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    else:
        return True
    finally:
        os.close(descriptor)
