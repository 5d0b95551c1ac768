"""Power cuts from the plan on and of an archive's compression, as `test_power_loss` has them of a harvest."""

from functools import partial

import pytest

from tests.crash.oracle import Oracle
from tests.crash.power_cuts import MOST_AFTER_A_KILL, judge_all
from tests.crash.programs import compress, make_job, plan_and_harvest
from tests.crash.recordings import Judge, before_fsyncs, nobody, operations_of, record


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


@pytest.mark.parametrize("which", ["from_the_plan_on", "archiving"])
def test_others_that_were_killed_and_went_on_survive_a_power_cut(which, request, empty, memory, share, counts):
    program, undisturbed = request.getfixturevalue(which)
    judge, seen = Judge(Oracle(undisturbed, rebooted=True), memory, program, frozenset()), set()
    points = before_fsyncs(operations_of(empty(), program), ("rename", "link"))
    kind = "plan and harvest killed before" if which == "from_the_plan_on" else "archive killed before"
    with counts.timed("power loss"):
        for before in share.of(points, at_least=1):
            judge_all(record(empty(), program, before), judge, share, counts, kind, 0, seen, MOST_AFTER_A_KILL)
