"""JSON files that carry an xxh3 of the rest of themselves, so that a damaged one is never believed.

Their size, the number of their values and their nesting are bounded: reading one takes at most about half a GiB,
whoever wrote it.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from shared import storage
from shared.bounded_json import parse_json
from shared.digests import canonical_json, hex_digest
from shared.errors import CorruptError, StorageError
from shared.plain_files import read_file

_SEAL = "xxh3"
_MAX_BYTES = 32 << 20
_BOUNDS = {"max_values": 2_000_000, "max_containers": 500_000, "max_nesting": 50}


def seal(content: Mapping[str, Any]) -> bytes:
    """The bytes of a sealed JSON file, indented for people.

    Raises:
        StorageError: it is larger than `read_sealed` would believe.
    """
    assert _SEAL not in content
    sealed = {**content, _SEAL: hex_digest(canonical_json(content))}
    data = (json.dumps(sealed, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n").encode()
    if len(data) > _MAX_BYTES or data.count(b",") > _BOUNDS["max_values"]:
        raise StorageError(f"What is to be written here, {len(data) >> 20} MiB, no reader of a cache accepts. In a "
                           "unit's record this is the list of its non-finite rows: the model's numbers overflow.")
    return data


def write_sealed(path: Path, content: Mapping[str, Any], temporary_folder: Path | None = None) -> None:
    """Write a sealed JSON file atomically (`storage.write_file`)."""
    storage.write_file(path, seal(content), temporary_folder)


def read_sealed(path: Path) -> dict[str, Any]:
    """Read a sealed JSON file and check its seal.

    Raises:
        StorageError: the file cannot be read.
        CorruptError: it is no JSON of ours, or not the JSON that was written; a link, a pipe or a device.
    """
    try:
        data = read_file(path, _MAX_BYTES)
    except OSError as error:
        raise StorageError(f"Cannot read {path}: {error.strerror}.") from error
    try:
        content = parse_json(data, **_BOUNDS)
        sealed = isinstance(content, dict) and content.pop(_SEAL, None) == hex_digest(canonical_json(content))
    except (ValueError, MemoryError) as error:  # no JSON, or JSON that has no bytes: NaN, a lone surrogate
        raise CorruptError(f"{path} is damaged: no JSON of ours ({error}).") from error
    if not sealed:
        raise CorruptError(f"{path} is damaged: its content does not match its own checksum.")
    return cast(dict[str, Any], content)
