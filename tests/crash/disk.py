"""A simulated disk: which bytes and names a power cut may leave, from a recording of what a program did.

The program runs on a real folder, and every call that changes it is written down. From that follows what the
disk holds for certain after each call, by the weakest rules that a file system may have:

- bytes of a file are there for certain once that file was fsynced, and not before;
- a name (a file made, linked, renamed or removed, a folder made) is there or gone for certain once the folder
  that holds it was fsynced; before, each change of a name is lost or not, whatever became of the others;
- a rename is two changes, a new name and an old one that goes; the old one never goes without the new one;
- a folder whose own name is lost takes with it all that is in it.

Real file systems promise more: ext4 orders data before names, journals keep names in order. What survives here
survives there.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

ROOT = 0
"""The cache's own folder. Folders are numbered from 0 down, files from 1 up."""


class Write(NamedTuple):
    """Bytes written into a file."""

    node: int
    offset: int
    data: bytes


class Size(NamedTuple):
    """A file cut off, or allocated: its size from then on."""

    node: int
    size: int


class Name(NamedTuple):
    """A name of a folder that now stands for a node, or for nothing."""

    folder: int
    name: str
    node: int | None
    with_name: "Name | None" = None
    """Of an old name that goes in a rename: the new one, without which it does not."""


class Sync(NamedTuple):
    """An fsync of a file or a folder."""

    node: int
    frames: tuple[tuple[str, int], ...]
    """Who asked for it: file and line of every frame of ours, innermost first."""


class Said(NamedTuple):
    """Somebody was told something: "plan", or a unit that is committed."""

    what: object


Operation = Write | Size | Name | Sync | Said


@dataclass
class Disk:
    """What is on the disk for certain, and what may be."""

    names: dict[int, dict[str, int]] = field(default_factory=lambda: {ROOT: {}})
    """Durable names of every folder."""
    contents: dict[int, bytes] = field(default_factory=dict)
    """Durable bytes of every file."""
    pending: list[Write | Size | Name] = field(default_factory=list)
    """Changes not synced yet, in the order in which they were made."""
    said: set[object] = field(default_factory=set)

    def apply(self, operation: Operation) -> None:
        """Let one more call happen."""
        if isinstance(operation, Said):
            self.said.add(operation.what)
        elif isinstance(operation, Sync):
            self._sync(operation.node)
        else:
            self.pending.append(operation)

    def _sync(self, node: int) -> None:
        done = [one for one in self.pending if (one.folder if isinstance(one, Name) else one.node) == node]
        done += [one.with_name for one in done if isinstance(one, Name) and one.with_name in self.pending]
        for one in self.pending:
            if one in done:
                _change(self.names, self.contents, one)
        self.pending = [one for one in self.pending if one not in done]

    def copy(self) -> "Disk":
        """A copy that changes on its own."""
        names = {folder: dict(entries) for folder, entries in self.names.items()}
        return Disk(names, dict(self.contents), list(self.pending), set(self.said))

    def choices(self) -> list[list[Write | Size | Name]]:
        """What may survive or not, each on its own: every name, and the bytes of each file in two halves."""
        of_files: dict[int, list[Write | Size]] = {}
        found: list[list[Write | Size | Name]] = []
        for one in self.pending:
            if isinstance(one, Name):
                found.append([one])
            else:
                of_files.setdefault(one.node, []).append(one)
        for changes in of_files.values():
            if len(changes) == 1 and isinstance(changes[0], Write) and len(changes[0].data) > 1:
                node, offset, data = changes[0]
                half = len(data) // 2
                changes = [Write(node, offset, data[:half]), Write(node, offset + half, data[half:])]
            middle = (len(changes) + 1) // 2
            found += [half for half in (changes[:middle], changes[middle:]) if half]
        return found

    def state(self, surviving: Sequence[Sequence[Write | Size | Name]]) -> dict[str, bytes | None]:
        """The tree after a power cut: bytes of every file by path, None for a folder.

        Args:
            surviving: some of `choices`, in their order.
        """
        names = {folder: dict(entries) for folder, entries in self.names.items()}
        contents = dict(self.contents)
        for one in (one for choice in surviving for one in choice):
            if isinstance(one, Name) and one.with_name in self.pending:
                _change(names, contents, one.with_name)
            _change(names, contents, one)
        return dict(_tree(names, contents, ROOT, ""))


def _change(names: dict[int, dict[str, int]], contents: dict[int, bytes], one: Write | Size | Name) -> None:
    if isinstance(one, Name):
        entries = names.setdefault(one.folder, {})
        if one.node is None:
            entries.pop(one.name, None)
        else:
            entries[one.name] = one.node
    elif isinstance(one, Size):
        contents[one.node] = contents.get(one.node, b"")[: one.size].ljust(one.size, b"\0")
    else:
        before = contents.get(one.node, b"").ljust(one.offset, b"\0")
        contents[one.node] = before[: one.offset] + one.data + before[one.offset + len(one.data) :]


def _tree(
    names: dict[int, dict[str, int]], contents: dict[int, bytes], folder: int, path: str
) -> Iterator[tuple[str, bytes | None]]:
    for name, node in names.get(folder, {}).items():
        if node < 0:
            yield f"{path}{name}", None
            yield from _tree(names, contents, node, f"{path}{name}/")
        else:
            yield f"{path}{name}", contents.get(node, b"")
