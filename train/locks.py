"""Locks of SAEs: two processes never train the same one, and any number train others beside it."""

import fcntl
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from shared import storage
from shared.errors import TryAgainError
from shared.storage import translate_errors


@contextmanager
def locked(folder: Path, names: Sequence[str]) -> Iterator[None]:
    """Hold SAEs by name in a layer's folder of checkpoints, so that two processes never train the same one.

    A lock is a file that is there only while it is held, or after a kill.

    Raises:
        TryAgainError: another process holds one of them.
    """
    storage.make_folder(folder)
    with ExitStack() as held:
        for name in sorted(names):
            held.enter_context(_lock(folder / f"{name}.lock", name))
        yield


@contextmanager
def _lock(path: Path, name: str) -> Iterator[None]:
    descriptor = _acquire(path, name)
    try:
        yield
    finally:
        try:
            storage.remove(path)  # while it is held: whoever has opened it finds that it is no longer of this name
        finally:
            os.close(descriptor)


def _acquire(path: Path, name: str) -> int:
    while True:
        with translate_errors(path):
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            raise TryAgainError(f"Another process trains {name} (it holds {path}). Wait, or stop it.") from None
        with suppress(FileNotFoundError):  # removed by the one who held it: then this is not the lock any more
            if path.stat().st_ino == os.fstat(descriptor).st_ino:
                return descriptor
        os.close(descriptor)
