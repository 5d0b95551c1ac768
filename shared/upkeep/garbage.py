"""What in a cache is certainly dead, and its removal: leftovers of writers that were killed.

A clean end leaves nothing. A killed writer leaves its folder of temporaries until the next one comes, and
perhaps block checksums of a unit that it never committed, its claims, or a cache half removed by --fresh.
"""

import contextlib
import errno
import os
import re
import stat
import time
from dataclasses import dataclass
from pathlib import Path

from shared import storage
from shared.errors import CorruptError
from shared.format.commits import new_writer_id, newest_generations, read_record, record_path
from shared.format.layout import CLAIMS, COMMITS, ENCODED, HEARTBEAT, PLAN, TMP, inside
from shared.writing.claims import claims_in
from shared.writing.writers import Watch, is_on_this_machine, read_writer, recover

_CHECKSUMS_NAME = re.compile(r"\d{6}\.g\d+\.(.+)\.crc32c")
_WRITER_NAME = re.compile(r"(.+)-(\d+)-[0-9a-f]+")


@dataclass(frozen=True)
class Garbage:
    """A file or folder that nobody will ever use again."""

    path: Path
    size: int
    """Bytes that its removal frees."""
    why: str


def find_garbage(cache: Path, watch: Watch) -> list[Garbage]:
    """What is certainly dead in a cache and beside it; nothing is changed.

    Raises:
        CorruptError: a record is damaged: what it names is not known, so nothing is called dead.
    """
    # In this order: who has ended by the time that we look at it, after its file was listed, had committed
    # before, or never will; and whose record we miss has not ended.
    checksums = sorted((cache / COMMITS).glob("*/*.crc32c"))
    claims = [claim for folder in sorted((cache / CLAIMS).glob("*/")) for *_, claim in sorted(claims_in(folder))]
    holders = {claim: read_writer(claim) for claim in claims}
    folders = [path for path in sorted((cache / TMP).glob("*/")) if path.name != ENCODED]
    has_ended = _Ended(cache, watch)
    ended = {folder for folder in folders if has_ended(folder.name)}
    ended_claims = [claim for claim, writer in holders.items()
                    if (has_ended(writer) if writer else watch.is_stalled(claim))]  # a power cut took what it said
    ended_checksums = [
        path for path in checksums if (match := _CHECKSUMS_NAME.fullmatch(path.name)) and has_ended(match[1])
    ]
    named, waiting = _named_by_records(cache)
    found = [
        Garbage(folder, _tree_bytes(folder, waiting), "temporaries of a writer that has ended")
        for folder in sorted(ended)
    ]
    found += [
        Garbage(path, _bytes(path), "block checksums that no record names")
        for path in ended_checksums if path not in named
    ]
    encoded = cache / TMP / ENCODED
    if encoded.exists() and (cache / PLAN).exists():
        found.append(Garbage(encoded, _tree_bytes(encoded, set()), "encoded conversations of a plan that is written"))
    found += [Garbage(claim, 0, "claim of a writer that has ended") for claim in ended_claims]
    found += [
        Garbage(path, _tree_bytes(path, set()), "rest of a cache that --fresh removed")
        for path in _removed_caches(cache)
    ]
    return found


def collect(cache: Path, watch: Watch, garbage: list[Garbage]) -> None:
    """Give committed units their final names, then remove what `find_garbage` found with this watch."""
    recover(cache, watch)
    for one in garbage:
        if one.path.is_dir():
            storage.remove_tree(one.path)
        else:
            storage.remove(one.path)


def elsewhere(cache: Path) -> list[Path]:
    """Heartbeats of other machines, or of this one before it was started anew: locks say nothing of them."""
    heartbeats = sorted((cache / TMP).glob(f"*/{HEARTBEAT}"))
    return [heartbeat for heartbeat in heartbeats if not is_on_this_machine(heartbeat)]


def watch_for(seconds: float, cache: Path) -> Watch:
    """A watch that has looked at the writers of other machines for ``seconds`` by our own clock."""
    watch = Watch(seconds)

    def look() -> None:
        for heartbeat in elsewhere(cache):
            watch.is_dead(heartbeat)
        for claim in (cache / CLAIMS).glob("*/*"):
            watch.is_stalled(claim)

    look()
    until = time.monotonic() + seconds  # from the end of the first look, which may take long itself
    while (left := until - time.monotonic()) > 0:
        time.sleep(min(left, 1.0))
        look()
    return watch


class _Ended:
    """Whether a writer has ended, asked once for each."""

    def __init__(self, cache: Path, watch: Watch) -> None:
        self._cache = cache
        self._watch = watch
        self._known: dict[str, bool] = {}

    def __call__(self, writer: str) -> bool:
        if writer not in self._known:
            folder = self._cache / TMP / writer
            heartbeat = folder / HEARTBEAT
            if not folder.exists():  # it is made before anything else, and removed at the end or by recovery
                self._known[writer] = True
            else:
                is_unborn = not heartbeat.exists()
                self._known[writer] = self._watch.is_dead(heartbeat) or (is_unborn and _process_is_gone(writer))
        return self._known[writer]


def _process_is_gone(writer: str) -> bool:
    """Whether a writer that never got to its heartbeat was a process of this host, and is none any more."""
    match, ours = _WRITER_NAME.fullmatch(writer), _WRITER_NAME.fullmatch(new_writer_id())
    if not match or not ours or match[1] != ours[1]:
        return False
    try:
        os.kill(int(match[2]), 0)
    except (OSError, OverflowError) as error:
        return getattr(error, "errno", None) == errno.ESRCH
    return False


def _named_by_records(cache: Path) -> tuple[set[Path], set[Path]]:
    """The block checksums that any record names, and the temporaries that a newest record may still need.

    Raises:
        CorruptError: a newest record is damaged. One that a repair has replaced names nothing that is needed.
    """
    named, waiting = set(), set()
    for folder in sorted((cache / COMMITS).glob("*/")):
        newest = newest_generations(cache, folder.name)
        names = {record_path(cache, folder.name, *item).name for item in newest.items()}
        for path in sorted(folder.glob("*.json")):
            is_newest = path.name in names
            with contextlib.nullcontext() if is_newest else contextlib.suppress(CorruptError):
                record = read_record(path)
                named.add(inside(cache, record.blocks.path))
                if is_newest:
                    waiting |= {inside(cache, entry.temporary) for entry in record.files}
    return named, waiting


def _tree_bytes(folder: Path, but: set[Path]) -> int:
    """Bytes of the files below a folder, without those that will get their final names."""
    return sum(_bytes(path) for path in folder.rglob("*") if path not in but)


def _bytes(path: Path) -> int:
    """Size of a file; 0 for what is no file, or gone meanwhile."""
    try:
        status = path.lstat()
    except OSError:
        return 0
    return status.st_size if stat.S_ISREG(status.st_mode) else 0


def _removed_caches(cache: Path) -> list[Path]:
    """What `remove_cache` left when it was killed: folders beside the cache, named after it and a writer."""
    cache = cache.absolute()
    prefix = f".{cache.name}.removed-"
    beside = sorted(cache.parent.glob("." + re.sub(r"([*?\[])", r"[\1]", cache.name) + ".removed-*"))
    return [path for path in beside if _WRITER_NAME.fullmatch(path.name.removeprefix(prefix))]
