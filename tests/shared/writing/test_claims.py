"""Any number of writers share the units of a cache, whoever dies or sleeps meanwhile."""

import os
import shutil
import signal
import threading
import time
from pathlib import Path

import pytest

from shared.errors import TryAgainError
from shared.format.commits import commit, read_records
from shared.format.layout import CLAIMS, HEARTBEAT, TMP, Geometry
from shared.upkeep.verify import files_to_check, verify
from shared.writing import claims as claims_module
from shared.writing import writers
from shared.writing.claims import Claims, Work, claims_in, holders, only_one
from shared.writing.writers import Watch, living_writers, recover, remove_cache, writer_folder
from tests.shared import small

GEOMETRY = Geometry(1000, 900, 2, 128, 1)
PASS_ID = small.PASS.pass_id
EVERY_UNIT = [Work(unit) for unit in range(GEOMETRY.num_units)]


@pytest.fixture(scope="module")
def planned(tmp_path_factory):
    path = tmp_path_factory.mktemp("planned") / "cache"
    return path, small.make_plan(path, GEOMETRY)


@pytest.fixture
def cache(planned, memory_folder):
    return Path(shutil.copytree(planned[0], memory_folder / "cache"))


def child(action) -> int:
    """Run ``action`` in a process of its own; its id. It never returns here."""
    pid = os.fork()
    if not pid:
        try:
            action()
        finally:
            os._exit(0)
    return pid


def wait_for(condition, seconds=10.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.01)


def claim_and_sleep(cache):
    """A child that holds unit 0 and sleeps; its process id."""

    def action():
        with writer_folder(cache) as writer:
            assert Claims(cache, PASS_ID, writer).take(EVERY_UNIT) == Work(0)
            time.sleep(60)

    pid = child(action)
    wait_for(lambda: holders(cache))
    return pid


def kill(pid):
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def test_two_writers_are_given_different_units_until_none_is_left(cache):
    with writer_folder(cache) as one, writer_folder(cache) as other:
        first, second = Claims(cache, PASS_ID, one), Claims(cache, PASS_ID, other)
        taken = [claims.take(EVERY_UNIT) for _ in range(4) for claims in (first, second)]
        assert sorted(taken) == EVERY_UNIT
        assert first.take(EVERY_UNIT) is None
        assert set(first.others(EVERY_UNIT).values()) == {other}
        assert holders(cache) == {(PASS_ID, work.unit, 0): (one, other)[work in taken[1::2]] for work in EVERY_UNIT}


def test_eight_writers_at_once_are_never_given_the_same_unit(cache):
    taken = []

    def work():
        with writer_folder(cache) as writer:
            claims = Claims(cache, PASS_ID, writer)
            while (mine := claims.take(EVERY_UNIT)) is not None:
                taken.append(mine)
            barrier.wait()

    barrier = threading.Barrier(8)
    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(taken) == EVERY_UNIT


def test_what_is_given_back_can_be_taken_at_once(cache):
    with writer_folder(cache) as one, writer_folder(cache) as other:
        claims = Claims(cache, PASS_ID, one)
        assert claims.take(EVERY_UNIT) == Work(0)
        claims.release()
        assert Claims(cache, PASS_ID, other).take(EVERY_UNIT) == Work(0)


def test_the_claim_of_a_writer_that_was_killed_is_taken_over_at_once(cache):
    kill(claim_and_sleep(cache))
    with writer_folder(cache) as writer:
        assert Claims(cache, PASS_ID, writer).take(EVERY_UNIT) == Work(0)
        assert holders(cache) == {(PASS_ID, 0, 0): writer}
        assert sorted(number for _, number, _ in claims_in(cache / CLAIMS / PASS_ID)) == [0, 1]


def test_a_paused_writer_loses_its_claim_when_its_counter_stands_still_and_keeps_its_temporaries(
    cache, monkeypatch
):
    monkeypatch.setattr(writers, "BEAT_SECONDS", 0.05)
    pid = claim_and_sleep(cache)
    watch = Watch(patience=0.5)
    with writer_folder(cache) as writer:
        claims = Claims(cache, PASS_ID, writer, watch)
        only = EVERY_UNIT[:1]
        for _ in range(20):  # it is alive and beats: patience is not enough
            assert claims.take(only) is None
            time.sleep(0.04)
        os.kill(pid, signal.SIGSTOP)
        wait_for(lambda: claims.take(only) == Work(0))
        recover(cache)
        assert len(list((cache / TMP).iterdir())) == 2  # paused is not dead
    kill(pid)
    recover(cache)
    assert not list((cache / TMP).iterdir())


def test_a_worker_that_wakes_late_loses_cleanly_though_its_bytes_differ(cache, planned):
    plan = planned[1]
    with writer_folder(cache) as slow:
        claims = Claims(cache, PASS_ID, slow)
        work = claims.take(EVERY_UNIT)
        files, record = small.write_unit(cache, plan, work.unit, slow, seed=1)
        with writer_folder(cache) as fast:  # it took slow for dead
            stalled = Watch(patience=0)
            stalled.is_stalled(cache / TMP / slow / HEARTBEAT)
            assert Claims(cache, PASS_ID, fast, stalled).take(EVERY_UNIT) == work
            other_files, other = small.write_unit(cache, plan, work.unit, fast, seed=2)
            assert commit(cache, other)
            other_files.discard()
        assert not commit(cache, record)
        files.discard()
        assert claims.take(EVERY_UNIT) == Work(1)  # and it goes on with the next one
    assert read_records(cache, PASS_ID)[0].writer == fast
    assert not [checked for checked in verify(files_to_check(cache)) if checked.problem and "unit" in checked.problem]


def test_a_unit_that_is_committed_between_two_looks_is_not_done_again(cache, planned, monkeypatch):
    look = claims_module._newest_claims

    def commit_meanwhile(folder):
        newest = look(folder)
        monkeypatch.setattr(claims_module, "_newest_claims", look)
        assert small.harvest_unit(cache, planned[1], 0)
        return newest

    with writer_folder(cache) as writer:
        monkeypatch.setattr(claims_module, "_newest_claims", commit_meanwhile)
        assert Claims(cache, PASS_ID, writer).take(EVERY_UNIT) == Work(1)


def test_claims_of_committed_units_are_given_back(cache, planned):
    with writer_folder(cache) as writer:
        claims = Claims(cache, PASS_ID, writer)
        claims.take(EVERY_UNIT)
        files, record = small.write_unit(cache, planned[1], 0, writer)
        assert commit(cache, record)
        files.discard()
        assert holders(cache) == {}
        claims.take(EVERY_UNIT)
        assert [work for work, _, _ in claims_in(cache / CLAIMS / PASS_ID)] == [Work(1)]


def pretend_to_be_elsewhere(cache, monkeypatch):
    """From here on this process runs on another machine, as far as it can tell."""
    monkeypatch.setattr(writers, "_boot_id", lambda: "elsewhere")


def test_on_another_machine_a_lock_proves_nothing_and_a_counter_does(cache, monkeypatch):
    pid = claim_and_sleep(cache)
    kill(pid)
    pretend_to_be_elsewhere(cache, monkeypatch)
    [heartbeat] = (cache / TMP).glob(f"*/{HEARTBEAT}")
    watch = Watch(patience=0.2)
    assert not watch.is_dead(heartbeat)  # nobody holds the lock; there it may be that nobody could see it held
    recover(cache)
    assert heartbeat.exists()
    with writer_folder(cache) as writer:
        claims = Claims(cache, PASS_ID, writer, watch)
        assert claims.take(EVERY_UNIT[:1]) is None
        time.sleep(0.25)
        assert watch.is_dead(heartbeat)
        assert claims.take(EVERY_UNIT[:1]) == Work(0)


def test_a_counter_that_jumps_backwards_is_a_sign_of_life(cache):
    path = cache / "x"
    watch = Watch(patience=0.0)
    path.write_text("writer elsewhere 000000000009\n")
    watch.is_stalled(path)
    path.write_text("writer elsewhere 000000000003\n")
    assert not watch.is_stalled(path)


def test_a_cache_that_somebody_writes_is_not_removed(cache, monkeypatch):
    monkeypatch.setattr(writers, "BEAT_SECONDS", 0.02)
    monkeypatch.setattr(writers, "PATIENCE_SECONDS", 3.0)
    with writer_folder(cache) as writer:
        with pytest.raises(TryAgainError, match=writer):
            remove_cache(cache)
        pretend_to_be_elsewhere(cache, monkeypatch)
        with pytest.raises(TryAgainError, match=writer):
            remove_cache(cache)
    assert living_writers(cache) == []
    remove_cache(cache)
    assert not cache.exists()


def test_of_many_only_one_is_inside_at_a_time_and_one_that_dies_there_is_replaced(cache):
    def die_inside():
        with writer_folder(cache) as writer, only_one(cache, writer):
            (cache / "inside").touch()
            time.sleep(60)

    pid = child(die_inside)
    wait_for((cache / "inside").exists)
    kill(pid)
    inside, most = [], []

    def enter():
        with writer_folder(cache) as writer, only_one(cache, writer):
            inside.append(writer)
            most.append(len(inside))
            time.sleep(0.02)
            inside.remove(writer)

    threads = [threading.Thread(target=enter) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1, 1, 1, 1]
    assert holders(cache) == {}
