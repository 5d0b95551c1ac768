"""What `gc` may remove: everything that a killed writer left, nothing of one that lives, pauses or may live."""

import contextlib
import os
import signal
import subprocess
import time

import pytest

from shared import storage
from shared.errors import CorruptError
from shared.format.layout import CLAIMS, HEARTBEAT, TMP, Geometry
from shared.format.plan import read_plan
from shared.upkeep import garbage
from shared.upkeep.garbage import collect, elsewhere, find_garbage, watch_for
from shared.upkeep.verify import files_to_check, verify
from shared.writing.claims import Claims, Work
from shared.writing.writers import Watch, writer_folder
from tests.shared import small

GEOMETRY = Geometry(600, 500, 2, 256, 1)
PASS_ID = small.PASS.pass_id

@pytest.fixture
def cache(tmp_path):
    """A cache with unit 0 committed."""
    path = tmp_path / "cache"
    small.make(path, GEOMETRY, units=[0])
    return path


OPEN = contextlib.ExitStack()
"""What a forked process keeps open until it is killed."""


class Forked:
    """A process of its own that does something and then waits to be killed."""

    def __init__(self, action):
        read, write = os.pipe()
        self.pid = os.fork()
        if not self.pid:
            try:
                os.write(write, action().encode())
                time.sleep(600)
            finally:
                os._exit(1)
        os.close(write)
        self.said = os.read(read, 1000).decode()
        os.close(read)

    def send(self, number):
        os.kill(self.pid, number)

    def kill(self):
        """Kill it, wherever it is, and wait for its end."""
        self.send(signal.SIGKILL)
        os.waitpid(self.pid, 0)


def hold_unit_one(cache):
    """Become a writer that holds unit 1, has written it and has not committed it."""
    writer = OPEN.enter_context(writer_folder(cache))
    Claims(cache, PASS_ID, writer).take([Work(1)])
    small.write_unit(cache, read_plan(cache), 1, writer)
    return writer


def commit_unit_one_and_die(cache):
    """Be killed between the record and the renames."""

    def die(operation, path):
        if operation == "chmod":
            os.kill(os.getpid(), signal.SIGKILL)

    with storage.observe(die):
        small.harvest_unit(cache, read_plan(cache), 1)


@pytest.fixture
def writing(cache):
    """A process that is at work on unit 1, and its writer's id."""
    process = Forked(lambda: hold_unit_one(cache))
    yield process, process.said
    with contextlib.suppress(ProcessLookupError, ChildProcessError):
        process.kill()


def files(cache):
    return {path: path.lstat().st_ino for path in cache.rglob("*")}


def test_after_a_clean_end_there_is_nothing_to_collect(cache):
    assert find_garbage(cache, Watch()) == []
    assert not list((cache / TMP).iterdir())


def test_nothing_of_a_paused_writer_is_touched_and_all_that_a_killed_one_left_goes(cache, writing):
    process, writer = writing
    process.send(signal.SIGSTOP)
    there = files(cache)
    assert find_garbage(cache, Watch()) == []
    collect(cache, Watch(), [])
    assert files(cache) == there

    process.kill()
    found = find_garbage(cache, Watch())
    assert [one.path.name for one in found] == [writer, f"000001.g0.{writer}.crc32c", "000001.g0.c0"]
    left = sum(path.stat().st_size for path in (cache / TMP / writer).rglob("*") if path.is_file())
    assert found[0].size == left > 1000
    assert files(cache) == there  # looking changes nothing
    collect(cache, Watch(), found)
    assert not list((cache / TMP).iterdir())
    assert not list((cache / CLAIMS).rglob("*.c0"))
    assert find_garbage(cache, Watch()) == []
    assert not [checked for checked in verify(files_to_check(cache)) if checked.problem]


def test_what_a_record_names_is_rolled_forward_and_not_counted(cache):
    process = Forked(lambda: commit_unit_one_and_die(cache))
    os.waitpid(process.pid, 0)
    [dead] = [folder.name for folder in (cache / TMP).iterdir()]
    [left] = [one for one in find_garbage(cache, Watch()) if one.path.name == dead]
    assert left.size < 1000  # its heartbeat and record, not its rows
    collect(cache, Watch(), find_garbage(cache, Watch()))
    assert not (cache / TMP / dead).exists()
    assert not [checked for checked in verify(files_to_check(cache)) if checked.problem]
    assert len(files_to_check(cache, units=[1])) == 2 * 2 + 1


def test_a_writer_of_another_machine_is_kept_unless_it_stands_still_while_it_is_watched(cache, writing):
    process, writer = writing
    process.kill()
    heartbeat = cache / TMP / writer / HEARTBEAT
    heartbeat.write_text(f"{writer} another-boot {7:012d}\n")
    assert elsewhere(cache) == [heartbeat]
    assert find_garbage(cache, Watch()) == []
    watch = watch_for(0.2, cache)
    heartbeat.write_text(f"{writer} another-boot {8:012d}\n")  # it beats
    assert find_garbage(cache, watch) == []
    watch = watch_for(0.2, cache)
    found = find_garbage(cache, watch)
    assert [one.path.name for one in found] == [writer, f"000001.g0.{writer}.crc32c", "000001.g0.c0"]
    collect(cache, watch, found)
    assert not list((cache / TMP).iterdir())


def test_a_writer_that_has_just_begun_is_left_alone(cache):
    with writer_folder(cache) as writer:
        name = writer.rsplit("-", 1)[0]
        (cache / TMP / f"{name}-abcdef").mkdir()  # ours: this process lives, and may be about to write its heartbeat
        with subprocess.Popen("true") as gone:
            pass
        dead = f"{name.rsplit('-', 1)[0]}-{gone.pid}-abcdef"
        (cache / TMP / dead).mkdir()
        (cache / TMP / "otherhost-1-abcdef").mkdir()
        assert [one.path.name for one in find_garbage(cache, Watch())] == [dead]


def test_claims_of_a_living_writer_stay(cache):
    with writer_folder(cache) as writer:
        claims = Claims(cache, PASS_ID, writer)
        assert claims.take([Work(2)]) == Work(2)
        assert find_garbage(cache, Watch()) == []
        claims.release()


def test_a_cache_half_removed_by_fresh_goes_and_its_neighbours_stay(cache, tmp_path):
    left = tmp_path / ".cache.removed-host-1-abcdef"
    (left / "tmp").mkdir(parents=True)
    (left / "tmp" / "x").write_bytes(bytes(100))
    for name in (".cache.removed-by-hand", ".cache2.removed-host-1-abcdef", "cache.removed-host-1-abcdef"):
        (tmp_path / name).mkdir()
    [found] = find_garbage(cache, Watch())
    assert (found.path, found.size) == (left, 100)
    collect(cache, Watch(), [found])
    assert not left.exists()
    assert len(list(tmp_path.iterdir())) == 4


def test_with_a_damaged_record_nothing_is_called_dead(cache, writing):
    writing[0].kill()
    [record] = cache.glob("commits/*/000000.g0.json")
    record.chmod(0o644)
    record.write_text("{")
    with pytest.raises(CorruptError):
        find_garbage(cache, Watch())


def test_no_operation_that_fails_half_way_harms_the_cache(cache, writing):
    writing[0].kill()
    found = find_garbage(cache, Watch())

    def fail(operation, path):
        if operation in {"unlink", "rmtree"}:
            raise OSError(5, "Input/output error", str(path))

    with storage.observe(fail), pytest.raises(storage.StorageError):
        collect(cache, Watch(), found)
    assert not [checked for checked in verify(files_to_check(cache)) if checked.problem]
    collect(cache, Watch(), found)
    assert find_garbage(cache, Watch()) == []


def test_a_claim_that_a_power_cut_emptied_is_collected_after_some_patience(cache):
    folder = cache / CLAIMS / PASS_ID
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "000001.g0.c0").touch()
    assert find_garbage(cache, Watch()) == []  # another machine's may not have come through yet
    watch = watch_for(0.1, cache)
    found = find_garbage(cache, watch)
    assert [one.path.name for one in found] == ["000001.g0.c0"]
    collect(cache, watch, found)
    assert not list(folder.iterdir())


def test_what_is_stalled_is_found_however_long_the_first_look_takes(cache, monkeypatch):
    def slowly(folder):
        time.sleep(0.2)
        return elsewhere(folder)

    monkeypatch.setattr(garbage, "elsewhere", slowly)
    folder = cache / CLAIMS / PASS_ID
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "000001.g0.c0").touch()
    assert [one.path.name for one in find_garbage(cache, watch_for(0.1, cache))] == ["000001.g0.c0"]
