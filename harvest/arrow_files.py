"""The door to ``pyarrow`` (which comes with datasets): Parquet and Arrow files row by row, and zstd."""

import contextlib
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet

from harvest.conversation import Skipped
from harvest.data_files import Row, damaged
from harvest.layouts import COLUMNS, LAYOUTS
from shared.errors import DataError

_BATCH_ROWS = 256
_BUFFER = 1 << 20


def read_parquet(path: Path) -> Iterator[Row]:
    """The rows of a Parquet file, only the columns that a conversation may be made of.

    Raises:
        DataError: the file is damaged, or has none of these columns.
    """
    # pre_buffer would take in whole row groups: 81 MB instead of 28 where a file of 56 MB is one.
    with _arrow_errors(path), pyarrow.parquet.ParquetFile(path, buffer_size=_BUFFER, pre_buffer=False) as file:
        columns = _columns(path, file.schema_arrow)
        batches = file.iter_batches(batch_size=_BATCH_ROWS, columns=columns, use_threads=False)
        yield from _rows(path, batches)


def read_arrow(path: Path) -> Iterator[Row]:
    """The rows of an Arrow file or stream (what ``datasets`` saves), as `read_parquet`; a batch of it in memory."""
    with _arrow_errors(path), pa.OSFile(str(path)) as source:
        is_file = source.read(6) == b"ARROW1"
        source.seek(0)
        opened = pa.ipc.open_file(source) if is_file else pa.ipc.open_stream(source)
        columns = _columns(path, opened.schema)
        yield from _rows(path, (batch.select(columns) for batch in _batches(opened, is_file)))


def open_zstd(path: Path) -> io.BufferedReader:
    """A zstd file of any number of frames, as plain bytes."""
    return io.BufferedReader(pa.CompressedInputStream(pa.OSFile(str(path)), "zstd"), _BUFFER)


def write_zstd(stream: Any) -> Any:
    """A file to write to whose bytes go to a binary stream as one zstd frame, ended when it is closed."""
    return pa.CompressedOutputStream(stream, "zstd")


def _batches(reader: Any, is_file: bool) -> Iterator[Any]:
    if is_file:
        yield from map(reader.get_batch, range(reader.num_record_batches))
    else:
        yield from reader


def _columns(path: Path, schema: Any) -> list[str]:
    found = [name for name in schema.names if name in COLUMNS]
    known = dict.fromkeys(layout.columns for layout in LAYOUTS.values())
    if not any({*columns} <= {*found} for columns in known):
        expected = ", ".join(" and ".join(columns) for columns in known)
        raise DataError(f"Data file {str(path)!r} has the columns {', '.join(schema.names)[:200]}. Expected one of: "
                        f"{expected}. Rename its column.")
    return list(dict.fromkeys(found))


def _rows(path: Path, batches: Iterator[Any]) -> Iterator[Row]:
    number = 0
    for batch in batches:
        for start in range(0, len(batch), _BATCH_ROWS):
            for row in _values(batch.slice(start, _BATCH_ROWS)):
                number += 1
                place = f"{path.name}:{number}"
                yield place, Skipped(place, "bad_unicode", str(row)) if isinstance(row, UnicodeDecodeError) else row


def _values(batch: Any) -> Iterator[Any]:
    """The rows of a batch; where its text is no UTF-8, an error in place of just those rows."""
    try:
        yield from batch.to_pylist()
    except UnicodeDecodeError:
        for number in range(len(batch)):
            try:
                yield batch.slice(number, 1).to_pylist()[0]
            except UnicodeDecodeError as error:
                yield error


@contextlib.contextmanager
def _arrow_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except pa.ArrowException as error:
        raise damaged(path, error) from None
