"""Kills, errors and short writes at every operation of the I/O module, inside one process.

The harvest runs in one thread, where the n-th operation is always the same one, and in the threads of the
real loop, where it is whichever comes n-th.
"""

import errno
import os

import pytest

from shared import storage
from shared.errors import StorageError, TryAgainError
from tests.crash.recordings import of_another_process
from tests.crash.small_harvest import committed_units, harvest_alone, new_process
from tests.crash.threaded_harvest import harvest_with_threads

HARVESTS = {"one thread": harvest_alone, "threads": harvest_with_threads}
TOLERATED = {"unlink", "rmtree", "append"}


class Killed(BaseException):
    """SIGKILL, as far as one process can have it: no operation happens afterwards."""


class AtOperation:
    """An observer that lets something happen instead of the n-th operation, or of it and all that follow."""

    def __init__(self, number, error, from_then_on=False):
        self.number, self.error, self.from_then_on = number, error, from_then_on
        self.seen = []

    def __call__(self, operation, path):
        self.seen.append(operation)
        here = len(self.seen) - 1
        if here == self.number or (self.from_then_on and here > self.number):
            raise self.error(operation, path)


@pytest.fixture(params=HARVESTS)
def harvest(request):
    return HARVESTS[request.param]


@pytest.fixture
def kind(request):
    """What the harvest at hand is called."""
    return request.node.callspec.params["harvest"]


@pytest.fixture
def operations(harvest, fresh):
    """Every operation of an undisturbed harvest, in order."""
    observer = AtOperation(-1, None)
    cache = fresh()
    with storage.observe(observer):
        harvest(cache)
    wanted = {"mkdir", "create", "allocate", "write", "fsync", "link", "rename", "fsync_folder", "chmod", "unlink"}
    assert wanted <= set(observer.seen)
    return observer.seen


def test_killed_before_any_operation_it_goes_on_as_if_nothing_had_been(
    harvest, operations, fresh, oracle, share, counts, kind
):
    outcomes = set()
    with counts.timed("inside"):
        for number in share.of(range(len(operations)), at_least=12):
            cache, acknowledged = fresh(), []
            observer = AtOperation(number, lambda operation, path: Killed(), from_then_on=True)
            with of_another_process(), storage.observe(observer), pytest.raises(Killed):
                harvest(cache, acknowledged.append)
            outcomes.add(len(committed_units(cache)))
            assert oracle.violations(cache, acknowledged, harvest_alone) == [], (number, observer.seen[-5:])
            counts.add("inside", f"{kind}: kills")
    assert outcomes == {0, 1, 2, 3}, "the kills have to land in every state"


ERRORS = [errno.ENOSPC, errno.EIO, errno.EDQUOT, errno.EROFS]


@pytest.mark.parametrize("stays", [False, True], ids=["once", "from then on"])
def test_whichever_operation_fails_the_command_says_so_and_can_be_repeated(
    harvest, operations, fresh, oracle, share, counts, kind, stays
):
    """Once, or from then on: a disk that is full stays full, and cleaning up fails as well."""
    outcomes = set()
    with counts.timed("inside"):
        for trial, number in enumerate(share.of(range(len(operations)), at_least=6)):
            code = ERRORS[trial % len(ERRORS)]
            cache, acknowledged = fresh(), []
            fault = AtOperation(number, lambda _, path, code=code: OSError(code, os.strerror(code), str(path)), stays)
            told = None
            try:
                with of_another_process(), storage.observe(fault):
                    harvest(cache, acknowledged.append)
            except (StorageError, TryAgainError) as error:
                told = error
            if told is None:
                assert fault.seen[number] in TOLERATED
            else:
                assert told.exit_code == (75 if code in {errno.ENOSPC, errno.EDQUOT} else 74)
                assert os.strerror(code) in str(told)
                assert str(cache.parent) in str(told)
            outcomes.add(len(committed_units(cache)))
            assert oracle.violations(cache, acknowledged, harvest_alone) == [], (code, number, fault.seen[-5:])
            counts.add("inside", f"{kind}: {errno.errorcode[code]}")
    assert len(outcomes) >= 3


@pytest.mark.parametrize("length", [1, 100])
def test_short_writes_are_completed(harvest, fresh, oracle, counts, kind, monkeypatch, length):
    write, short = os.pwritev, []

    def partly(descriptor, buffers, offset):
        first = memoryview(buffers[0]).cast("B")
        short.append(len(first) > length or len(buffers) > 1)
        return write(descriptor, [first[:length]], offset)

    cache = fresh()
    with monkeypatch.context() as patch, counts.timed("inside"):
        patch.setattr(os, "pwritev", partly)
        harvest(cache)
    new_process(cache)
    assert sum(short) > 100
    counts.add("inside", f"{kind}: short writes", sum(short))
    assert oracle.violations(cache, [0, 1, 2], harvest_alone) == []
