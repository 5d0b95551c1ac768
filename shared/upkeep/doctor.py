"""Does a file system do what a cache needs: create, rename, link, fsync, lock, allocate, map and protect files?

Every check does the thing itself in a folder of its own, through the same I/O module as a harvest, and leaves
nothing behind.
"""

import contextlib
import fcntl
import mmap
import os
import resource
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from shared import storage
from shared.errors import UserError
from shared.format.commits import new_writer_id

State = Literal["ok", "slow", "FAIL"]

_SPEED_BYTES = 64 << 20
_PIECE = 8 << 20
_SLOW_BYTES_PER_SECOND = 100e6
_SLOW_FSYNC_SECONDS = 0.05
_FEW_FILES = 1024
_FEW_BYTES = 5e9


@dataclass(frozen=True)
class Finding:
    """What came of one check."""

    name: str
    state: State
    text: str
    """What was seen; where it is not ok, what it means and what to do."""


class Failed(Exception):
    """A check that did not find what a cache needs; the message is what was found."""


def examine(folder: Path) -> Iterator[Finding]:
    """Run every check in a new folder inside ``folder``, which must be there.

    "FAIL" is what a cache cannot do without; "slow" works, with a drawback that the text names.

    Raises:
        StorageError: not even a folder can be made.
    """
    scratch = folder / f".doctor-{new_writer_id()}"
    with storage.translate_errors(scratch):
        scratch.mkdir()  # not made durable: whether that works is one of the checks
    try:
        for name, check, remedy in _CHECKS:
            yield _run(name, check, remedy, scratch)
    finally:
        with contextlib.suppress(UserError):
            storage.remove_tree(scratch)


def _run(name: str, check: Callable[[Path], tuple[State, str]], remedy: str, scratch: Path) -> Finding:
    try:
        state, text = check(scratch)
    except (Failed, UserError, OSError) as error:
        return Finding(name, "FAIL", f"{error} {remedy}")
    return Finding(name, state, text if state == "ok" else f"{text} {remedy}")


def _create(scratch: Path) -> tuple[State, str]:
    path = scratch / "created"
    storage.write_new_file(path, b"granary")
    _expect(path.read_bytes() == b"granary", "A file that was written reads back otherwise.")
    return "ok", "files are created, written in place and read back"


def _rename(scratch: Path) -> tuple[State, str]:
    new, old = scratch / "new", scratch / "old"
    storage.write_new_file(old, b"old")
    storage.write_new_file(new, b"new")
    with old.open("rb") as opened:
        storage.publish(new, old)
        _expect(old.read_bytes() == b"new" and not new.exists(), "A rename did not replace the file that was there.")
        _expect(opened.read() == b"old", "Renaming over a file changed it for who had it open.")
    return "ok", "a rename replaces a file at once, and readers keep the old one"


def _link(scratch: Path) -> tuple[State, str]:
    winner, loser, name = scratch / "winner", scratch / "loser", scratch / "linked"
    storage.write_new_file(winner, b"winner")
    storage.write_new_file(loser, b"loser")
    _expect(storage.link(winner, name), "A link to a free name was not made.")
    _expect(not storage.link(loser, name), "A second link took a name that was taken.")
    _expect(name.read_bytes() == b"winner" and winner.stat().st_nlink == 2, "A link is not the file that it links to.")
    return "ok", "of two links to one name the first wins: two writers cannot commit one unit"


def _fsync(scratch: Path) -> tuple[State, str]:
    started = time.monotonic()
    for number in range(8):
        storage.write_new_file(scratch / f"synced{number}", bytes(4096))
        storage.fsync_folder(scratch)
    seconds = (time.monotonic() - started) / 16
    state: State = "slow" if seconds > _SLOW_FSYNC_SECONDS else "ok"
    return state, f"files and folders are made durable, {1000 * seconds:.1f} ms each"


def _lock(scratch: Path) -> tuple[State, str]:
    path = scratch / "locked"
    storage.write_new_file(path, b"")
    with path.open("r+b") as one, path.open("r+b") as other:
        try:
            fcntl.flock(one, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            return "slow", f"no locks here ({error.strerror})."
        try:
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return "ok", "a lock keeps others out: the death of a writer is seen at once"
    return "FAIL", "A file was locked twice at a time: living writers would be taken for dead."


def _allocate(scratch: Path) -> tuple[State, str]:
    path, size = scratch / "allocated", 8 << 20
    with storage.NewFile(path, size) as file:
        status = path.stat()
        _expect(status.st_size == size, f"Of {size} bytes asked for a file got {status.st_size}.")
        file.write(size - 7, [b"granary"])
        file.read_into(size - 7, memoryview(read := bytearray(7)))
        _expect(read == b"granary", "What was written into a preallocated file reads otherwise.")
    if status.st_blocks * 512 < size:
        return "slow", "space is promised but not set aside (compression or copy on write)."
    return "ok", "space is set aside before a unit is computed"


def _map(scratch: Path) -> tuple[State, str]:
    path, other = scratch / "mapped", scratch / "other"
    data = os.urandom(1 << 20)
    storage.write_new_file(path, data)
    storage.write_new_file(other, bytes(len(data)))
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped:
        _expect(mapped[:] == data, "A mapped file shows other bytes than were written.")
        storage.publish(other, path)
        _expect(mapped[:] == data, "A file that was replaced changed under its map.")
    return "ok", "files are mapped, and keep their bytes when a repair replaces them"


def _protect(scratch: Path) -> tuple[State, str]:
    path = scratch / "protected"
    storage.write_new_file(path, b"granary")
    storage.make_read_only(path)
    if path.stat().st_mode & 0o222:
        return "slow", "a file stays writable that was made read-only."
    return "ok", "committed files are made read-only"


def _space(scratch: Path) -> tuple[State, str]:
    free = storage.free_bytes(scratch)
    return "slow" if free < _FEW_BYTES else "ok", f"{free / 1e9:.1f} GB free for caches"


def _speed(scratch: Path) -> tuple[State, str]:
    path, piece = scratch / "speed", os.urandom(_PIECE)
    started = time.monotonic()
    with storage.NewFile(path, _SPEED_BYTES) as file:
        for offset in range(0, _SPEED_BYTES, len(piece)):
            file.write(offset, [piece])
        file.fsync()
    write = _SPEED_BYTES / (time.monotonic() - started)
    with path.open("rb") as opened:
        with contextlib.suppress(OSError):  # forget the pages, so that the disk is read
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        started = time.monotonic()
        while opened.read(len(piece)):
            pass
        read = _SPEED_BYTES / (time.monotonic() - started)
    state: State = "slow" if min(write, read) < _SLOW_BYTES_PER_SECOND else "ok"
    return state, f"64 MB written and made durable at {write / 1e6:,.0f} MB/s, read at {read / 1e6:,.0f} MB/s"


def _open_files(_: Path) -> tuple[State, str]:
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if limit == resource.RLIM_INFINITY:
        return "ok", "any number of open files"
    return "ok" if limit >= _FEW_FILES else "slow", f"{limit} open files at most"


def _expect(holds: bool, problem: str) -> None:
    if not holds:
        raise Failed(problem)


_ELSEWHERE = "A cache cannot be kept safely here: put it on another file system (CACHE=/scratch/name)."

_CHECKS: tuple[tuple[str, Callable[[Path], tuple[State, str]], str], ...] = (
    ("create", _create, _ELSEWHERE),
    ("rename", _rename, _ELSEWHERE),
    ("link", _link, f"Commits rest on it. {_ELSEWHERE}"),
    ("fsync", _fsync, "A unit takes a few dozen of them: a local disk is better (CACHE=/scratch/name)."),
    ("lock", _lock, "A dead writer is noticed after a minute only, and what it left stays. Mount with flock."),
    ("allocate", _allocate, "A full disk may be met in the middle of a unit; what is committed is safe. Leave space."),
    ("map", _map, "Training maps the cache's files: train from a copy on another file system."),
    ("protect", _protect, "A slip could change committed files (verify finds it). Mount without forced modes."),
    ("space", _space, "What a harvest takes: python -m harvest run --dry-run ..."),
    ("speed", _speed, "The model waits for the disk where it makes more: tokens/s x layers x d_model x 2 bytes."),
    ("open files", _open_files, "A unit opens a file a layer and shard. Raise the limit: ulimit -n 4096"),
)
"""Name, check, and what it means, or asks for, where it does not find "ok"."""


def file_system(folder: Path) -> str:
    """The kind of file system that holds a folder ("ext4", "nfs4"); "unknown" where the system does not say."""
    try:
        mounts = Path("/proc/self/mounts").read_text(errors="replace").splitlines()
    except OSError:
        return "unknown"
    path, found, kind = folder.resolve(), Path(), "unknown"
    for fields in (line.split(" ") for line in mounts):
        if len(fields) > 2 and path.is_relative_to(fields[1]) and len(fields[1]) >= len(str(found)):
            found, kind = Path(fields[1]), fields[2]  # of two on one folder the later one counts
    return kind
