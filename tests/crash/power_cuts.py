"""Judges what power cuts leave of a recording: for `test_power_loss` and `test_power_loss_of_plans`.

Two files, because tests are shared out by files and these take longer than all others.
"""

from tests.crash.power import CrashStates
from tests.crash.share import evenly

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
    if share.share < 0.05:  # less than `make test-system`: a few of the states, too
        chosen = share.of(chosen, at_least=16)
    for state in chosen:
        found = judge.violations(state)
        assert found == [], (state.after, recording.operations[max(0, state.after - 3) : state.after], state.said)
    counts.add("power loss", f"{kind}: cuts", len(points))
    counts.add("power loss", f"{kind}: combinations built", states.num_built)
    counts.add("power loss", f"{kind}: different states judged", len(chosen))
    return chosen
