"""Power cuts after every call of a harvest: nothing acknowledged is lost, nothing unacknowledged is believed.

What was not fsynced is forgotten, in every combination of up to three changes that survive, or do not.
"""

import pytest

from tests.crash.disk import Sync
from tests.crash.oracle import Oracle
from tests.crash.power_cuts import MOST_AFTER_A_KILL, judge_all
from tests.crash.programs import damage_unit, repair
from tests.crash.recordings import Judge, before_fsyncs, operations_of, record
from tests.crash.small_harvest import harvest_alone
from tests.crash.threaded_harvest import harvest_with_threads
from tests.shared import small


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


def test_a_harvest_that_was_killed_and_went_on_survives_a_power_cut(fresh, undisturbed, memory, share, counts):
    """What the killed one left unsynced, the next one has to make durable before it says anything."""
    judge, seen = Judge(Oracle(undisturbed, rebooted=True), memory, harvest_alone), set()
    points = before_fsyncs(operations_of(fresh(), harvest_alone))
    with counts.timed("power loss"):
        for before in share.of(points, at_least=2):
            recording = record(fresh(), harvest_alone, before)
            judge_all(recording, judge, share, counts, "harvest killed before", 1, seen, MOST_AFTER_A_KILL)
