"""Locks of SAEs: two processes never train the same one, and any number train others beside it."""

import fcntl
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from shared import storage
from shared.errors import TryAgainError


@contextmanager
def locked(folder: Path, names: Sequence[str]) -> Iterator[None]:
    """Hold SAEs by name in a layer's folder of checkpoints, so that two processes never train the same one.

    A lock is a file that is there only while it is held, or after a kill.

    Raises:
        TryAgainError: another process holds one of them.
    """
    storage.make_folder(folder)
    held: list[tuple[int, Path]] = []
    try:
        for name in sorted(names):
            path = folder / f"{name}.lock"
            held.append((_lock(path, name), path))
        yield
    finally:
        for descriptor, path in held:
            storage.remove(path)  # while it is held: who waits for it finds that it is no longer the one by this name
            os.close(descriptor)


def _lock(path: Path, name: str) -> int:
    while True:
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
