"""Memory maps that hold no file open, and that can be asked whether their pages are there.

Python's own map keeps a descriptor for each file, and a layer of a thousand shards would need a thousand of the
1,024 that a process usually may open. And a page that cannot be read, because the file was cut short or the disk
fails, ends the process with a bus error that names nothing. The kernel can be asked first (Linux 5.14 and later).
"""

import contextlib
import ctypes
import errno
import mmap
import os
import weakref
from pathlib import Path

import numpy as np
import numpy.typing as npt

from shared.errors import CorruptError, StorageError
from shared.plain_files import open_file

_MADV_POPULATE_READ = 22
_READ_AHEAD = 128 << 10
"""Bytes that Linux reads ahead of a reader by default."""
_UNREADABLE = {errno.EFAULT, errno.EIO, 133}
"""Touching the bytes would be a bus error. 133 is EHWPOISON: memory that failed."""
_FAILED = ctypes.c_void_p(-1).value

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [
    ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_int64,
]
_libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
_libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]


class MappedFile:
    """The bytes of a file, read-only, mapped as long as an array made of them lives."""

    def __init__(self, path: Path, size: int, owner: str) -> None:
        """Map a plain file of ``size`` bytes.

        Args:
            owner: whose it is, for messages: "unit 3, layer 12".

        Raises:
            CorruptError: it is a link or no plain file, is gone, or has another size.
            StorageError: it cannot be opened or mapped.
        """
        self._path = path
        self._owner = owner
        self._size = size
        try:
            descriptor = open_file(path)
            try:
                self._check(os.fstat(descriptor).st_size)
                address = _libc.mmap(None, size, mmap.PROT_READ, mmap.MAP_SHARED, descriptor, 0)
                error = ctypes.get_errno()
            finally:
                os.close(descriptor)
        except FileNotFoundError:
            raise CorruptError(f"{path} ({owner}) is missing.") from None
        except OSError as failed:
            raise StorageError(f"Cannot read {path} ({owner}): {failed.strerror}.") from failed
        if address in {None, _FAILED}:
            raise StorageError(f"Cannot map {size:,} bytes of {path} ({owner}): {os.strerror(error)}.")
        self._address = int(address)
        memory = (ctypes.c_uint8 * size).from_address(self._address)
        weakref.finalize(memory, _libc.munmap, self._address, size).atexit = False
        self.bytes: npt.NDArray[np.uint8] = np.frombuffer(memoryview(memory).toreadonly(), np.uint8)

    def load(self, start: int, stop: int) -> npt.NDArray[np.uint8]:
        """A view of some bytes that are in memory now, so that touching them is safe.

        Raises:
            CorruptError: the file was cut short since it was mapped. StorageError: it cannot be read.
        """
        first = start - start % mmap.PAGESIZE
        if _libc.madvise(self._address + first, stop - first, _MADV_POPULATE_READ):
            error = ctypes.get_errno()
            if error in _UNREADABLE:
                self.check_size()
                raise StorageError(f"Cannot read {self._path} ({self._owner}): the disk fails at bytes {start:,} to "
                                   f"{stop:,}.")
            self.check_size()  # an older kernel, or another system's
        return self.bytes[start:stop]

    def prefetch(self, start: int, stop: int) -> None:
        """Ask the kernel to begin to read some bytes from disk, and do not wait for them. It is advice.

        Of one call it takes no more than a disk's readahead, and for the rest `load` would wait. Network file systems
        have the default one (`benchmarks.network_disk`).
        """
        for at in range(start - start % mmap.PAGESIZE, stop, _READ_AHEAD):
            _libc.madvise(self._address + at, min(_READ_AHEAD, stop - at), mmap.MADV_WILLNEED)

    def release(self, start: int, stop: int) -> None:
        """Tell the kernel that nobody here needs some bytes soon, so that they make room for others first.

        They stay as they are, and come back from disk when they are touched. It is advice: where the file has
        another name by now, or the kernel takes none, nothing happens.
        """
        first = start - start % mmap.PAGESIZE
        _libc.madvise(self._address + first, stop - first, mmap.MADV_DONTNEED)  # pages that are mapped are not dropped
        with contextlib.suppress(OSError, CorruptError):
            descriptor = open_file(self._path)
            try:
                os.posix_fadvise(descriptor, start, stop - start, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(descriptor)

    def check_size(self) -> None:
        """Check that nobody cut the file short since it was mapped.

        One that was renamed or removed is mapped all the same, and whole.

        Raises:
            CorruptError: it was cut short. StorageError: the file system fails.
        """
        try:
            self._check(self._path.stat().st_size)
        except FileNotFoundError:
            return
        except OSError as error:
            raise StorageError(f"Cannot read {self._path} ({self._owner}): {error.strerror}.") from error

    def _check(self, size: int) -> None:
        if size != self._size:
            raise CorruptError(f"{self._path} ({self._owner}) has {size} bytes, expected {self._size}. See all damage: "
                               "python -m harvest verify CACHE")
