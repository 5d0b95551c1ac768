"""Eight workers on one cache, killed, paused or out of space at random, and started again: units are committed once.

Each worker is a process of its own that waits where a model would compute. Numbers depend on the writer in
one of the tests, so that a file of one under the record of another would not match it.
"""

import contextlib
import os
import random
import signal
import threading
import time
from collections import Counter

import pytest

from shared.format.layout import PROVENANCE, Geometry
from tests.crash.oracle import damage, leftovers
from tests.crash.small_harvest import committed_units, harvest_alone
from tests.shared import small
from tests.tiny import promised
from tests.warm import Warm

pytestmark = pytest.mark.crash

WORKERS = 8
UNITS = 200
SECONDS_PER_UNIT = 0.2
PATIENCE = 1.0


class Worker:
    """Runs the filler again and again until it ends by itself; may be killed and paused at any time."""

    def __init__(self, warm, arguments):
        self.warm, self.arguments = warm, arguments
        self.pid, self.ended = None, []
        self.thread = threading.Thread(target=self._run)

    def _run(self):
        while not self.ended or self.ended[-1].code == -signal.SIGKILL:
            self.pid = self.warm.start(*self.arguments)
            self.ended.append(self.warm.wait())

    def send(self, number):
        """Send a signal, unless it has ended by now; says whether it was sent."""
        with contextlib.suppress(ProcessLookupError):
            if self.pid and self.thread.is_alive():
                os.kill(self.pid, number)
                return True
        return False

    def said(self, word):
        """The units behind a word, ACK or COMPUTED, in all that it ever printed."""
        lines = [line.split() for ended in self.ended for line in ended.out.splitlines()]
        return [int(line[1]) for line in lines if len(line) == 2 and line[0] == word]


def disturb(workers, rng, pauses):
    """Kill a worker every 0.5 s or so, and pause one for three times what the others are patient; count both."""
    done = Counter()
    while any(worker.thread.is_alive() for worker in workers):
        time.sleep(rng.uniform(0.2, 0.8))
        if pauses and rng.random() < 0.5:
            worker = rng.choice(workers)
            if worker.send(signal.SIGSTOP):
                done["pauses"] += 1
                threading.Timer(3 * PATIENCE, worker.send, [signal.SIGCONT]).start()
        else:
            done["kills"] += rng.choice(workers).send(signal.SIGKILL)
    return done


@pytest.fixture(scope="module")
def warms(tmp_path_factory, share):
    """Processes that workers are forked from."""
    made = [Warm("tests.crash.filler", tmp_path_factory.mktemp("worker")) for _ in range(share.number(WORKERS, 4))]
    yield made
    for warm in made:
        warm.close()


@pytest.mark.parametrize("own_bytes", [False, True], ids=["same bytes", "each its own bytes"])
def test_units_are_committed_once_whoever_dies_or_wakes_late(warms, memory, share, counts, own_bytes):
    units = share.number(UNITS, at_least=60)
    cache = memory / f"many-{own_bytes}"
    small.make_plan(cache, Geometry(units * 128 - 5, units * 100, 2, 128, 1))
    whole = small.copy(cache, memory / f"whole-{own_bytes}")
    harvest_alone(whole)
    arguments = [cache, "--seconds-per-unit", SECONDS_PER_UNIT, "--patience", PATIENCE]
    workers = [Worker(warm, [*arguments, *(["--own-bytes"] if own_bytes else [])]) for warm in warms]
    with counts.timed("many workers"):
        for worker in workers:
            worker.thread.start()
        done = disturb(workers, random.Random(own_bytes), pauses=own_bytes)
    assert all(worker.ended[-1].code == 0 for worker in workers), [worker.ended[-1] for worker in workers]
    assert committed_units(cache) == set(range(units))
    acknowledged = Counter(unit for worker in workers for unit in worker.said("ACK"))
    assert max(acknowledged.values()) == 1, "a unit was acknowledged twice"
    assert damage(cache) == []
    assert leftovers(cache) == []
    assert own_bytes or promised(cache) == promised(whole)
    twice = sum(len(worker.said("COMPUTED")) for worker in workers) - units
    name = "each its own bytes" if own_bytes else "same bytes"
    counts.add("many workers", f"{name}: units", units)
    counts.add("many workers", f"{name}: units computed twice", twice)
    late = sum(line.endswith("False") for line in (cache / PROVENANCE).read_text().splitlines())
    counts.add("many workers", f"{name}: late commits that lost", late)
    for what in ("kills", "pauses"):
        counts.add("many workers", f"{name}: {what}", done[what])
    assert twice < 0.1 * units
    assert done["kills"]


def test_where_the_disk_fills_up_all_stop_with_exit_75_and_lose_nothing(warms, memory, tmp_path, counts):
    cache, full = memory / "full", tmp_path / "full"
    small.make_plan(cache, Geometry(40 * 128 - 5, 4000, 2, 128, 1))
    whole = small.copy(cache, memory / "whole-full")
    harvest_alone(whole)
    arguments = [cache, "--seconds-per-unit", 0.05, "--full-while", full]
    acknowledged, stopped = [], 0
    with counts.timed("many workers"):
        for enough in (5, 20, 40):
            full.unlink(missing_ok=True)
            workers = [Worker(warm, arguments) for warm in warms]
            for worker in workers:
                worker.thread.start()
            while len(committed_units(cache)) < enough and any(worker.thread.is_alive() for worker in workers):
                time.sleep(0.01)
            full.touch()
            for worker in workers:
                worker.thread.join()
            acknowledged += [unit for worker in workers for unit in worker.said("ACK")]
            stopped += sum(worker.ended[-1].code == 75 for worker in workers)
            assert {worker.ended[-1].code for worker in workers} <= {0, 75}
            assert set(acknowledged) <= committed_units(cache)  # what failed after its record was there is committed
            assert damage(cache) == []
    assert stopped >= 2, "the disk was never full while anybody worked"
    full.unlink()
    assert warms[0].run(*arguments).code == 0
    assert leftovers(cache) == []
    assert promised(cache) == promised(whole)
    counts.add("many workers", "full disk: workers stopped with exit 75", stopped)
