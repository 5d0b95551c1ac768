"""metrics.jsonl: one line of figures every few steps, cut back to the checkpoint when a run resumes."""

import json
import logging
import os
from pathlib import Path

from shared import storage
from shared.storage import translate_errors

METRICS = "metrics.jsonl"
_log = logging.getLogger(__name__)


class MetricsLog:
    """The metrics file of one SAE."""

    def __init__(self, folder: Path, keep_bytes: int) -> None:
        """Open for appending after the first ``keep_bytes`` bytes; what was written later is dropped."""
        storage.make_folder(folder)
        self.path = folder / METRICS
        with translate_errors(self.path):
            self._file = self.path.open("ab")
            there = self.path.stat().st_size
            if there < keep_bytes:
                _log.warning("%s lost lines from before the checkpoint: it has %d of %d bytes. The weights do not "
                             "depend on it.", self.path, there, keep_bytes)
                keep_bytes = self.path.read_bytes().rfind(b"\n") + 1  # what is left of a line is none
            self._file.truncate(keep_bytes)
            self._file.seek(0, os.SEEK_END)
        storage.fsync_folder(folder)  # a checkpoint counts on the file

    def write(self, figures: dict[str, float]) -> dict[str, float | None]:
        """Append one line, and give the figures as they stand in it: six digits, None for what JSON cannot hold."""
        line = {key: _short(value) for key, value in figures.items()}
        with translate_errors(self.path):
            self._file.write(json.dumps(line).encode() + b"\n")
            self._file.flush()
        return line

    def durable_size(self) -> int:
        """Bytes of the file, once they are safe on disk."""
        with translate_errors(self.path):
            self._file.flush()
            storage.fsync_file(self.path)
            return self._file.tell()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _short(value: float) -> float | None:
    """Six significant digits; JSON has no NaN."""
    if value != value or value in (float("inf"), float("-inf")):
        return None
    return float(f"{value:.6g}") if isinstance(value, float) else value
