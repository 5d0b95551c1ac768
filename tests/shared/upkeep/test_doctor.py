"""`doctor` finds what a file system does not do, by trying; each fault is one that some file system has."""

import errno
import fcntl
import os
import shutil
from pathlib import Path

import pytest

from shared import storage
from shared.errors import StorageError
from shared.upkeep import doctor
from shared.upkeep.doctor import examine, file_system

NAMES = ["create", "rename", "link", "fsync", "lock", "allocate", "map", "protect", "space", "speed", "open files"]


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    monkeypatch.setattr(doctor, "_SPEED_BYTES", 1 << 20)
    monkeypatch.setattr(doctor, "_SLOW_BYTES_PER_SECOND", 0)
    monkeypatch.setattr(doctor, "_SLOW_FSYNC_SECONDS", 10)
    monkeypatch.setattr(doctor, "_FEW_BYTES", 0)
    monkeypatch.setattr(doctor, "_FEW_FILES", 0)


def states(folder):
    found = {finding.name: finding.state for finding in examine(folder)}
    assert not list(folder.iterdir())
    return found


def test_a_good_folder_is_ok_in_everything_and_nothing_is_left_in_it(tmp_path):
    assert states(tmp_path) == dict.fromkeys(NAMES, "ok")


@pytest.mark.parametrize(
    ("operation", "failed"),
    [("create", set(NAMES) - {"space", "open files"}), ("rename", {"rename", "map"}), ("link", {"link"}),
     ("chmod", {"protect"}), ("allocate", {"allocate", "speed"}), ("fsync_folder", {"rename", "fsync", "map"})],
)
def test_an_operation_that_the_file_system_refuses_fails_what_rests_on_it(tmp_path, operation, failed):
    def refuse(name, path):
        if name == operation:
            raise OSError(errno.EOPNOTSUPP, "Operation not supported", str(path))

    with storage.observe(refuse):
        found = list(examine(tmp_path))
    assert {finding.name for finding in found if finding.state == "FAIL"} == failed
    assert all("Operation not supported" in finding.text for finding in found if finding.state == "FAIL")
    assert not list(tmp_path.iterdir())


def test_a_link_that_replaces_what_is_there_is_no_place_for_commits(tmp_path, monkeypatch):
    def replacing(source, target):
        Path(target).unlink(missing_ok=True)
        original(source, target)

    original = os.link
    monkeypatch.setattr(os, "link", replacing)
    assert states(tmp_path) == dict.fromkeys(NAMES, "ok") | {"link": "FAIL"}


def test_links_that_are_copies_are_found(tmp_path, monkeypatch):
    def copying(source, target):
        shutil.copyfile(source, target)

    monkeypatch.setattr(os, "link", copying)
    assert states(tmp_path)["link"] == "FAIL"


def test_locks_that_hold_nobody_off_fail_and_no_locks_are_only_a_drawback(tmp_path, monkeypatch):
    monkeypatch.setattr(fcntl, "flock", lambda file, how: None)
    assert states(tmp_path)["lock"] == "FAIL"

    def refuse(file, how):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    [lock] = [finding for finding in examine(tmp_path) if finding.name == "lock"]
    assert lock.state == "slow"
    assert "No locks available" in lock.text


def test_modes_that_do_not_stick_and_slow_disks_are_drawbacks(tmp_path, monkeypatch):
    monkeypatch.setattr(storage, "make_read_only", lambda path: None)
    monkeypatch.setattr(doctor, "_SLOW_BYTES_PER_SECOND", 1e18)
    monkeypatch.setattr(doctor, "_SLOW_FSYNC_SECONDS", 0)
    monkeypatch.setattr(doctor, "_FEW_BYTES", 1e18)
    monkeypatch.setattr(doctor, "_FEW_FILES", 1 << 40)
    slow = {"protect", "speed", "fsync", "space", "open files"}
    assert states(tmp_path) == {name: "slow" if name in slow else "ok" for name in NAMES}


def test_space_that_is_not_there_is_an_answer(tmp_path):
    def full(name, path):
        if name == "allocate":
            raise OSError(errno.ENOSPC, "No space left on device", str(path))

    with storage.observe(full):
        found = {finding.name: finding.text for finding in examine(tmp_path) if finding.state == "FAIL"}
    assert set(found) == {"allocate", "speed"}
    assert "No space left" in found["speed"]


def test_a_folder_that_cannot_be_written_is_said_at_once():
    with pytest.raises(StorageError, match="Cannot write /proc"):
        list(examine(Path("/proc")))


def test_the_kind_of_file_system_is_told(tmp_path):
    assert file_system(tmp_path) not in {"", "unknown"}
    assert file_system(tmp_path / "nosuch") == file_system(tmp_path)
