"""Compressing and expanding a cache, killed or failing at any operation: nothing half-done is trusted, and the same
call goes on to the same bytes."""

import contextlib
import errno
import os
import shutil
import tempfile
from pathlib import Path

import pytest

from shared import storage
from shared.errors import StorageError, TryAgainError
from shared.format.layout import PLAN, Geometry
from shared.reading.cache import open_cache
from shared.upkeep.transcode import transcode
from shared.upkeep.verify import files_to_check, verify
from tests.crash.oracle import leftovers
from tests.shared import small
from tests.tiny import promised

GEOMETRY = Geometry(300, 250, 4, 128, 1)


@pytest.fixture(scope="module")
def both(memory):
    """A cache and its archive, by their tier."""
    folder = memory / "transcoded"
    small.make(folder / "source", GEOMETRY)
    transcode(folder / "source", folder / "archive", "archive", threads=1)
    return {"mapped": folder / "source", "archive": folder / "archive"}


@pytest.fixture
def folder(memory):
    path = Path(tempfile.mkdtemp(dir=memory))
    yield path
    shutil.rmtree(path)


class Stop:
    """Acts at the operation number ``count``."""

    def __init__(self, count, action):
        self.left, self.action = count, action

    def __call__(self, operation, path):
        self.left -= 1
        if self.left == -1:
            self.action(path)


def count_operations(source, target, tier):
    for name in ("warm", "counted"):  # the first in a process also makes the folders above durable
        stop = Stop(0, lambda path: None)
        with storage.observe(stop):
            transcode(source, target / name, tier, threads=1)
    return -stop.left


def assert_whole_as_far_as_it_goes(target):
    if (target / PLAN).exists():
        assert not [checked for checked in verify(files_to_check(target)) if checked.problem]
        opened = open_cache(target, verify="open")
        for layer in opened.layers:
            for unit in opened.committed_units(layer):
                rows = opened.unit_rows(unit)
                wanted = small.rows_of(GEOMETRY, layer)[rows.start : rows.stop]
                assert (opened.layer(layer)[rows.start : rows.stop] == wanted).all()


def finish(source, target, tier, wanted):
    assert_whole_as_far_as_it_goes(target)
    transcode(source, target, tier, threads=1)
    assert promised(target) == wanted
    assert leftovers(target) == []
    shutil.rmtree(target)


@pytest.mark.parametrize(("number", "error"), [(errno.ENOSPC, TryAgainError), (errno.EIO, StorageError)])
def test_whichever_operation_fails_the_same_call_goes_on(both, share, folder, number, error):
    wanted = promised(both["archive"])
    total = count_operations(both["mapped"], folder, "archive")

    def fail(path):
        raise OSError(number, os.strerror(number), str(path))

    failed = 0
    points = share.of(range(total), at_least=6)
    for count in points:
        target = folder / "target"
        try:
            with storage.observe(Stop(count, fail)):
                transcode(both["mapped"], target, "archive", threads=1)
        except (error, OSError):
            failed += 1
        finish(both["mapped"], target, "archive", wanted)
    assert failed >= 0.8 * len(points)


@pytest.mark.parametrize("tier", ["archive", "mapped"])
def test_killed_at_any_operation_nothing_half_done_is_trusted(both, share, folder, tier):
    source, wanted = both["mapped" if tier == "archive" else "archive"], promised(both[tier])
    total = count_operations(source, folder, tier)
    killed = 0
    points = share.of(range(total), at_least=6)
    for count in points:
        target = folder / "target"
        pid = os.fork()
        if not pid:
            with contextlib.suppress(BaseException), storage.observe(Stop(count, lambda path: os._exit(9))):
                transcode(source, target, tier, threads=1)
            os._exit(0)
        killed += os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 9
        finish(source, target, tier, wanted)
    assert killed >= 0.8 * len(points)
