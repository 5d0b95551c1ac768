"""Kills and errors at every system call, from outside, by strace.

The program fills three units; its system calls are counted once, and then it is killed before the first,
the second, ... of each kind, every time from the same plan.
"""

import errno
import os
import shutil
from collections import Counter

import pytest

from tests import tiny
from tests.crash.oracle import damage, leftovers
from tests.crash.small_harvest import committed_units, harvest_alone
from tests.crash.tracing import CALLS, run_traced, strace_works
from tests.harvest.test_run import arguments
from tests.shared import small
from tests.warm import Warm

pytestmark = [
    pytest.mark.crash,
    pytest.mark.skipif(not strace_works(), reason="strace is not there or may not trace (apt-get install strace)"),
]

ERRORS = ["ENOSPC", "EIO", "EDQUOT", "EROFS"]
ALONE = ["--patience", 600]
"""No beat of the heart comes between: calls are counted."""


@pytest.fixture(scope="module")
def filler(tmp_path_factory):
    """Runs `python -m tests.crash.filler` in processes of their own."""
    warm = Warm("tests.crash.filler", tmp_path_factory.mktemp("filler"))
    yield warm
    warm.close()


@pytest.fixture(scope="module")
def made(filler, planned, memory):
    """How many calls of each kind the program makes when nothing happens to it."""
    (memory / "counted").mkdir()
    cache = small.copy(planned, memory / "counted" / "cache")  # as deep as those that are killed: parents count
    traced = run_traced(filler, memory / "strace.log", [cache, *ALONE])
    assert traced.ended.code == 0, traced.ended.err
    assert traced.acknowledged == [1, 2, 0]
    for one_of in (["openat"], ["pwritev", "pwritev2"], ["fsync"], ["fallocate"], ["rename", "renameat", "renameat2"],
                   ["link", "linkat"], ["unlink", "unlinkat"], ["mkdir", "mkdirat"], ["chmod", "fchmodat"], ["close"]):
        assert sum(traced.calls[name] for name in one_of) >= 3, f"no {one_of} among {traced.calls}"
    return traced.calls


@pytest.mark.parametrize("call", CALLS)
def test_killed_at_any_system_call_it_goes_on_as_if_nothing_had_been(
    call, made, filler, fresh, memory, oracle, share, counts
):
    states, log = Counter(), memory / "strace.log"
    points = share.of(range(1, made[call] + 1))
    with counts.timed("system calls"):
        for when in points:
            cache = fresh()
            traced = run_traced(filler, log, [cache, *ALONE], f"{call}:signal=KILL:when={when}", [call])
            assert traced.was_killed, f"nothing happened at {call} number {when}: {traced.ended}"
            states[len(committed_units(cache))] += 1
            assert oracle.violations(cache, traced.acknowledged, harvest_alone) == [], (call, when)
            counts.add("system calls", f"{call}: kills")
        if points:
            traced = run_traced(filler, log, [fresh(), *ALONE], f"{call}:signal=KILL:when={made[call] + 1}", [call])
            assert traced.ended.code == 0, "it makes more of these calls than were counted"
    if made[call] >= 10 and len(points) == made[call]:
        assert len(states) > 2, f"the kills all landed in the same state: {states}"


@pytest.mark.parametrize("call", CALLS)
def test_whichever_system_call_fails_it_says_so_and_can_be_repeated(
    call, made, filler, fresh, memory, oracle, share, counts
):
    log = memory / "strace.log"
    with counts.timed("system calls"):
        points = [(when, error) for when in range(1, made[call] + 1) for error in ERRORS]
        for when, error in share.of(points):
            cache = fresh()
            traced = run_traced(filler, log, [cache, *ALONE], f"{call}:error={error}:when={when}", [call])
            assert traced.injected == 1, f"nothing happened at {call} number {when}: {traced.ended}"
            assert "Traceback" not in traced.ended.err, (call, when, error, traced.ended.err)
            assert traced.ended.code in {0, 74, 75}, (call, when, error, traced.ended.err)
            if traced.ended.code:
                assert error_text(error) in traced.ended.err
            assert oracle.violations(cache, traced.acknowledged, harvest_alone) == [], (call, when, error)
            counts.add("system calls", f"{call}: {error}")


def error_text(name):
    return os.strerror(getattr(errno, name))


# -- the real command -----------------------------------------------------------------------------------

CHANGING = [call for call in CALLS if call not in {"close", "flock", "write", "pwrite64"}]
KILLS_PER_CALL = 12


@pytest.fixture(scope="module")
def command(tmp_path_factory):
    """Runs `python -m harvest ...` in processes of their own."""
    warm = Warm("harvest", tmp_path_factory.mktemp("commands"), "transformers.models.llama.modeling_llama",
                "zarr.codecs", "torch._dynamo", "tests.crash.filler.__main__")
    yield warm
    warm.close()


def test_the_real_command_is_killed_from_its_plan_to_its_end(
    command, llama, chat_file, memory, share, counts
):
    """At system calls all over a run with a tiny model; with threads, those that the main thread makes in order."""
    log, whole = memory / "strace.log", memory / "whole_run"
    made = run_traced(command, log, arguments(llama, chat_file, whole), calls=CHANGING)
    assert made.ended.code == 0, made.ended.err
    states = Counter()
    with counts.timed("system calls"):
        for call in CHANGING:
            every = max(1, made.calls[call] // KILLS_PER_CALL)
            for when in share.of(range(1, made.calls[call] + 1, every), at_least=0):
                cache = memory / "killed_run"
                words = arguments(llama, chat_file, cache)
                traced = run_traced(command, log, words, f"{call}:signal=KILL:when={when}", [call])
                counts.add("system calls", "the real command: kills", traced.was_killed)
                planned = (cache / "plan.json").exists()
                states[len(list(cache.glob("commits/*/*.json"))) if planned else -1] += traced.was_killed
                assert not planned or damage(cache) == [], (call, when)
                ended = command.run(*words)
                assert ended.code == 0, ended.err
                assert tiny.promised(cache) == tiny.promised(whole), (call, when)
                assert damage(cache) + leftovers(cache) == [], (call, when)
                shutil.rmtree(cache)
    assert states[-1], "no kill before the plan was there"
    assert sum(states[number] for number in states if number > 0), "no kill after the first unit"
