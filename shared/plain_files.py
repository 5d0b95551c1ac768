"""Opening files of a cache that anybody may have made: plain files in plain folders, of a size that is known.

A cache that was downloaded may hold a link to a file of the reader's, a pipe that never ends a read, or a
device. Nothing like that is followed or opened. The cache's own folder may be a link: to scratch, say.
"""

import errno
import os
import stat
from pathlib import Path

from shared.errors import CorruptError, StorageError

_OPEN = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC  # not blocking: a pipe would wait for a writer


def file_size(path: Path) -> int:
    """Size of a file in bytes, by its own entry: neither the file nor the folder that holds it may be a link.

    Raises:
        FileNotFoundError: it is not there.
        CorruptError: it is a link or no file, or its folder is.
        StorageError: the file system fails.
    """
    folder = path.parent
    try:
        above, found = os.lstat(folder), os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path)) from None
    except OSError as error:
        raise StorageError(f"Cannot read {path}: {error.strerror}.") from error
    for name, mode, is_kind in ((folder, above.st_mode, stat.S_ISDIR), (path, found.st_mode, stat.S_ISREG)):
        if not is_kind(mode):
            refuse(name, stat.S_ISLNK(mode))
    return found.st_size


def refuse_link(path: Path) -> None:
    """Check that nothing, or something that is no link, is at a path.

    Raises:
        CorruptError: it is a link.
    """
    if path.is_symlink():
        refuse(path, True)


def open_file(path: Path) -> int:
    """Open a file for reading, if it is a plain file; returns the descriptor.

    Raises:
        CorruptError: it is a link, a folder, a pipe, a socket or a device.
        OSError: as of `os.open`.
    """
    try:
        if not stat.S_ISREG(os.lstat(path).st_mode):  # first: to open a device may set it off
            refuse(path, path.is_symlink())
        descriptor = os.open(path, _OPEN)
    except OSError:
        if path.is_symlink():
            refuse(path, True)
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        refuse(path, False)
    return descriptor


def read_file(path: Path, limit: int) -> bytes:
    """All bytes of a plain file of at most ``limit`` bytes.

    Raises:
        CorruptError: it is larger, shrinks under us, or is no plain file.
        OSError: as of `os.open` and of reading.
    """
    descriptor = open_file(path)
    with os.fdopen(descriptor, "rb", buffering=0) as file:
        size = os.fstat(descriptor).st_size
        if size > limit:
            raise CorruptError(f"{path} is larger than {_amount(limit)}: not a file of ours.")
        data = file.read(size)
        while len(data) < size and (more := file.read(size - len(data))):
            data += more
    if len(data) < size:
        raise CorruptError(f"{path} was cut short while it was read.")
    return data


def read_known(path: Path, limit: int, whose: str = "") -> bytes:
    """`read_file` of a file that plan or records name, so that it has to be there.

    Args:
        whose: for messages: " of unit 3".

    Raises:
        CorruptError: it is missing, too large or no plain file. StorageError: it cannot be read.
    """
    try:
        return read_file(path, limit)
    except FileNotFoundError:
        raise CorruptError(f"{path}{whose} is missing.") from None
    except OSError as error:
        raise StorageError(f"Cannot read {path}{whose}: {error.strerror}.") from error


def refuse(path: str | Path, is_link: bool) -> None:
    """Say that something which is no plain file or folder lies in a cache.

    Raises:
        CorruptError: always.
    """
    what = "a link" if is_link else "neither a file nor a folder"
    hint = " If you trust where it leads, copy the cache with its links followed: cp -rL" if is_link else ""
    raise CorruptError(f"{path} is {what}: a cache holds plain files and folders only.{hint}")


def _amount(size: int) -> str:
    return f"{size >> 20} MiB" if size >> 20 else f"{size} bytes"
