"""A second signal ends a harvest at once, as a kill would: in the middle of a commit too."""

import signal

import pytest

from shared.upkeep.verify import files_to_check, verify
from tests import tiny
from tests.harvest.test_run import arguments

MOMENTS = [
    ("fsync", "/unit-0"),  # before the record: the unit is absent
    ("link", "/commits/"),  # just before the record is created
    ("rename", "/resid_post/"),  # after the record, before a file has its name
    ("rename", "/norm/"),  # with some files renamed
    ("append", "provenance.jsonl"),  # after the commit
]
"""An operation of the commit, and a part of its path."""

QUICK = {("link", signal.SIGTERM), ("rename", signal.SIGINT)}
CASES = [
    pytest.param(*moment, number, marks=[] if (moment[0], number) in QUICK else pytest.mark.system)
    for moment in MOMENTS for number in (signal.SIGINT, signal.SIGTERM)
]

TWO_SIGNALS = """
import math, os, signal, time, shared.storage as storage, shared.terminal as terminal
terminal._ONE_SIGNAL = 0.1  # seconds after which a signal is a second one
done = []
def observe(operation, path):
    seen = str(path)
    if operation == {operation!r} and {part!r} in seen:
        done.append(seen)
        if len(done) == {count}:
            os.kill(os.getpid(), {number})
            while terminal._first_signal == -math.inf:  # its handler runs in the main thread, which may be in torch
                time.sleep(0.01)
            time.sleep(0.2)
            os.kill(os.getpid(), {number})
            time.sleep(30)
            os._exit(70)
storage._observer = observe
"""


@pytest.fixture(scope="module")
def undisturbed(command, llama, chat_file, tmp_path_factory):
    cache = tmp_path_factory.mktemp("whole") / "cache"
    assert command.run(*arguments(llama, chat_file, cache, 2048)).code == 0
    return tiny.promised(cache)


@pytest.mark.parametrize(("operation", "part", "number"), CASES)
def test_two_signals_during_a_commit_leave_units_that_are_whole_or_absent(
    command, llama, chat_file, tmp_path, undisturbed, operation, part, number
):
    cache = tmp_path / "cache"
    prelude = TWO_SIGNALS.format(operation=operation, part=part, count=3, number=int(number))
    ended = command.run(*arguments(llama, chat_file, cache, 2048), prelude=prelude)
    assert ended.code == 128 + number, ended.err
    assert "Traceback" not in ended.err
    assert [checked for checked in verify(files_to_check(cache)) if checked.problem] == []
    assert command.run(*arguments(llama, chat_file, cache, 2048)).code == 0
    assert tiny.promised(cache) == undisturbed
    assert not [path for path in (cache / "tmp").rglob("*") if path.is_file()]
