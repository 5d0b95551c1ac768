"""Writing a unit behind the model's back: one thread writes rows, another finishes and commits units."""

import queue
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch

from harvest.forward import Captured
from shared import storage
from shared.digests import canonical_json
from shared.errors import DataError
from shared.format.commits import Record, commit
from shared.format.layout import PROVENANCE, Geometry
from shared.provenance import versions
from shared.reading.cache import open_cache
from shared.writing.claims import Work
from shared.writing.shards import UnitFiles

_BATCHES_WAITING = 3

NONFINITE_SHARE = 0.01
NONFINITE_ROWS = 100
"""A unit with a larger share of rows with a NaN or an infinity at a layer, and more than so many, is an error: a model
that computes nothing but NaN would fill a disk with them, and records with their numbers."""


class UnitWriter:
    """Takes batches of rows, writes them to the unit's files, and commits units that are full.

    Rows are written while the next batch is computed; checksums, digests and fsync of a full unit run while
    the next unit is computed. An error in a thread is raised at the next call.
    """

    def __init__(
        self, cache: Path, geometry: Geometry, cache_id: str, pass_id: str, layers: list[int], writer: str,
        nonfinite: str,
    ) -> None:
        self._cache = cache
        self._geometry = geometry
        self._cache_id = cache_id
        self._pass_id = pass_id
        self._layers = layers
        self._writer = writer
        self._nonfinite_policy = nonfinite
        self._files: UnitFiles | None = None
        self._queue: queue.Queue[Captured | None] = queue.Queue(_BATCHES_WAITING)
        self._error: BaseException | None = None
        self._finisher = ThreadPoolExecutor(1, thread_name_prefix="commit")
        self._finishing: Future[None] | None = None
        self._thread: threading.Thread | None = None

    def begin(self, work: Work) -> None:
        """Create a unit's files, at their full size."""
        self._files = UnitFiles(self._cache, self._geometry, work.unit, self._layers, self._writer)
        self._generation = work.generation
        self._nonfinite: dict[int, list[int]] = {}
        self._started = time.monotonic()
        self._thread = threading.Thread(target=self._write_batches, args=(self._files,), daemon=True)
        self._thread.start()

    def put(self, captured: Captured) -> None:
        """Hand over a batch; waits while three are waiting already."""
        self._queue.put(captured)
        self._raise()

    def end(self, made_with: dict[str, Any]) -> None:
        """All batches of the unit were handed over: finish and commit it in the background."""
        self._join_writer()
        self.wait()
        assert self._files is not None
        seconds = time.monotonic() - self._started
        self._finishing = self._finisher.submit(
            self._finish, self._files, self._generation, self._nonfinite, made_with, seconds
        )
        self._files = None

    def wait(self) -> None:
        """Wait for the unit that is being committed, if any."""
        if self._finishing is not None:
            self._finishing.result()
            self._finishing = None

    def close(self) -> None:
        """Wait for the last commit."""
        self.wait()
        self._finisher.shutdown()

    def abandon(self) -> None:
        """Drop the open unit and wait for one that is being committed; never raises what threads met."""
        try:
            self._join_writer()
        except BaseException:  # the first error is what the caller is already handling
            self._error = None
        try:
            if self._files is not None:
                self._files.discard()
                self._files = None
        finally:
            self._finisher.shutdown(wait=True)

    def _write_batches(self, files: UnitFiles) -> None:
        while (captured := self._queue.get()) is not None:
            if self._error is not None:
                continue  # drain, so that the model's thread does not wait for ever
            try:
                captured.wait()
                self._write(files, captured)
            except BaseException as error:
                self._error = error

    def _write(self, files: UnitFiles, captured: Captured) -> None:
        for layer in self._layers:
            rows = captured.rows[layer].view(torch.uint16).numpy()
            norms = captured.norms[layer].numpy()
            nonfinite = captured.nonfinite[layer].numpy()
            done = 0
            for piece in captured.pieces:
                count = piece.stop - piece.keep
                files.write(layer, piece.keep, rows[done : done + count], norms[done : done + count])
                for bad in np.flatnonzero(nonfinite[done : done + count]):
                    self._note_nonfinite(files, layer, piece.keep + int(bad))
                done += count

    def _note_nonfinite(self, files: UnitFiles, layer: int, row: int) -> None:
        """List a row that holds a NaN or an infinity, or stop.

        Raises:
            DataError: the policy wants none, or there are so many that the model itself must be at fault.
        """
        rows = self._nonfinite.setdefault(layer, [])
        rows.append(row)
        if self._nonfinite_policy == "error":
            cache, here = open_cache(self._cache), np.array([row])
            raise DataError(
                f"Row {row} of layer {layer} (conversation {cache.conversation(here)[0]}, position "
                f"{cache.position(here)[0]}, in unit {files.unit}) holds a NaN or an infinity. "
                "To keep such rows in place, listed and skipped by readers: --set harvest.nonfinite=keep"
            )
        if len(rows) > max(NONFINITE_ROWS, int(NONFINITE_SHARE * len(files.rows))):
            raise DataError(
                f"More than {NONFINITE_SHARE:.0%} of the {len(files.rows):,} rows of unit {files.unit} hold a NaN or "
                f"an infinity at layer {layer}, the first at row {min(rows)}: the model does not run right this way. "
                "Try another number format or attention in a new cache: --set harvest.compute_dtype=float32, "
                "--set harvest.attention=eager"
            )

    def _finish(
        self, files: UnitFiles, generation: int, nonfinite: dict[int, list[int]], made_with: dict[str, Any],
        seconds: float,
    ) -> None:
        entries, blocks = files.finish(self._pass_id, generation)
        record = Record(
            cache_id=self._cache_id,
            pass_id=self._pass_id,
            unit=files.unit,
            generation=generation,
            writer=self._writer,
            rows=(files.rows.start, files.rows.stop),
            files=entries,
            blocks=blocks,
            nonfinite={layer: sorted(rows) for layer, rows in sorted(nonfinite.items())},
            made_with=made_with,
        )
        won = commit(self._cache, record)
        files.discard()
        entry = {
            "unit": files.unit,
            "generation": generation,
            "pass": self._pass_id,
            "writer": self._writer,
            "won": won,
            "seconds": round(seconds, 3),
            "finished": datetime.now(UTC).isoformat(timespec="seconds"),
            "made_with": made_with,
            "versions": versions(),
        }
        storage.append_line(self._cache / PROVENANCE, canonical_json(entry).decode())

    def _join_writer(self) -> None:
        if self._thread is not None:
            self._queue.put(None)
            self._thread.join()
            self._thread = None
        self._raise()

    def _raise(self) -> None:
        if self._error is not None:
            raise self._error
