"""The one module through which a cache's bytes are written, made durable and published.

zarr-python never fsyncs, and a file that was renamed but not fsynced can be empty after a power loss. So
every write of ours goes through here: write under a temporary name, fsync the file, publish it by rename
or link, fsync the folder. Tests fail the Nth operation through `observe`.
"""

import contextlib
import errno
import os
import shutil
import stat
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from shared.errors import StorageError, TryAgainError

Observer = Callable[[str, Path], None]
"""Called with the name of an operation and its path before it happens; may raise OSError."""

Buffer = bytes | bytearray | memoryview

_observer: Observer | None = None
_durable_folders: set[Path] = set()
_PARTIAL = ".partial"
_MAX_VECTORS = 512  # well under IOV_MAX (1024 on Linux)


@contextlib.contextmanager
def observe(observer: Observer) -> Iterator[None]:
    """Call ``observer(operation, path)`` before every operation of this module, for fault tests."""
    global _observer
    previous, _observer = _observer, observer
    try:
        yield
    finally:
        _observer = previous


def _announce(operation: str, path: Path) -> None:
    if _observer is not None:
        _observer(operation, path)


@contextlib.contextmanager
def translate_errors(path: Path) -> Iterator[None]:
    """Turn an OSError into the error a user sees: a full disk is "try again", the rest is I/O.

    Raises:
        TryAgainError: the disk or the quota is full (exit 75).
        StorageError: any other failure of the file system (exit 74).
    """
    try:
        yield
    except OSError as error:
        where = error.filename or path
        if error.errno in {errno.ENOSPC, errno.EDQUOT}:
            raise TryAgainError(
                f"No space left for {where} ({error.strerror}). What is committed is safe: free some space and "
                "run the same command again, it goes on where it stopped."
            ) from error
        raise StorageError(f"Cannot write {where}: {error.strerror or error}.") from error


@contextlib.contextmanager
def _gone_is_told() -> Iterator[None]:
    """Let FileNotFoundError through as it is: where several work on one cache, another may have been faster."""
    try:
        yield
    except StorageError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            raise error.__cause__ from None
        raise


def make_folder(path: Path) -> None:
    """Create a folder and its parents, each made durable in its own parent.

    A folder that was there is made durable too, once a process: a run that was killed may have made it and
    never got to the fsync.
    """
    path = path.absolute()
    was_there = path.is_dir()
    if was_there and path in _durable_folders:
        return
    if path.parent != path:
        make_folder(path.parent)
    with translate_errors(path):
        _announce("mkdir", path)
        path.mkdir(exist_ok=True)
    try:
        fsync_folder(path.parent)
    except StorageError as error:
        if not (was_there and isinstance(error.__cause__, PermissionError)):
            raise  # a parent that we may not open was there before any of our runs
    _durable_folders.add(path)


def fsync_folder(path: Path) -> None:
    """Make the names in a folder durable: a rename is lost at a power cut without it."""
    with translate_errors(path):
        _announce("fsync_folder", path)
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def fsync_file(path: Path) -> None:
    """Make the bytes of a file durable that was not written through `NewFile`."""
    with translate_errors(path):
        _announce("fsync", path)
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


class NewFile:
    """A file under construction, preallocated so that a full disk is met before the work is done.

    Opened for reading and writing; ``close`` does not fsync, ``fsync`` is never retried: after a failed
    fsync the kernel may have dropped the data, so the file has to be written anew.
    """

    def __init__(self, path: Path, size: int) -> None:
        self.path = path
        self.size = size
        with translate_errors(path):
            _announce("create", path)
            self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
            try:
                if size:
                    _announce("allocate", path)
                    os.posix_fallocate(self._descriptor, 0, size)
            except BaseException:
                os.close(self._descriptor)
                raise

    def write(self, offset: int, buffers: Sequence[Buffer]) -> None:
        """Write the buffers one after the other from ``offset`` (bytes); a short write goes on."""
        with translate_errors(self.path):
            for start in range(0, len(buffers), _MAX_VECTORS):
                pending = [memoryview(buffer).cast("B") for buffer in buffers[start : start + _MAX_VECTORS]]
                while pending:
                    _announce("write", self.path)
                    written = os.pwritev(self._descriptor, pending, offset)
                    offset += written
                    while pending and written >= len(pending[0]):
                        written -= len(pending.pop(0))
                    if pending and written:
                        pending[0] = pending[0][written:]

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Read back as many bytes as ``buffer`` holds, all of which must lie in the file."""
        done = 0
        with translate_errors(self.path):
            while done < len(buffer):
                read = os.preadv(self._descriptor, [buffer[done:]], offset + done)
                assert read > 0, "the file is preallocated"
                done += read

    def fsync(self) -> None:
        """Make the file's bytes durable."""
        with translate_errors(self.path):
            _announce("fsync", self.path)
            os.fsync(self._descriptor)

    def fileno(self) -> int:
        """The descriptor, for locks."""
        return self._descriptor

    def close(self) -> None:
        """Close the file; committed data files are made read-only when they are published."""
        os.close(self._descriptor)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def write_new_file(path: Path, data: Buffer) -> None:
    """Write a file and fsync it. Its name becomes durable with the folder's fsync, or by publishing it."""
    with NewFile(path, 0) as file:
        file.write(0, [data] if len(data) else [])
        file.fsync()


def write_file(path: Path, data: Buffer, temporary_folder: Path | None = None) -> None:
    """Create or replace ``path`` atomically: old bytes or new bytes, never a mix, also after a power cut."""
    temporary = (temporary_folder or path.parent) / f".{path.name}.{uuid.uuid4().hex[:12]}{_PARTIAL}"
    try:
        write_new_file(temporary, data)
        publish(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def partial_of(path: Path) -> Path:
    """Where a file is written that gets its name at the end, for a writer that is alone with it."""
    return path.with_name(f".{path.name}{_PARTIAL}")


def is_partial(path: Path) -> bool:
    """Whether a file is what a killed writer left, of `write_file` or at `partial_of`."""
    return path.name.startswith(".") and path.name.endswith(_PARTIAL)


def rename(temporary: Path, path: Path) -> None:
    """Rename a finished, fsynced file, or a folder; the caller makes the name durable with `fsync_folder`.

    Raises:
        FileNotFoundError: ``temporary`` is gone.
    """
    with _gone_is_told(), translate_errors(path):
        _announce("rename", path)
        temporary.replace(path)


def publish(temporary: Path, path: Path) -> None:
    """Rename a finished, fsynced file to its final name and make the name durable."""
    rename(temporary, path)
    fsync_folder(path.parent)


def link(existing: Path, path: Path) -> bool:
    """Give a file a second name unless that name is taken; say whether we made it.

    ``link`` is the one call that creates atomically on local and network file systems alike.
    """
    with translate_errors(path):
        _announce("link", path)
        try:
            os.link(existing, path)
        except FileExistsError:
            # A network file system may report failure for a link that it made.
            return path.exists() and existing.samefile(path)
    return True


def create_if_absent(temporary: Path, path: Path) -> bool:
    """Give a finished, fsynced file its final name unless that name is taken; say whether we won.

    The temporary name is removed either way.
    """
    won = link(temporary, path)
    fsync_folder(path.parent)
    remove(temporary)
    return won


def make_read_only(path: Path) -> None:
    """Take away write permission: committed files never change.

    Raises:
        FileNotFoundError: ``path`` is gone.
    """
    with _gone_is_told(), translate_errors(path):
        _announce("chmod", path)
        path.chmod(stat.S_IRUSR | stat.S_IRGRP | stat.S_IROTH)


def append_line(path: Path, line: str) -> None:
    """Append one line to a log that stands outside every promise of durability."""
    with translate_errors(path):
        _announce("append", path)
        with path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")


def remove(path: Path) -> None:
    """Remove a file if it is there."""
    with translate_errors(path):
        _announce("unlink", path)
        path.unlink(missing_ok=True)


def remove_tree(path: Path) -> None:
    """Remove a folder of temporaries and what is in it, if it is there."""
    with translate_errors(path):
        _announce("rmtree", path)
        while path.exists():
            with contextlib.suppress(FileNotFoundError):  # another removes it too
                shutil.rmtree(path)


def free_bytes(path: Path) -> int:
    """Bytes free for us on the file system that holds ``path`` or its nearest existing parent."""
    while not path.exists():
        path = path.absolute().parent
    return shutil.disk_usage(path).free
