"""Writes down every call that changes a folder, for the simulated disk, while a program really runs in it.

The functions of `os` are replaced for as long as it records; what would change the folder in a way that is not
modelled is an error, and at the end the recording must lead to the tree that really is there.
"""

import io
import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from unittest.mock import patch

from tests.crash.disk import ROOT, Disk, Name, Operation, Said, Size, Sync, Write

CHECKOUT = Path(__file__).resolve().parents[2]
_OURS = tuple(str(CHECKOUT / folder) + os.sep for folder in ("shared", "harvest"))
LOG = "provenance.jsonl"
"""Outside every promise, and written through Python's files: not modelled."""


class Recorder:
    """Records what happens below ``root``, an existing folder; what is in it already counts as durable."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.operations: list[Operation] = []
        self._numbers = {"folder": 0, "file": 0}
        self._names: dict[int, dict[str, int]] = {ROOT: {}}
        self._open: dict[int, int] = {}
        self._lock = threading.RLock()
        self._patches = [patch.object(os, name, self._replace(name)) for name in _REPLACED]
        self._patches.append(patch.object(io, "open", self._replace_open(io.open)))
        self.start = self._take_stock()

    def say(self, what: object) -> None:
        """Somebody is told something, here and now."""
        self.operations.append(Said(what))

    def __enter__(self) -> "Recorder":
        for one in self._patches:
            one.start()
        return self

    def __exit__(self, *_: object) -> None:
        for one in self._patches:
            one.stop()

    def check(self) -> None:
        """Assert that the recording leads to the tree that is there."""
        disk = self.start.copy()
        for operation in self.operations:
            disk.apply(operation)
        recorded = disk.state([[one] for one in disk.pending])
        there = {
            str(path.relative_to(self.root)): path.read_bytes() if path.is_file() else None
            for path in self.root.rglob("*")
        }
        there.pop(LOG, None)
        assert recorded == there, sorted(name for name in recorded.keys() | there.keys()
                                         if recorded.get(name, 0) != there.get(name, 0))

    # -- the folder as it is now ------------------------------------------------------------------------

    def _take_stock(self) -> Disk:
        disk = Disk()
        for path in sorted(self.root.rglob("*")):
            if path.name == LOG:
                continue
            folder, name = self._place(path)
            node = self._new("folder" if path.is_dir() else "file")
            self._names[folder][name] = node
            if node > 0:
                disk.contents[node] = path.read_bytes()
        disk.names = {folder: dict(entries) for folder, entries in self._names.items()}
        return disk

    def _new(self, kind: str) -> int:
        self._numbers[kind] += 1
        number = self._numbers[kind]
        if kind == "folder":
            self._names[-number] = {}
        return -number if kind == "folder" else number

    def _inside(self, path: object, dir_fd: int | None) -> Path | None:
        """The path below the root that a call speaks of; None if it speaks of another."""
        if isinstance(path, int):
            return None
        full = Path(os.fsdecode(path))  # type: ignore[arg-type]
        if dir_fd is not None and not full.is_absolute():
            full = Path(f"/proc/self/fd/{dir_fd}").readlink() / full
        full = full.absolute()
        return full if full.is_relative_to(self.root) else None

    def _place(self, path: Path) -> tuple[int, str]:
        """Number of the folder that holds a path, and the path's name in it."""
        folder = ROOT
        parts = path.relative_to(self.root).parts
        for part in parts[:-1]:
            folder = self._names[folder][part]
        return folder, parts[-1]

    def _node(self, path: Path) -> int:
        if path == self.root:
            return ROOT
        folder, name = self._place(path)
        return self._names[folder][name]

    def _rename_to(self, folder: int, name: str, node: int | None, with_name: Name | None = None) -> Name:
        if node is None:
            del self._names[folder][name]
        else:
            self._names[folder][name] = node
        change = Name(folder, name, node, with_name)
        self.operations.append(change)
        return change

    # -- what is replaced -------------------------------------------------------------------------------

    def _replace(self, name: str) -> Callable[..., object]:
        real, after = getattr(os, name), getattr(self, f"_after_{name}", None)

        def call(*arguments: object, **options: object) -> object:
            with self._lock:
                if name == "fsync":
                    result = None  # what it does is simulated
                elif name == "open":
                    return self._opened(real, *arguments, **options)
                else:
                    result = real(*arguments, **options)
                if after is not None:
                    after(result, *arguments, **options)
                else:
                    paths = [word for word in arguments if isinstance(word, str | bytes | os.PathLike)]
                    assert not any(self._inside(path, None) for path in paths), f"os.{name} is not modelled"
                return result

        return call

    def _replace_open(self, real: Callable[..., object]) -> Callable[..., object]:
        def call(file: object, mode: str = "r", *arguments: object, **options: object) -> object:
            path = self._inside(file, None)
            writes = path is not None and set(mode) & set("wax+") and path.name != LOG
            assert not writes, f"{file} is written through Python's files: not modelled"
            return real(file, mode, *arguments, **options)

        return call

    def _opened(self, real: Callable[..., int], path: object, flags: int, mode: int = 0o777, *,
                dir_fd: int | None = None) -> int:
        full = self._inside(path, dir_fd)
        was_there = full is not None and full.exists()
        descriptor = real(path, flags, mode, dir_fd=dir_fd)
        if full is not None:
            if not was_there:
                self._rename_to(*self._place(full), self._new("file"))
            self._open[descriptor] = self._node(full)
            if flags & os.O_TRUNC:
                self.operations.append(Size(self._open[descriptor], 0))
        else:
            self._open.pop(descriptor, None)
        return descriptor

    def _after_close(self, _: object, descriptor: int) -> None:
        self._open.pop(descriptor, None)

    def _after_fsync(self, _: object, descriptor: int) -> None:
        if descriptor in self._open:
            self.operations.append(Sync(self._open[descriptor], _frames()))

    def _after_pwritev(self, written: int, descriptor: int, buffers: list[bytes], offset: int) -> None:
        self._wrote(descriptor, offset, b"".join(map(bytes, buffers))[:written])

    def _after_pwrite(self, written: int, descriptor: int, data: bytes, offset: int) -> None:
        self._wrote(descriptor, offset, bytes(data)[:written])

    def _wrote(self, descriptor: int, offset: int, data: bytes) -> None:
        if descriptor in self._open and data:
            self.operations.append(Write(self._open[descriptor], offset, data))

    def _after_posix_fallocate(self, _: object, descriptor: int, offset: int, length: int) -> None:
        if descriptor in self._open:
            self.operations.append(Size(self._open[descriptor], os.fstat(descriptor).st_size))

    def _after_mkdir(self, _: object, path: object, mode: int = 0o777, *, dir_fd: int | None = None) -> None:
        if full := self._inside(path, dir_fd):
            self._rename_to(*self._place(full), self._new("folder"))

    def _after_link(self, _: object, source: object, target: object, **options: object) -> None:
        if full := self._inside(target, None):
            self._rename_to(*self._place(full), self._node(self._inside(source, None)))

    def _after_unlink(self, _: object, path: object, *, dir_fd: int | None = None) -> None:
        if full := self._inside(path, dir_fd):
            self._rename_to(*self._place(full), None)

    _after_remove = _after_rmdir = _after_unlink

    def _after_rename(self, _: object, source: object, target: object, **options: object) -> None:
        old, new = self._inside(source, None), self._inside(target, None)
        assert (old is None) == (new is None), "a rename across the folder's edge is not modelled"
        if old is not None:
            change = self._rename_to(*self._place(new), self._node(old))
            self._rename_to(*self._place(old), None, change)

    _after_replace = _after_rename

    def _after_chmod(self, *_: object, **options: object) -> None:
        """Permissions are lost or not; nothing rests on them."""


_REPLACED = [
    "open", "close", "fsync", "pwritev", "pwrite", "posix_fallocate", "mkdir", "link", "unlink", "remove", "rmdir",
    "rename", "replace", "chmod", "truncate", "symlink", "mknod", "mkfifo", "setxattr",
]


def _frames() -> tuple[tuple[str, int], ...]:
    """File (relative to the checkout) and line of the frames of ours on the stack, innermost first."""
    found = []
    frame = sys._getframe(3)
    while frame is not None:
        name = frame.f_code.co_filename
        if name.startswith(_OURS):
            found.append((os.path.relpath(name, CHECKOUT), frame.f_lineno))
        frame = frame.f_back
    return tuple(found)
