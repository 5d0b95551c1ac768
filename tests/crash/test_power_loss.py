"""Power cuts after every call: nothing acknowledged is lost, nothing unacknowledged is believed.

What was not fsynced is forgotten, in every combination of up to three changes that survive, or do not.
"""

from functools import partial

import pytest

from tests.crash.disk import Sync
from tests.crash.oracle import Oracle
from tests.crash.power import CrashStates
from tests.crash.programs import compress, damage_unit, make_job, plan_and_harvest, repair
from tests.crash.recordings import Judge, before_fsyncs, nobody, operations_of, record
from tests.crash.share import evenly
from tests.crash.small_harvest import harvest_alone
from tests.crash.threaded_harvest import harvest_with_threads
from tests.shared import small

MOST_AFTER_A_KILL = 100
"""States that are judged of each kill: there are 15,000 of 35 kills of a harvest alone, of 50 ms each."""


def judge_all(recording, judge, share, counts, kind, up_to=3, seen=None, most=None):
    """Judge a share of the states that cuts during a recording may leave; returns those that were judged.

    Args:
        seen: keys of states that need not be judged again.
        most: how many states are judged, evenly spread, where there are more.
    """
    points = share.of(range(recording.killed_after(), len(recording.operations) + 1), at_least=12)
    states = CrashStates(recording.start, recording.operations, up_to, points, seen)
    chosen = list(states) if most is None else evenly(list(states), most)
    if share.share < 0.1:
        chosen = share.of(chosen, at_least=16)
    for state in chosen:
        found = judge.violations(state)
        assert found == [], (state.after, recording.operations[max(0, state.after - 3) : state.after], state.said)
    counts.add("power loss", f"{kind}: cuts", len(points))
    counts.add("power loss", f"{kind}: combinations built", states.num_built)
    counts.add("power loss", f"{kind}: different states judged", len(chosen))
    return chosen


@pytest.fixture(scope="module")
def job(llama, tmp_path_factory):
    """Eight chats for a tiny model."""
    return make_job(llama, tmp_path_factory.mktemp("job"))


@pytest.fixture(scope="module")
def from_the_plan_on(job, memory):
    """Plans and harvests, and what it leaves undisturbed."""
    program = partial(plan_and_harvest, job=job)
    program(memory / "from_the_plan_on", nobody)
    return program, memory / "from_the_plan_on"


@pytest.fixture(scope="module")
def archiving(undisturbed, memory):
    """Compresses the undisturbed cache, and what that leaves."""
    program = partial(compress, source=undisturbed)
    program(memory / "archive", nobody)
    return program, memory / "archive"


@pytest.fixture(scope="module")
def empty(memory):
    """Gives names of folders to be made."""
    numbers = iter(range(10**6))
    return lambda: memory / f"empty{next(numbers)}"


@pytest.mark.parametrize("harvest", [harvest_alone, harvest_with_threads])
def test_whenever_the_power_is_cut_acknowledged_units_are_whole_and_no_other_is_believed(
    harvest, fresh, undisturbed, memory, share, counts
):
    recording = record(fresh(), harvest)
    assert sum(isinstance(one, Sync) for one in recording.operations) > 40
    judge = Judge(Oracle(undisturbed, rebooted=True), memory, harvest_alone)
    kind = "harvest in one thread" if harvest is harvest_alone else "harvest in threads"
    with counts.timed("power loss"):
        judged = judge_all(recording, judge, share, counts, kind, up_to=3 if harvest is harvest_alone else 2)
    assert {len(state.said) for state in judged} == {0, 1, 2, 3}
    assert any(state.number_lost and state.number_kept for state in judged)


def test_a_repair_survives_a_power_cut(fresh, undisturbed, memory, share, counts):
    damaged = damage_unit(small.copy(undisturbed, memory / "damaged"))
    repaired = small.copy(damaged, memory / "repaired")
    repair(repaired)
    recording = record(small.copy(damaged, memory / "recorded"), repair)
    oracle = Oracle(repaired, damaged={0}, rebooted=True)
    judge = Judge(oracle, memory, repair, frozenset({"plan", 1, 2}))
    with counts.timed("power loss"):
        judge_all(recording, judge, share, counts, "repair")


def test_a_plan_survives_a_power_cut(from_the_plan_on, empty, memory, share, counts):
    """plan.json is written last: where it is, all that it names is there."""
    program, undisturbed = from_the_plan_on
    judge = Judge(Oracle(undisturbed, rebooted=True), memory, program, frozenset())
    with counts.timed("power loss"):
        judged = judge_all(record(empty(), program), judge, share, counts, "plan and harvest", up_to=1)
    assert {0, 4} < {len(state.said) for state in judged}


def test_an_archive_survives_a_power_cut(archiving, empty, memory, share, counts):
    program, undisturbed = archiving
    judge = Judge(Oracle(undisturbed, rebooted=True), memory, program, frozenset())
    with counts.timed("power loss"):
        judge_all(record(empty(), program), judge, share, counts, "archive", up_to=1)


def test_a_harvest_that_was_killed_and_went_on_survives_a_power_cut(fresh, undisturbed, memory, share, counts):
    """What the killed one left unsynced, the next one has to make durable before it says anything."""
    judge, seen = Judge(Oracle(undisturbed, rebooted=True), memory, harvest_alone), set()
    points = before_fsyncs(operations_of(fresh(), harvest_alone))
    with counts.timed("power loss"):
        for before in share.of(points, at_least=2):
            recording = record(fresh(), harvest_alone, before)
            judge_all(recording, judge, share, counts, "harvest killed before", 1, seen, MOST_AFTER_A_KILL)


@pytest.mark.parametrize("which", ["from_the_plan_on", "archiving"])
def test_others_that_were_killed_and_went_on_survive_a_power_cut(which, request, empty, memory, share, counts):
    program, undisturbed = request.getfixturevalue(which)
    judge, seen = Judge(Oracle(undisturbed, rebooted=True), memory, program, frozenset()), set()
    points = before_fsyncs(operations_of(empty(), program), ("rename", "link"))
    kind = "plan and harvest killed before" if which == "from_the_plan_on" else "archive killed before"
    with counts.timed("power loss"):
        for before in share.of(points, at_least=1):
            judge_all(record(empty(), program, before), judge, share, counts, kind, 0, seen, MOST_AFTER_A_KILL)
