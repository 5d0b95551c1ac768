"""Local data files: a file, a folder or a pattern of them, read row by row in memory of one row (or one batch).

JSON lines and text may be compressed. A text file is one row with its ``text``.
"""

import bz2
import contextlib
import glob
import gzip
import io
import json
import lzma
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from harvest.conversation import Skipped
from shared.digests import canonical_json, file_digest, hex_digest
from shared.errors import DataError, RecipeError, StorageError

Row = tuple[str, Any]
"""Where a row was read ("my.jsonl:17"), and the row, or `Skipped` where it cannot be read."""

KINDS = {".jsonl": "json", ".json": "json", ".parquet": "parquet", ".arrow": "arrow", ".txt": "text"}
COMPRESSED = (".gz", ".bz2", ".xz", ".zst")

EXPECTED = ("JSONL (.jsonl, .json) or text (.txt), also compressed (.gz, .bz2, .xz, .zst), Parquet (.parquet) or "
            "Arrow (.arrow)")

LONGEST_ROW = 64 << 20
"""Bytes of a line of JSON or of a text file at most: memory is one row."""

_FAMILIES = ({".jsonl", ".parquet", ".arrow"}, {".json"}, {".txt"})
"""Which files of a folder are its data: the first family that it has, since descriptions lie beside the data."""


def kind_of(path: Path) -> str | None:
    """What a file holds by its ending: "json", "parquet", "arrow", "text", or None."""
    kind = KINDS.get(_ending(path))
    return None if kind in {"parquet", "arrow"} and path.suffix in COMPRESSED else kind


def find_files(name: str) -> tuple[Path, ...] | None:
    """The files of a path or pattern in sorted order; None where there is nothing of this name.

    Raises:
        RecipeError: what is there is no data.
    """
    path = Path(name)
    if name and path.is_dir():
        return _folder(path)
    if path.is_file():
        files = [path]
    elif set(name) & set("*?["):
        found = glob.glob(name, recursive=True)  # noqa: PTH207  (pathlib's takes no absolute pattern)
        files = sorted(file for file in map(Path, found) if file.is_file())
        if not files and "*" not in name:
            return None  # "org/na?me" is a mistyped hub id
        if not files:
            raise RecipeError(f"No file fits {name!r}. Expected a pattern like 'chats/*.jsonl.gz' ('**' for folders "
                              f"in folders) of files of {EXPECTED}.")
    else:
        return None
    for file in files:
        if kind_of(file) is None:
            raise RecipeError(f"Data file {str(file)!r}: expected {EXPECTED}.")
    return tuple(files)


def _folder(folder: Path) -> tuple[Path, ...]:
    there = sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith((".", "_")))
    for family in _FAMILIES:
        if files := [path for path in there if _ending(path) in family and kind_of(path)]:
            return tuple(files)
    raise RecipeError(f"The folder {str(folder)!r} has no data files. Expected files of {EXPECTED}; for those in "
                      f"folders below it: --dataset '{folder}/**/*.parquet'")


def files_digest(files: Sequence[Path]) -> str:
    """xxh3-128 of the files' bytes, in order: of one file its own, of several that of the list of theirs."""
    with _reading(files[0]):
        digests = [file_digest(path) for path in files]
    return digests[0] if len(digests) == 1 else hex_digest(canonical_json(digests))


def read_file(path: Path) -> Iterator[Row]:
    """The rows of a file.

    Raises:
        DataError: the file is damaged, or not what its ending says. StorageError: it cannot be read.
    """
    kind = kind_of(path)
    with _reading(path):
        if kind in {"parquet", "arrow"}:
            from harvest.arrow_files import read_arrow, read_parquet

            yield from (read_parquet if kind == "parquet" else read_arrow)(path)
        else:
            with _open(path) as file:
                yield from _read_json(file, path.name) if kind == "json" else _read_text(file, path.name)


def damaged(path: Path, error: Exception) -> DataError:
    """The error for a file whose content cannot be decoded."""
    reason = " ".join(str(error).split())[:200].rstrip(".") or type(error).__name__
    return DataError(f"Data file {str(path)!r} cannot be read: {reason}. It was cut short or damaged, or is not what "
                     "its ending says. Copy or download it again.")


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except (EOFError, zlib.error, lzma.LZMAError) as error:
        raise damaged(path, error) from None
    except OSError as error:
        if error.errno is None:  # said by a decompressor, not by the system
            raise damaged(path, error) from None
        raise StorageError(f"Cannot read data file {str(error.filename or path)!r}: {error.strerror}.") from error


def _open(path: Path) -> io.BufferedIOBase:
    match path.suffix:
        case ".gz":
            return gzip.open(path, "rb")
        case ".bz2":
            return bz2.open(path, "rb")
        case ".xz":
            return lzma.open(path, "rb")
        case ".zst":
            from harvest.arrow_files import open_zstd

            return open_zstd(path)
    return path.open("rb")


def _read_json(file: io.BufferedIOBase, name: str) -> Iterator[Row]:
    number = 0
    while line := file.readline(LONGEST_ROW):
        number += 1
        place = f"{name}:{number}"
        if len(line) == LONGEST_ROW and not line.endswith(b"\n"):
            while (rest := file.readline(LONGEST_ROW)) and not rest.endswith(b"\n"):
                pass
            yield place, Skipped(place, "too_long", f"a line of more than {LONGEST_ROW:,} bytes")
            continue
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            row = Skipped(place, "not_json", str(error)[:200])
        yield place, row


def _read_text(file: io.BufferedIOBase, name: str) -> Iterator[Row]:
    data = file.read(LONGEST_ROW + 1)
    if len(data) > LONGEST_ROW:
        yield name, Skipped(name, "too_long", f"a text of more than {LONGEST_ROW:,} bytes")
        return
    try:
        yield name, {"text": data.decode("utf-8-sig")}
    except UnicodeDecodeError as error:
        yield name, Skipped(name, "bad_unicode", str(error))


def _ending(path: Path) -> str:
    return Path(path.stem).suffix if path.suffix in COMPRESSED else path.suffix
