"""Writers of a cache: each has a folder of temporaries, and a heartbeat file in it while it lives.

Two things tell a dead writer from a living one, and neither is a clock. On the same machine, a lock on the
heartbeat file: the system frees it when the process ends, however it ends. From another machine, where locks
may not reach, a counter in the file: a writer whose counter stood still for a minute of the observer's own
monotonic time is taken for dead. It may only be paused; nothing is lost then, its late commit loses.
"""

import contextlib
import fcntl
import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from shared import storage
from shared.errors import CorruptError, IdentityError, TryAgainError, UserError
from shared.format.commits import (
    Record,
    new_writer_id,
    newest_generations,
    read_record,
    record_path,
    roll_forward,
)
from shared.format.layout import BURIED, COMMITS, GROUP, HEARTBEAT, PLAN, TMP, inside
from shared.plain_files import read_file

BEAT_SECONDS = 2.0
PATIENCE_SECONDS = 60.0
"""How long a counter must stand still, by the observer's monotonic clock, until its writer is taken for dead."""

_MAX_BYTES = 4096
"""Of a heartbeat, which has about a hundred."""

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class _Heartbeat:
    """The heartbeat file of this process: locked while it lives, its counter raised by a thread."""

    def __init__(self, folder: Path, writer: str) -> None:
        self._writer = writer
        self._stop = threading.Event()
        unlocked = folder / f"{HEARTBEAT}.new"
        self._file = storage.NewFile(unlocked, 0)
        try:
            with storage.translate_errors(unlocked):
                self._beat(0)
            with contextlib.suppress(OSError):  # a file system without locks: the counter speaks for us
                fcntl.flock(self._file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
            storage.rename(unlocked, folder / HEARTBEAT)  # locked before anybody can look at it
        except BaseException:
            self._file.close()
            raise
        self._thread = threading.Thread(target=self._keep_beating, name="heartbeat", daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._stop.set()
        self._thread.join()
        self._file.close()

    def _keep_beating(self) -> None:
        count = 0
        while not self._stop.wait(BEAT_SECONDS):
            count += 1
            with contextlib.suppress(OSError):  # a full or failing disk is met where it matters
                self._beat(count)

    def _beat(self, count: int) -> None:
        """Raise the counter, and have it leave this machine: a network file system would keep it for a while.

        It promises nothing about the cache and comes at any time: no operation that a fault test could count.
        """
        os.pwrite(self._file.fileno(), f"{self._writer} {_boot_id()} {count:012d}\n".encode(), 0)
        os.fdatasync(self._file.fileno())


class Watch:
    """Tells which writers are dead or stalled; for that it remembers what it saw of their counters, and when."""

    def __init__(self, patience: float = PATIENCE_SECONDS) -> None:
        self._patience = patience
        self._seen: dict[Path, tuple[str, float]] = {}

    def is_dead(self, heartbeat: Path) -> bool:
        """Whether the writer of this heartbeat is gone for certain, or as certain as it gets from another machine."""
        if heartbeat.parent.name.endswith(BURIED):
            return True  # somebody began to remove its folder, and the heartbeat in it may be gone already
        return _is_unlocked(heartbeat) if is_on_this_machine(heartbeat) else self.is_stalled(heartbeat)

    def is_stalled(self, heartbeat: Path) -> bool:
        """Whether its counter stood still for as long as we are patient, or its writer is dead.

        Args:
            heartbeat: a writer's, or a claim, which is a link to one.
        """
        if is_on_this_machine(heartbeat) and _is_unlocked(heartbeat):
            return True
        try:
            beat = _read(heartbeat)
        except (OSError, UnicodeDecodeError):
            return False  # gone meanwhile: nobody's
        now = time.monotonic()
        before, since = self._seen.setdefault(heartbeat, (beat, now))
        if before != beat:
            self._seen[heartbeat] = (beat, now)
            return False
        return now - since >= self._patience


def _read(heartbeat: Path) -> str:
    """What a heartbeat or a claim says, which may be anybody's file.

    Raises:
        OSError, UnicodeDecodeError: it is gone, or no file of ours. CorruptError: a link, a pipe or a device.
    """
    return read_file(heartbeat, _MAX_BYTES).decode()


def read_writer(heartbeat: Path) -> str | None:
    """The id of the writer whose heartbeat this is; None if the file is gone or not one."""
    try:
        writer = _read(heartbeat).split(" ")[0]
        return writer if writer.isprintable() and writer else None
    except (OSError, UnicodeDecodeError):
        return None


def beating_for(heartbeat: Path) -> float | None:
    """Seconds that a writer has lived, by its own counter: no clock is compared. None if the file is gone."""
    try:
        return int(_read(heartbeat).split(" ")[2]) * BEAT_SECONDS
    except (OSError, ValueError, IndexError):
        return None


@contextlib.contextmanager
def writer_folder(cache: Path) -> Iterator[str]:
    """Become a writer of a cache; yields the writer's id and removes its temporaries at the end.

    After an error a unit may be committed while its files still have the names that its record gives: they
    are rolled forward first, and where that fails too the folder stays for `recover`.
    """
    writer = new_writer_id()
    folder = cache / TMP / writer
    storage.make_folder(folder)
    heartbeat = None
    try:
        heartbeat = _Heartbeat(folder, writer)
        yield writer
        _make_records_durable(cache)  # those of others too: what is there is told next
    finally:
        if heartbeat is not None:
            heartbeat.close()
        with contextlib.suppress(UserError):
            _roll_all_forward(cache)
            storage.remove_tree(folder)


def recover(cache: Path, watch: Watch | None = None) -> int:
    """Roll committed units forward and remove the temporaries of writers that died on this machine.

    Called by whoever is about to work on a cache; returns the number of units rolled forward.

    Args:
        watch: one that may know writers of other machines to be dead too.

    Raises:
        CorruptError: a record is damaged; all others were rolled forward.
    """
    watch = watch or Watch()
    # Who is dead comes first: a writer that commits and dies after we read the records keeps its folder.
    dead = [path for path in sorted((cache / TMP).glob("*/")) if watch.is_dead(path / HEARTBEAT)]
    _make_records_durable(cache)
    rolled = _roll_all_forward(cache)
    for folder in dead:
        _bury(cache, folder)
    return rolled


def _bury(cache: Path, folder: Path) -> None:
    """Remove a dead writer's folder, so that nothing is lost even if the writer was only paused.

    Under another name its records have nothing left to be linked from: what it has not committed by then, it
    never will. What it has is found there, by whoever reads, until it is given its final name.
    """
    buried = folder if folder.name.endswith(BURIED) else folder.with_name(folder.name + BURIED)
    if buried != folder:
        if buried.exists():
            _bury(cache, buried)  # a power cut in an earlier burial may have left both names
        try:
            storage.rename(folder, buried)
        except FileNotFoundError:
            return  # another recovery was faster
    folders = set()
    for record in _newest_records(cache):
        if record.writer == buried.name.removesuffix(BURIED):
            roll_forward(cache, record)
            folders |= {inside(cache, entry.path).parent for entry in record.files}
    for path in sorted(folders):  # it may have died between a rename and the fsync after it
        if path.is_dir():
            storage.fsync_folder(path)
    storage.remove_tree(buried)


def _roll_all_forward(cache: Path) -> int:
    return sum(roll_forward(cache, record) > 0 for record in _newest_records(cache))


def _newest_records(cache: Path) -> Iterator[Record]:
    """The records that count, of every pass: also of one whose own file is missing.

    Raises:
        CorruptError: at the end, if one is damaged.
    """
    damaged = None
    for folder in sorted((cache / COMMITS).glob("*/")):
        for unit, generation in sorted(newest_generations(cache, folder.name).items()):
            try:
                record = read_record(record_path(cache, folder.name, unit, generation))
            except CorruptError as error:
                damaged = damaged or error
            else:
                yield record
    if damaged is not None:
        raise damaged


def _make_records_durable(cache: Path) -> None:
    """Fsync the records' names: a writer may have died between a record's link and its fsync."""
    for folder in sorted((cache / COMMITS).glob("*/")):
        storage.fsync_folder(folder)


def living_writers(cache: Path, patience: float = 0.0) -> list[str]:
    """The writers of a cache that are not known to be dead.

    Args:
        patience: seconds that the writers of other machines are watched for; with 0 they count as living.
    """
    watch = Watch(patience or PATIENCE_SECONDS)
    heartbeats = sorted((cache / TMP).glob(f"*/{HEARTBEAT}"))
    living = [path for path in heartbeats if not watch.is_dead(path)]
    if patience and not all(map(is_on_this_machine, living)):
        time.sleep(patience)
        living = [path for path in living if not watch.is_dead(path)]
    return [path.parent.name for path in living if path.exists()]


def remove_cache(cache: Path) -> None:
    """Remove a cache folder, to start over. Killed half-way, nothing is left that looks like a cache.

    Raises:
        IdentityError: the folder is no cache. TryAgainError: a writer is at work in it.
    """
    if any(cache.iterdir()) and not any((cache / name).exists() for name in (PLAN, GROUP, TMP)):
        raise IdentityError(f"{cache} is no cache: --fresh will not remove it. Choose another one: CACHE=name")
    if living := living_writers(cache, patience=PATIENCE_SECONDS):
        raise TryAgainError(f"{cache} is being written by {', '.join(living)}. Stop it first.")
    aside = cache.with_name(f".{cache.name}.removed-{new_writer_id()}")
    storage.rename(cache, aside)
    storage.remove_tree(aside)


def _boot_id() -> str:
    """What tells this run of this machine from every other; locks are trusted within it."""
    try:
        return _BOOT_ID.read_text().strip()
    except OSError:
        return socket.gethostname()  # no Linux


def is_on_this_machine(heartbeat: Path) -> bool:
    """Whether its writer was started here since this machine was."""
    try:
        return _read(heartbeat).split(" ")[1:2] == [_boot_id()]
    except (OSError, UnicodeDecodeError):
        return True


def _is_unlocked(lock: Path) -> bool:
    """Whether the lock is there and nobody holds it."""
    try:
        descriptor = os.open(lock, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
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
