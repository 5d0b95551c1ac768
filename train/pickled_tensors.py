"""Files of tensors as ``torch.save`` writes them, which dictionary_learning's ``ae.pt`` is: the one door to them.

Such a file is a pickle. It is read with torch's restricted unpickler alone (``weights_only=True``), which makes tensors
and plain containers and runs nothing else that a file names.
"""

import errno
import io
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from shared import storage
from shared.errors import CorruptError, StorageError

_AGAIN = "Save or download the SAE again, and name its folder: --sae FOLDER."


def write_pickled(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write a state dict for ``torch.load``, atomically. It is put together in memory, where it takes its own size.

    Raises:
        TryAgainError: the disk is full. StorageError: it cannot be written.
    """
    buffer = io.BytesIO()
    # A copy each: a tensor that shares its memory with a larger one would bring all of it along.
    torch.save({name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}, buffer)
    storage.write_file(path, buffer.getbuffer())


def read_pickled(path: Path, device: str | torch.device = "cpu") -> dict[str, Tensor]:
    """Read a state dict that ``torch.save`` wrote.

    Raises:
        StorageError: it cannot be read. CorruptError: it is no dictionary of tensors by name, or of more than it holds.
    """
    try:
        found = torch.load(path, map_location=device, weights_only=True)
    except Exception as error:  # what a foreign file can set off in the unpickler is not listed anywhere
        if isinstance(error, OSError) and error.errno != errno.EINVAL:  # which torch has for a file cut short
            raise StorageError(f"Cannot read {path}: {error.strerror or error}.") from error
        reason = str(error).strip().partition("\n")[0]
        raise CorruptError(f"{path} is no file of tensors that can be read without running code of it "
                           f"({type(error).__name__}: {reason[:200]}). {_AGAIN}") from error
    if not isinstance(found, dict) or not all(isinstance(name, str) and _is_whole(value)
                                              for name, value in found.items()):
        raise CorruptError(f"{path} is no dictionary of plain tensors by name: it is no state dict of an SAE. {_AGAIN}")
    return {name: tensor.detach() for name, tensor in found.items()}


def _is_whole(value: object) -> bool:
    """Whether it is a dense tensor of no more elements than are stored: a stride of 0 would make one of any size."""
    return (isinstance(value, Tensor) and value.layout == torch.strided
            and value.numel() * value.element_size() <= value.untyped_storage().nbytes())
