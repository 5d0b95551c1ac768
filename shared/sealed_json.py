"""JSON files that carry an xxh3 of the rest of themselves, so that a damaged one is never believed."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from shared import storage
from shared.digests import canonical_json, hex_digest
from shared.errors import CorruptError, StorageError

_SEAL = "xxh3"
_MAX_BYTES = 64 << 20


def seal(content: Mapping[str, Any]) -> bytes:
    """The bytes of a sealed JSON file, indented for people."""
    assert _SEAL not in content
    sealed = {**content, _SEAL: hex_digest(canonical_json(content))}
    return (json.dumps(sealed, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n").encode()


def write_sealed(path: Path, content: Mapping[str, Any], temporary_folder: Path | None = None) -> None:
    """Write a sealed JSON file atomically (`storage.write_file`)."""
    storage.write_file(path, seal(content), temporary_folder)


def read_sealed(path: Path) -> dict[str, Any]:
    """Read a sealed JSON file and check its seal.

    Raises:
        StorageError: the file cannot be read.
        CorruptError: it is no JSON of ours, or not the JSON that was written.
    """
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise CorruptError(f"{path} is larger than {_MAX_BYTES >> 20} MiB: not a file of ours.")
        data = path.read_bytes()
    except OSError as error:
        raise StorageError(f"Cannot read {path}: {error.strerror}.") from error
    try:
        content = json.loads(data)
        sealed = isinstance(content, dict) and content.pop(_SEAL, None) == hex_digest(canonical_json(content))
    except (ValueError, RecursionError) as error:  # no JSON, or JSON that has no bytes: NaN, a lone surrogate
        raise CorruptError(f"{path} is damaged: no JSON ({error}).") from error
    if not sealed:
        raise CorruptError(f"{path} is damaged: its content does not match its own checksum.")
    return cast(dict[str, Any], content)
