"""The power-loss suite is worth what it finds: with any fsync gone, or in the wrong order, it must find harm.

A mutant is judged on the states that only it can leave.
"""

from functools import partial

import pytest

from tests.crash import small_harvest
from tests.crash.mutants import ORDERS, commit_with_the_record_last, fsync_calls
from tests.crash.oracle import Oracle
from tests.crash.power import CrashStates
from tests.crash.programs import compress, make_job, plan_and_harvest
from tests.crash.recordings import Judge, Recording, before_fsyncs, nobody, operations_of, record
from tests.crash.small_harvest import harvest_alone
from tests.shared import small

MUTANTS = {str(call): call.without for call in fsync_calls()} | ORDERS


class Sample:
    """A recording, how its states are judged, and the states that it may leave as it is."""

    def __init__(self, recording, judge, up_to):
        self.recording, self._judge, self._up_to = recording, judge, up_to
        self._known = None

    def _states(self, operations):
        since = Recording(self.recording.start, operations).killed_after()
        return CrashStates(self.recording.start, operations, self._up_to, range(since, len(operations) + 1))

    def judge(self, mutant, most):
        """States that only the mutant may leave: how many were judged, and how many break a promise."""
        operations = mutant(self.recording.operations)
        if operations == self.recording.operations:
            return 0, 0
        if self._known is None:
            self._known = {state.key for state in self._states(self.recording.operations)}
        new = sorted((s for s in self._states(operations) if s.key not in self._known), key=lambda s: s.number_kept)
        chosen = new if len(new) <= most else [new[index * len(new) // most] for index in range(most)]
        return len(chosen), sum(bool(self._judge.violations(state)) for state in chosen)


class Samples:
    """Samples, each made when it is first needed."""

    def __init__(self, makers):
        self._makers, self._made = makers, []

    def __iter__(self):
        for number, make in enumerate(self._makers):
            if number == len(self._made):
                self._made.append(make())
            yield self._made[number]


@pytest.fixture(scope="module")
def samples(planned, undisturbed, llama, memory, tmp_path_factory, share):
    """Of a harvest, one from the plan on, an archive; then of each of them, killed where a name was just made."""
    numbers = iter(range(10**6))

    def empty():
        return memory / f"sample{next(numbers)}"

    def copied():
        return small.copy(planned, empty())

    programs = {
        "harvest": (harvest_alone, copied, undisturbed, frozenset({"plan"})),
        "plan": (partial(plan_and_harvest, job=make_job(llama, tmp_path_factory.mktemp("job"))), empty, None, ()),
        "archive": (partial(compress, source=undisturbed), empty, None, ()),
    }
    judges = {}

    def make(name, before=None):
        program, start, whole, always = programs[name]
        if name not in judges:
            if whole is None:
                whole = empty()
                program(whole, nobody)
            judges[name] = Judge(Oracle(whole, rebooted=True), memory, program, frozenset(always))
        return Sample(record(start(), program, before), judges[name], 0 if name == "plan" else 1)

    makers = [partial(make, name) for name in programs]
    if share.share > 0.1:
        for name, (program, start, *_) in programs.items():
            points = before_fsyncs(operations_of(start(), program))
            makers += [partial(make, name, before) for before in points]
    return Samples(makers)


def test_without_any_single_fsync_and_in_any_other_order_harm_is_found(samples, share, counts):
    survivors = []
    with counts.timed("mutants"):
        for name in share.of(list(MUTANTS), at_least=5):
            judged = harmed = 0
            for sample in samples:
                more, bad = sample.judge(MUTANTS[name], most=share.number(40, at_least=20))
                judged, harmed = judged + more, harmed + bad
                if harmed:
                    break
            if judged:
                counts.add("mutants", f"{name}: states judged", judged)
                counts.add("mutants", f"{name}: harmed", harmed)
            if not harmed and (judged or share.share > 0.1):  # a small share has not all that is needed
                survivors.append(name)
    assert survivors == []


def test_files_that_get_their_names_before_the_record_are_found(
    fresh, undisturbed, memory, share, counts, monkeypatch
):
    """Whoever sees such a file cannot tell whether it is one that somebody still works on."""
    cache = fresh()
    with monkeypatch.context() as patch:
        patch.setattr(small_harvest, "commit", commit_with_the_record_last)
        recording = record(cache, harvest_alone)
    judge = Judge(Oracle(undisturbed, rebooted=True), memory, harvest_alone)
    states = share.of(list(CrashStates(recording.start, recording.operations, 0)), at_least=20)
    found = [state for state in states if judge.violations(state)]
    assert found
    counts.add("mutants", "the record comes last: states judged", len(states))
    counts.add("mutants", "the record comes last: harmed", len(found))


def test_the_calls_of_fsync_are_found_in_the_source():
    functions = {call.function for call in fsync_calls()}
    assert {"make_folder", "publish", "create_if_absent", "roll_forward", "UnitFiles.finish"} <= functions
    assert len(MUTANTS) >= len(functions) + len(ORDERS)
