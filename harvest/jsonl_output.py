"""A JSON-lines file that is there whole or not at all, compressed as its ending says."""

import contextlib
import gzip
import io
import json
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

from shared import storage

ENDINGS = (".jsonl", ".jsonl.gz", ".jsonl.zst")
"""What the name of a file of chats may end with, to be written and to be read again."""

_BUFFER = 1 << 20


class _Bytes(io.RawIOBase):
    """A new file as a stream."""

    def __init__(self, file: storage.NewFile) -> None:
        self._file = file
        self._written = 0

    def writable(self) -> bool:
        return True

    def write(self, data: object) -> int:
        piece = memoryview(cast(bytes, data))
        self._file.write(self._written, [piece])
        self._written += piece.nbytes
        return piece.nbytes


@contextlib.contextmanager
def write_jsonl(path: Path) -> Iterator[Callable[[object], None]]:
    """Give a function that writes a value as a line. The file gets its name when the block ends without an error.

    The same values give the same bytes. A file that is there is replaced.

    Raises:
        TryAgainError: no space left. StorageError: it cannot be written.
    """
    storage.make_folder(path.parent)
    temporary = path.parent / f".{path.name}.{uuid.uuid4().hex[:12]}.partial"
    try:
        with storage.NewFile(temporary, 0) as file:
            with io.BufferedWriter(_Bytes(file), _BUFFER) as stream, _compressed(path, stream) as lines:

                def write(value: object) -> None:
                    lines.write(json.dumps(value, ensure_ascii=False).encode() + b"\n")

                yield write
            file.fsync()
        storage.publish(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _compressed(path: Path, stream: Any) -> Any:
    """A context manager that gives a file to write to whose bytes go to ``stream``."""
    match path.suffix:
        case ".gz":
            return gzip.GzipFile("", "wb", compresslevel=6, fileobj=stream, mtime=0)
        case ".zst":
            from harvest.arrow_files import write_zstd

            return write_zstd(stream)
    return contextlib.nullcontext(stream)
