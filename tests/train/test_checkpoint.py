"""Checkpoints: whole or not there, two kept, damage passed over."""

import logging

import pytest
import torch

from shared import storage
from shared.errors import IdentityError, StorageError
from train import checkpoint


def save(folder, step):
    checkpoint.save(folder, step, {"a/w": torch.full((3, 2), float(step)).t()}, {"a": step * 10})


def test_what_was_saved_comes_back(tmp_path):
    assert checkpoint.load_newest(tmp_path) is None
    save(tmp_path, 7)
    found = checkpoint.load_newest(tmp_path)
    assert (found.step, found.metrics_bytes) == (7, {"a": 70})
    assert torch.equal(found.tensors["a/w"], torch.full((2, 3), 7.0))


def test_the_two_newest_are_kept(tmp_path):
    for step in (1, 2, 30):
        save(tmp_path, step)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-000000002", "step-000000030"]


@pytest.mark.parametrize("file", ["state.safetensors", "checkpoint.json"])
@pytest.mark.parametrize("damage", ["flip", "cut", "remove"])
def test_a_damaged_newest_one_is_passed_over_with_a_warning(tmp_path, caplog, file, damage):
    save(tmp_path, 1)
    save(tmp_path, 2)
    path = tmp_path / "step-000000002" / file
    data = bytearray(path.read_bytes())
    path.unlink()
    if damage == "flip":
        data[-5] ^= 1
    if damage != "remove":
        path.write_bytes(data[: len(data) // 2] if damage == "cut" else data)
    with caplog.at_level(logging.WARNING):
        assert checkpoint.load_newest(tmp_path).step == 1
    assert "Going back to the one before" in caplog.text
    save(tmp_path, 2)
    assert checkpoint.load_newest(tmp_path).step == 2


def test_one_of_another_version_is_refused_and_not_passed_over(tmp_path, monkeypatch):
    save(tmp_path, 1)
    monkeypatch.setattr(checkpoint, "_FORMAT_VERSION", 2)
    save(tmp_path, 2)
    monkeypatch.undo()
    with pytest.raises(IdentityError, match=r"step-000000002 is of another version.*--fresh"):
        checkpoint.load_newest(tmp_path)


def damage(folder, step):
    (folder / f"step-{step:09d}" / "state.safetensors").write_bytes(b"")


def test_damaged_ones_do_not_count_as_one_of_the_two_that_are_kept(tmp_path):
    for step in (900, 1000):
        save(tmp_path, step)
    damage(tmp_path, 1000)
    assert checkpoint.load_newest(tmp_path).step == 900
    for step in (950, 980):
        save(tmp_path, step)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-000000950", "step-000000980"]
    damage(tmp_path, 980)
    assert checkpoint.load_newest(tmp_path).step == 950


def test_a_disk_that_fails_for_a_while_costs_no_checkpoint(tmp_path, monkeypatch):
    for step in (900, 1000):
        save(tmp_path, step)

    def fails(path):
        raise OSError(5, "Input/output error", str(path))

    monkeypatch.setattr(checkpoint, "file_digest", fails)
    with pytest.raises(StorageError, match=r"Cannot read the checkpoint .*step-000001000.*Input/output error"):
        checkpoint.load_newest(tmp_path)
    monkeypatch.undo()
    assert checkpoint.load_newest(tmp_path).step == 1000


def test_where_all_are_damaged_a_run_begins_anew_and_keeps_what_it_saves(tmp_path, caplog):
    for step in (900, 1000):
        save(tmp_path, step)
        damage(tmp_path, step)
    with caplog.at_level(logging.WARNING):
        assert checkpoint.load_newest(tmp_path) is None
    assert "Going back to the beginning" in caplog.text
    save(tmp_path, 50)
    assert checkpoint.load_newest(tmp_path).step == 50


def test_a_failure_at_any_operation_leaves_the_last_one_usable(tmp_path):
    operations = []
    with storage.observe(lambda operation, path: operations.append(operation)):
        save(tmp_path / "count", 1)
    for fail_at in range(len(operations) + 3):
        folder = tmp_path / str(fail_at)
        save(folder, 1)
        count = 0

        def fail(operation, path, fail_at=fail_at):
            nonlocal count
            count += 1
            if count == fail_at + 1:
                raise OSError(5, "Input/output error")

        try:
            with storage.observe(fail):
                save(folder, 2)
        except Exception:
            pass
        assert checkpoint.load_newest(folder).step in (1, 2)
