"""Files of tensors: what a disk does to them is told as it is everywhere else."""

import errno
import os

import pytest
import torch
from safetensors import SafetensorError

from shared.errors import CorruptError, StorageError, TryAgainError
from train import tensor_files
from train.tensor_files import read_tensors, write_tensors

TENSORS = {"a": torch.arange(6.0).reshape(2, 3).t(), "b": torch.zeros(0)}


def test_tensors_come_back_as_they_were(tmp_path):
    write_tensors(tmp_path / "x", TENSORS)
    found = read_tensors(tmp_path / "x")
    assert found.keys() == TENSORS.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in TENSORS.items())


@pytest.mark.parametrize(("number", "kind", "says"), [
    (errno.ENOSPC, TryAgainError, "No space left for"),
    (errno.EDQUOT, TryAgainError, "No space left for"),
    (errno.EIO, StorageError, "Cannot write"),
    (errno.EROFS, StorageError, "Cannot write"),
])
def test_a_full_disk_is_try_again_and_any_other_failure_is_of_the_disk(tmp_path, monkeypatch, number, kind, says):
    def fail(*_):
        raise SafetensorError(f"Error while serializing: I/O error: {os.strerror(number)} (os error {number})")

    monkeypatch.setattr(tensor_files, "save_file", fail)
    with pytest.raises(kind, match=says):
        write_tensors(tmp_path / "x", TENSORS)


def test_the_library_says_what_it_is_understood_to_say(tmp_path):
    """Of an error of the system it gives the number, in these words."""
    with pytest.raises(StorageError, match=rf"\(os error {errno.ENOENT}\)"):
        write_tensors(tmp_path / "nosuch" / "x", TENSORS)


def test_a_file_that_is_cut_short_or_gone_is_told(tmp_path):
    write_tensors(tmp_path / "x", TENSORS)
    (tmp_path / "x").write_bytes((tmp_path / "x").read_bytes()[:-1])
    with pytest.raises(CorruptError, match="no whole safetensors file"):
        read_tensors(tmp_path / "x")
    with pytest.raises(StorageError, match="Cannot read"):
        read_tensors(tmp_path / "y")
