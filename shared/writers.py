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
from shared.errors import IdentityError, TryAgainError, UserError
from shared.layout import GROUP, PLAN, TMP, inside
from shared.plan import read_passes

_LOCK = "lock"


@contextlib.contextmanager
def writer_folder(cache: Path) -> Iterator[str]:
    """Become a writer of a cache; yields the writer's id and removes its temporaries at the end.

    After an error a unit may be committed while its files still have the names that its record gives: they
    are rolled forward first, and where that fails too the folder stays for `recover`.
    """
    writer = new_writer_id()
    folder = cache / TMP / writer
    storage.make_folder(folder)
    with storage.translate_errors(folder):
        descriptor = os.open(folder / f"{_LOCK}.new", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        with contextlib.suppress(OSError):  # a file system without locks: nobody will take us for dead then
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        with storage.translate_errors(folder):
            (folder / f"{_LOCK}.new").rename(folder / _LOCK)  # locked before anybody can look at it
        yield writer
    finally:
        os.close(descriptor)
        with contextlib.suppress(UserError):
            _roll_all_forward(cache)
            storage.remove_tree(folder)


def recover(cache: Path) -> int:
    """Roll committed units forward and remove the temporaries of dead writers; returns units rolled forward.

    Called by whoever is about to work on a cache.
    """
    temporaries = cache / TMP
    # Who is dead comes first: a writer that commits and dies after we read the records keeps its folder.
    dead = [path for path in sorted(temporaries.glob("*/")) if _is_dead(path / _LOCK)]
    rolled = _roll_all_forward(cache)
    _make_names_durable(cache, {folder.name for folder in dead})
    for folder in dead:
        storage.remove_tree(folder)
    return rolled


def _roll_all_forward(cache: Path) -> int:
    rolled = 0
    for pass_id in read_passes(cache):
        for record in read_records(cache, pass_id).values():
            rolled += roll_forward(cache, record) > 0
    return rolled


def _make_names_durable(cache: Path, writers: set[str]) -> None:
    """Fsync the folders that these writers renamed files into: one may have died between rename and fsync."""
    records = [record for pass_id in read_passes(cache) for record in read_records(cache, pass_id).values()]
    files = [entry.path for record in records if record.writer in writers for entry in record.files]
    for folder in sorted({inside(cache, path).parent for path in files}):
        if folder.is_dir():
            storage.fsync_folder(folder)


def living_writers(cache: Path) -> list[str]:
    """The writers of a cache that hold their lock."""
    folders = sorted((cache / TMP).glob("*/"))
    return [folder.name for folder in folders if (folder / _LOCK).exists() and not _is_dead(folder / _LOCK)]


def remove_cache(cache: Path) -> None:
    """Remove a cache folder, to start over. Killed half-way, nothing is left that looks like a cache.

    Raises:
        IdentityError: the folder is no cache. TryAgainError: a writer is at work in it.
    """
    if any(cache.iterdir()) and not any((cache / name).exists() for name in (PLAN, GROUP, TMP)):
        raise IdentityError(f"{cache} is no cache: --fresh will not remove it. Choose another one: CACHE=name")
    if living_writers(cache):
        raise TryAgainError(f"{cache} is being written by {', '.join(living_writers(cache))}. Stop it first.")
    aside = cache.with_name(f".{cache.name}.removed-{new_writer_id()}")
    with storage.translate_errors(cache):
        cache.rename(aside)
    storage.remove_tree(aside)


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
