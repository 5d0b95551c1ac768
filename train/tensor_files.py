"""safetensors files of the train stage: the one door to the package. Pickles are for `train.pickled_tensors`."""

import errno
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from shared import storage
from shared.errors import CorruptError, StorageError, TryAgainError


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write a new safetensors file and fsync it. Tensors are copied to the host and made contiguous.

    Raises:
        TryAgainError: the disk is full. StorageError: it cannot be written.
    """
    ready = {name: tensor.detach().to("cpu").contiguous() for name, tensor in tensors.items()}
    try:
        save_file(ready, path, metadata)
    except SafetensorError as error:
        if any(f"(os error {number})" in str(error) for number in (errno.ENOSPC, errno.EDQUOT)):
            raise TryAgainError(f"No space left for {path}. Free some space and run the same command again: it goes on "
                                "from its last checkpoint.") from error
        raise StorageError(f"Cannot write {path}: {error}.") from error
    storage.fsync_file(path)


def read_tensors(path: Path, device: str | torch.device = "cpu") -> dict[str, Tensor]:
    """Read a safetensors file.

    Raises:
        StorageError: it cannot be read. CorruptError: it is no safetensors file.
    """
    try:
        return load_file(path, device=str(device))
    except OSError as error:
        raise StorageError(f"Cannot read {path}: {error.strerror or error}.") from error
    except SafetensorError as error:
        raise CorruptError(f"{path} is damaged: it is no whole safetensors file ({error}).") from error


def read_metadata(path: Path) -> dict[str, str]:
    """The texts that stand in the header of a safetensors file.

    Raises:
        StorageError: it cannot be read. CorruptError: it is no safetensors file.
    """
    try:
        with safe_open(path, framework="np") as file:
            return dict(file.metadata() or {})
    except OSError as error:
        raise StorageError(f"Cannot read {path}: {error.strerror or error}.") from error
    except SafetensorError as error:
        raise CorruptError(f"{path} is damaged: it is no whole safetensors file ({error}).") from error
