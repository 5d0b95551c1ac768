"""The one I/O module: atomic, durable in the right order, and clear when the disk is not."""

import errno
import os
from pathlib import Path

import pytest

from shared import storage
from shared.errors import StorageError, TryAgainError


def test_a_file_is_synced_before_it_gets_its_name_and_its_folder_after(tmp_path):
    seen = []
    with storage.observe(lambda operation, path: seen.append(operation)):
        storage.write_file(tmp_path / "a", b"hello")
    assert seen == ["create", "write", "fsync", "rename", "fsync_folder"]
    assert (tmp_path / "a").read_bytes() == b"hello"


def test_fsync_is_really_called_on_the_file_and_on_its_folder(tmp_path, monkeypatch):
    synced = []

    def record(descriptor):
        synced.append(str(Path(f"/proc/self/fd/{descriptor}").readlink()))

    monkeypatch.setattr(os, "fsync", record)
    storage.write_file(tmp_path / "a", b"hello")
    assert len(synced) == 2
    assert synced[0].endswith(".partial")
    assert synced[1] == str(tmp_path)


@pytest.mark.parametrize("failing", range(5))
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EACCES])
def test_a_replaced_file_has_old_bytes_or_new_ones_whatever_fails(tmp_path, failing, number):
    path = tmp_path / "a"
    path.write_bytes(b"old")
    count = iter(range(100))

    def fail(operation, where):
        if next(count) == failing:
            raise OSError(number, os.strerror(number), str(where))

    full = number in {errno.ENOSPC, errno.EDQUOT}
    with storage.observe(fail), pytest.raises(TryAgainError if full else StorageError) as caught:
        storage.write_file(path, b"new")
    assert path.read_bytes() == (b"old" if failing < 4 else b"new")
    assert list(tmp_path.iterdir()) == [path]
    assert "\n" not in str(caught.value)
    storage.write_file(path, b"new")
    assert path.read_bytes() == b"new"


def test_create_if_absent_has_one_winner(tmp_path):
    for name in ("first", "second"):
        storage.write_new_file(tmp_path / name, name.encode())
    assert storage.create_if_absent(tmp_path / "first", tmp_path / "record")
    assert not storage.create_if_absent(tmp_path / "second", tmp_path / "record")
    assert (tmp_path / "record").read_bytes() == b"first"
    assert list(tmp_path.iterdir()) == [tmp_path / "record"]


def test_a_link_that_was_made_and_reported_as_failed_is_a_win(tmp_path, monkeypatch):
    """What a network file system does when the answer to the first attempt is lost."""
    link = os.link

    def lost_answer(source, target):
        link(source, target)
        raise FileExistsError(errno.EEXIST, "File exists")

    monkeypatch.setattr(os, "link", lost_answer)
    storage.write_new_file(tmp_path / "mine", b"x")
    assert storage.create_if_absent(tmp_path / "mine", tmp_path / "record")


def test_a_file_is_allocated_whole_and_written_anywhere(tmp_path):
    with storage.NewFile(tmp_path / "a", 10) as file:
        file.write(7, [b"xy", b"z"])
        file.write(0, [b"ab"])
        file.read_into(7, memoryview(read := bytearray(3)))
        assert read == b"xyz"
    assert (tmp_path / "a").read_bytes() == b"ab\0\0\0\0\0xyz"


def test_short_writes_go_on_where_they_stopped(tmp_path, monkeypatch):
    write = os.pwritev

    def short(descriptor, buffers, offset):
        return write(descriptor, [bytes(buffers[0])[:3]], offset)

    monkeypatch.setattr(os, "pwritev", short)
    pieces = [bytes([number % 251]) * (number % 7 + 1) for number in range(600)]
    with storage.NewFile(tmp_path / "a", 0) as file:
        file.write(0, pieces)
    assert (tmp_path / "a").read_bytes() == b"".join(pieces)


def test_many_pieces_are_written_in_order(tmp_path):
    pieces = [bytes([number % 251]) * 5 for number in range(1500)]
    with storage.NewFile(tmp_path / "a", 0) as file:
        file.write(3, pieces)
    assert (tmp_path / "a").read_bytes() == b"\0\0\0" + b"".join(pieces)


def test_a_rename_whose_source_is_gone_says_so(tmp_path):
    with pytest.raises(FileNotFoundError):
        storage.rename(tmp_path / "nosuch", tmp_path / "b")


def test_a_path_under_a_file_is_a_clear_error(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(StorageError, match="Cannot write"):
        storage.make_folder(tmp_path / "file" / "cache")


def test_free_bytes_of_a_folder_that_is_not_there_are_its_parents(tmp_path):
    assert storage.free_bytes(tmp_path / "a" / "b") == pytest.approx(storage.free_bytes(tmp_path), rel=0.1)
