"""A unit is committed whole or not at all, whatever fails and whenever a writer dies."""

import contextlib
import errno
import os
import shutil
from pathlib import Path

import pytest

from shared import storage
from shared.errors import CorruptError, StorageError, TryAgainError
from shared.format.commits import FileEntry, commit, read_records, record_path, roll_forward
from shared.format.layout import BURIED, GROUP, HEARTBEAT, PASSES, TMP, Geometry
from shared.reading.cache import open_cache
from shared.sealed_json import read_sealed, seal
from shared.upkeep.garbage import find_garbage
from shared.upkeep.verify import files_to_check, verify
from shared.writing import writers
from shared.writing.writers import recover, writer_folder
from tests.crash.oracle import leftovers
from tests.shared import small
from tests.tiny import promised

GEOMETRY = Geometry(300, 250, 2, 256, 2)
PASS_ID = small.PASS.pass_id


@pytest.fixture(scope="module")
def planned(tmp_path_factory):
    """A plan without any unit."""
    path = tmp_path_factory.mktemp("planned") / "cache"
    return path, small.make_plan(path, GEOMETRY)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """What the unit is when nothing goes wrong."""
    path = tmp_path_factory.mktemp("whole") / "cache"
    small.harvest_unit(path, small.make_plan(path, GEOMETRY), 0)
    return promised(path)


@pytest.fixture
def fresh(planned, memory_folder):
    """Gives a new copy of the plan."""
    copies = iter(range(10_000))
    base = shutil.copytree(planned[0], memory_folder / "base")
    return lambda: (small.copy(base, memory_folder / f"cache{next(copies)}"), planned[1])


def operations(fresh):
    """Every storage operation of committing the unit, in order."""
    for _ in range(2):  # the first in a process also makes the folders above the cache durable
        cache, plan = fresh()
        seen = []
        with storage.observe(lambda operation, path, seen=seen: seen.append(operation)):
            small.harvest_unit(cache, plan, 0)
    return seen


def assert_whole_or_absent(cache) -> bool:
    """Whether the unit is committed; if it is, every byte of it must be there."""
    committed = 0 in read_records(cache, PASS_ID)
    if committed:
        opened = open_cache(cache, verify="open")
        for layer in small.LAYERS:
            assert (opened.layer(layer)[:] == small.rows_of(GEOMETRY, layer)).all()
        assert not [checked for checked in verify(files_to_check(cache)) if checked.problem]
    else:
        assert open_cache(cache).layers == ()
    return committed


def finish(cache, plan, whole):
    """Run the same command again."""
    recover(cache)
    if 0 not in read_records(cache, PASS_ID):
        assert small.harvest_unit(cache, plan, 0)
    assert promised(cache) == whole
    assert leftovers(cache) == []


@pytest.mark.parametrize(("number", "error"), [(errno.ENOSPC, TryAgainError), (errno.EIO, StorageError)])
def test_whichever_operation_fails_the_unit_is_whole_or_absent_and_can_be_repeated(fresh, whole, number, error):
    names = operations(fresh)
    assert {"create", "allocate", "write", "fsync", "link", "rename", "fsync_folder", "chmod"} <= set(names)
    outcomes = set()
    for failing in range(len(names)):
        cache, plan = fresh()
        count = iter(range(10_000))

        def fail(operation, path, count=count, failing=failing):
            if next(count) == failing:
                raise OSError(number, os.strerror(number), str(path))

        try:
            with storage.observe(fail):
                small.harvest_unit(cache, plan, 0)
        except error:
            pass
        else:  # only cleaning up may fail in silence
            assert names[failing] in {"rmtree", "unlink"}
        outcomes.add(assert_whole_or_absent(cache))
        finish(cache, plan, whole)
        shutil.rmtree(cache)
    assert outcomes == {True, False}


class Killed(BaseException):
    """SIGKILL, as far as a test in one process can have it: nothing is written afterwards."""


def test_killed_before_any_operation_the_unit_is_whole_or_absent_and_can_be_repeated(fresh, whole):
    names = operations(fresh)
    outcomes = []
    for last in range(len(names)):
        cache, plan = fresh()
        count = iter(range(10_000))

        def die(operation, path, count=count, last=last):
            if next(count) >= last:
                raise Killed

        with storage.observe(die), pytest.raises(Killed):
            small.harvest_unit(cache, plan, 0)
        outcomes.append(assert_whole_or_absent(cache))
        recover(cache)
        assert assert_whole_or_absent(cache) == outcomes[-1]
        finish(cache, plan, whole)
        shutil.rmtree(cache)
    assert outcomes == sorted(outcomes)  # absent up to the record's link, there from then on
    assert outcomes.index(True) == names.index("link") + 1


def test_a_late_writer_finds_the_record_and_drops_its_work(fresh):
    cache, plan = fresh()
    with writer_folder(cache) as early, writer_folder(cache) as late:
        _, first = small.write_unit(cache, plan, 0, early)
        _, second = small.write_unit(cache, plan, 0, late, seed=9)  # as if it had computed something else
        assert commit(cache, first)
        before = promised(cache)
        assert not commit(cache, second)
        assert promised(cache) == before
        assert not [entry for entry in second.files if (cache / entry.temporary).exists()]
        assert read_records(cache, PASS_ID)[0].writer == early
    assert assert_whole_or_absent(cache)
    assert [path.name for path in cache.glob("commits/*/*.crc32c")] == [Path(first.blocks.path).name]


def dead_after_link(cache, plan):
    """A writer that died between the record and the renames; its id."""
    dead = []

    def die(operation, path):
        dead.append(operation)
        if "link" in dead[:-1] and operation != "fsync_folder":
            raise Killed

    with storage.observe(die), pytest.raises(Killed):
        small.harvest_unit(cache, plan, 0)
    return read_records(cache, PASS_ID)[0].writer


def test_a_committed_unit_is_readable_before_it_has_its_final_names(fresh):
    cache, plan = fresh()
    dead_after_link(cache, plan)
    assert not list(cache.glob(f"{GROUP}/layers/*/resid_post/c/*"))
    assert assert_whole_or_absent(cache)


def test_another_worker_rolls_a_dead_writers_unit_forward(fresh, whole):
    cache, plan = fresh()
    writer = dead_after_link(cache, plan)
    assert recover(cache) == 1
    assert not (cache / TMP / writer).exists()
    assert promised(cache) == whole
    assert recover(cache) == 0


def test_a_unit_is_readable_while_its_dead_writers_folder_is_being_removed(fresh, whole):
    """Power may go between the renaming of the folder and the final names of the files in it."""
    cache, plan = fresh()
    writer = dead_after_link(cache, plan)
    (cache / TMP / writer).rename(cache / TMP / f"{writer}{BURIED}")
    assert assert_whole_or_absent(cache)
    recover(cache)
    assert promised(cache) == whole
    assert not list((cache / TMP).iterdir())


def test_a_writers_folder_with_both_names_after_a_power_cut_is_removed(fresh, whole):
    cache, plan = fresh()
    writer = dead_after_link(cache, plan)
    shutil.copytree(cache / TMP / writer, cache / TMP / f"{writer}{BURIED}")
    recover(cache)
    assert promised(cache) == whole
    assert not list((cache / TMP).iterdir())


def test_a_folder_whose_removal_lost_the_heartbeat_first_is_removed(fresh):
    cache, plan = fresh()
    writer = dead_after_link(cache, plan)
    (cache / TMP / writer / HEARTBEAT).unlink()
    (cache / TMP / writer).rename(cache / TMP / f"{writer}{BURIED}")
    assert [one.path.name for one in find_garbage(cache, writers.Watch())] == [f"{writer}{BURIED}"]
    recover(cache)
    assert not list((cache / TMP).iterdir())


def test_rolling_forward_twice_at_once_is_harmless(fresh, whole):
    cache, plan = fresh()
    dead_after_link(cache, plan)
    record = read_records(cache, PASS_ID)[0]
    other_came_first = []

    def race(operation, path):
        if operation == "rename" and not other_came_first:
            other_came_first.append(path)
            roll_forward(cache, record)

    with storage.observe(race):
        roll_forward(cache, record)
    recover(cache)
    assert promised(cache) == whole


def test_recovery_leaves_a_living_writer_alone(fresh):
    cache, plan = fresh()
    with writer_folder(cache) as writer:
        small.write_unit(cache, plan, 0, writer)
        recover(cache)
        assert (cache / TMP / writer / "unit-000000").is_dir()
    assert not (cache / TMP / writer).exists()


def test_a_writer_that_commits_and_dies_while_another_recovers_loses_nothing(fresh, monkeypatch):
    cache, plan = fresh()
    calls = []

    look = writers._newest_records

    def read(*arguments):
        records = list(look(*arguments))
        calls.append(arguments)
        if len(calls) == 1:
            dead_after_link(cache, plan)  # just after the records were read
        return iter(records)

    monkeypatch.setattr(writers, "_newest_records", read)
    recover(cache)
    assert assert_whole_or_absent(cache)


def test_a_writer_taken_for_dead_that_wakes_while_its_folder_goes_commits_before_or_never(fresh, monkeypatch):
    for moment in ("rename", "rmtree"):
        cache, plan = fresh()
        with writer_folder(cache) as late:
            _, record = small.write_unit(cache, plan, 0, late)
            monkeypatch.setattr(writers.Watch, "is_dead", lambda *_: True)
            woken = []

            def wake(operation, path, cache=cache, record=record, moment=moment, woken=woken):
                if operation == moment and not woken:
                    woken.append(path)
                    with contextlib.suppress(StorageError, FileNotFoundError):
                        woken.append(commit(cache, record))

            with storage.observe(wake):
                recover(cache)
            monkeypatch.undo()
            assert woken
            assert assert_whole_or_absent(cache) == (True in woken)


def test_recovery_keeps_units_of_a_pass_whose_own_file_is_missing(fresh, whole):
    cache, plan = fresh()
    dead_after_link(cache, plan)
    [pass_file] = (cache / PASSES).glob("*.json")
    kept = pass_file.read_bytes()
    pass_file.unlink()
    recover(cache)
    pass_file.write_bytes(kept)
    assert promised(cache) == whole


def test_what_was_repaired_is_not_replaced_by_the_generation_before(fresh):
    cache, plan = fresh()
    with writer_folder(cache) as slow:
        _, old = small.write_unit(cache, plan, 0, slow, seed=1)
        with writer_folder(cache) as repairer:
            files, new = small.write_unit(cache, plan, 0, repairer, generation=1)
            assert commit(cache, new)
            files.discard()
        assert roll_forward(cache, old) == 0
    assert assert_whole_or_absent(cache)


@pytest.mark.parametrize("host", ["_worker1", "émile-pc", "...", "a" * 300])
def test_a_writer_on_a_host_of_any_name_has_a_name_that_a_record_takes(fresh, monkeypatch, host):
    monkeypatch.setattr("socket.gethostname", lambda: host)
    cache, plan = fresh()
    assert small.harvest_unit(cache, plan, 0)
    assert assert_whole_or_absent(cache)


def test_committed_files_are_read_only(fresh):
    cache, plan = fresh()
    small.harvest_unit(cache, plan, 0)
    for path in cache.glob(f"{GROUP}/layers/*/*/c/**/*"):
        assert path.is_dir() or path.stat().st_mode & 0o222 == 0


def reseal(path, change):
    content = read_sealed(path)
    change(content)
    path.write_bytes(seal(content))


TRICKS = ["/etc/passwd", "../outside", "a/../../outside", "", "..", "activations.zarr/../../outside"]


@pytest.mark.parametrize("trick", TRICKS)
@pytest.mark.parametrize("field", ["path", "temporary"])
def test_a_record_that_names_a_file_outside_the_cache_is_refused(fresh, trick, field):
    cache, plan = fresh()
    small.harvest_unit(cache, plan, 0)
    reseal(record_path(cache, PASS_ID, 0), lambda content: [entry.update({field: trick}) for entry in content["files"]])
    with pytest.raises(CorruptError):
        open_cache(cache).layer(0)
    with pytest.raises(CorruptError):
        recover(cache)
    with pytest.raises(CorruptError):
        list(verify(files_to_check(cache)))


@pytest.mark.parametrize(
    "change",
    [
        lambda content: content.update(unit=1),
        lambda content: content.update(generation=3),
        lambda content: content.update(cache_id="0" * 32),
        lambda content: content.update(pass_id="0" * 12),
        lambda content: content.update(rows=[0, 128]),
        lambda content: content.update(rows="all"),
        lambda content: content.update(surprise=1),
        lambda content: content.pop("files"),
        lambda content: content["files"].pop(),
        lambda content: content["files"][0].update(size=7),
        lambda content: content.update(nonfinite={"x": [1]}),
    ],
)
def test_a_record_that_does_not_fit_is_refused(fresh, change):
    cache, plan = fresh()
    small.harvest_unit(cache, plan, 0)
    reseal(record_path(cache, PASS_ID, 0), change)
    with pytest.raises(CorruptError):
        [open_cache(cache).layer(layer) for layer in small.LAYERS]


def test_a_record_of_another_cache_is_refused(fresh, tmp_path):
    cache, plan = fresh()
    small.harvest_unit(cache, plan, 0)
    other = tmp_path / "other"
    small.make(other, Geometry(300, 250, 2, 256, 2))
    reseal(other / "plan.json", lambda content: content.update(identity={"x": 1}, cache_id="0" * 32))
    with pytest.raises(CorruptError, match="identity"):
        open_cache(other)


def test_a_pass_under_another_name_is_refused(fresh):
    cache, _ = fresh()
    path = cache / PASSES / f"{PASS_ID}.json"
    path.rename(path.with_name("0" * 12 + ".json"))
    with pytest.raises(CorruptError, match="holds another pass"):
        open_cache(cache)


def test_the_highest_generation_counts(fresh):
    cache, plan = fresh()
    small.harvest_unit(cache, plan, 0)
    first = record_path(cache, PASS_ID, 0)
    content = read_sealed(first) | {"generation": 10, "writer": "repairer"}
    record_path(cache, PASS_ID, 0, 10).write_bytes(seal(content))
    record_path(cache, PASS_ID, 0, 9).write_bytes(b"not even JSON")
    assert read_records(cache, PASS_ID)[0].writer == "repairer"


def test_files_with_other_names_among_the_records_mean_nothing(fresh):
    cache, plan = fresh()
    small.harvest_unit(cache, plan, 0)
    folder = record_path(cache, PASS_ID, 0).parent
    for name in ("000001.g0.json.partial", ".nfs0001", "1.g0.json", "000001.json"):
        (folder / name).write_text("{}")
    assert list(read_records(cache, PASS_ID)) == [0]


def test_an_entry_keeps_its_four_fields():
    assert set(FileEntry.model_fields) == {"path", "temporary", "size", "xxh3"}
