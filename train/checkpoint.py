"""Checkpoints: all SAEs of a set at one step, in a folder of their own that appears whole or not at all.

    checkpoints/<set>/step-000001234/state.safetensors      every trainer's tensors, "<sae name>/<tensor>"
    checkpoints/<set>/step-000001234/checkpoint.json        step, digest of the state, length of each metrics file

Written under a temporary name, fsynced, renamed, the parent fsynced. The two newest are kept; a damaged newest
one is passed over for the one before, with a warning, and set aside: it must not count as one of the two.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

from torch import Tensor

from shared import storage
from shared.digests import file_digest
from shared.errors import CorruptError, IdentityError, StorageError
from shared.sealed_json import read_sealed, seal
from train.tensor_files import read_tensors, write_tensors

KEPT = 2
_FORMAT_VERSION = 1
_STATE = "state.safetensors"
_RECORD = "checkpoint.json"
_DAMAGED = "damaged-"
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint read back."""

    step: int
    """Steps done."""
    tensors: dict[str, Tensor]
    metrics_bytes: dict[str, int]
    """Length of each SAE's metrics.jsonl at that step."""


def save(folder: Path, step: int, tensors: Mapping[str, Tensor], metrics_bytes: Mapping[str, int]) -> Path:
    """Write the checkpoint of a step (number of steps done) and remove all but the two newest.

    Raises:
        TryAgainError: the disk is full. StorageError: another failure to write.
    """
    final = folder / f"step-{step:09d}"
    storage.make_folder(folder)
    temporary = folder / f"tmp-{uuid4().hex[:12]}"
    storage.make_folder(temporary)
    try:
        write_tensors(temporary / _STATE, tensors)
        record = {"format_version": _FORMAT_VERSION, "step": step, "state": file_digest(temporary / _STATE),
                  "metrics_bytes": dict(metrics_bytes)}
        storage.write_new_file(temporary / _RECORD, seal(record))
        storage.fsync_folder(temporary)
        storage.publish(temporary, final)
    except BaseException:
        storage.remove_tree(temporary)
        raise
    for old in [*_newest_first(folder)[KEPT:], *folder.glob(f"{_DAMAGED}*")]:
        storage.remove_tree(old)
    return final


def load_newest(folder: Path) -> Checkpoint | None:
    """The newest checkpoint that is whole, or None. Leftovers of a killed writer are removed, and damaged ones get
    another name.

    Raises:
        StorageError: the disk fails. What it cannot give now may be whole. IdentityError: another version wrote it.
    """
    for leftover in folder.glob("tmp-*"):
        storage.remove_tree(leftover)
    found = _newest_first(folder)
    for path in found:
        try:
            return _read(path)
        except CorruptError as error:
            aside = path.with_name(_DAMAGED + path.name)
            storage.remove_tree(aside)
            storage.publish(path, aside)
            _log.warning("Checkpoint %s cannot be used (%s) Going back to %s.", aside, error,
                         "the beginning" if path == found[-1] else "the one before")
    return None


def _read(path: Path) -> Checkpoint:
    for name in (_RECORD, _STATE):
        if not (path / name).exists():
            raise CorruptError(f"{path / name} is missing.")
    try:
        record, digest = read_sealed(path / _RECORD), file_digest(path / _STATE)
    except (OSError, StorageError) as error:
        raise StorageError(f"Cannot read the checkpoint {path}: {error} If the disk does not recover, remove that "
                           "folder: the same command goes on from the checkpoint before.") from error
    if record.get("format_version") != _FORMAT_VERSION:
        raise IdentityError(f"{path} is of another version of SAE Granary. Finish the run with that version, or start "
                            "over with --fresh.")
    if digest != record["state"]:
        raise CorruptError(f"{path / _STATE} is damaged: its bytes do not match the record.")
    return Checkpoint(record["step"], read_tensors(path / _STATE), record["metrics_bytes"])


def _newest_first(folder: Path) -> list[Path]:
    return sorted((path for path in folder.glob("step-*") if path.is_dir()), reverse=True)
