"""What one unit of work computes, from the plan alone: its sequences, sorted by length, in batches."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from shared.reading.cache import Cache


@dataclass(frozen=True)
class Piece:
    """A sequence that runs for a unit: rows ``start`` to ``stop``, of which those from ``keep`` on are kept.

    A sequence that crosses the unit's end is cut there, which causality makes exact; the next unit runs it
    whole and keeps its own rows.
    """

    start: int
    keep: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start


def unit_pieces(sequence_offset: npt.NDArray[np.int64], rows: range) -> list[Piece]:
    """The sequences that overlap a unit's rows, in order of rows."""
    first = int(np.searchsorted(sequence_offset, rows.start, side="right")) - 1
    last = int(np.searchsorted(sequence_offset, rows.stop, side="left"))
    return [
        Piece(
            start=int(sequence_offset[number]),
            keep=max(int(sequence_offset[number]), rows.start),
            stop=min(int(sequence_offset[number + 1]), rows.stop),
        )
        for number in range(first, last)
    ]


def make_batches(pieces: Sequence[Piece], batch_tokens: int) -> list[list[Piece]]:
    """Sort by length, longest first, and fill batches up to the budget in padded tokens.

    A piece longer than the budget is a batch of its own.
    """
    ordered = sorted(pieces, key=lambda piece: (-len(piece), piece.start))
    batches: list[list[Piece]] = []
    for piece in ordered:
        if batches and (len(batches[-1]) + 1) * len(batches[-1][0]) <= batch_tokens:
            batches[-1].append(piece)
        else:
            batches.append([piece])
    return batches


def fill(batches: Sequence[Sequence[Piece]]) -> float:
    """Share of computed token slots that are tokens, not padding."""
    slots = sum(len(batch) * len(batch[0]) for batch in batches)
    return sum(len(piece) for batch in batches for piece in batch) / slots if slots else 1.0


class UnitReader:
    """Reads a unit's work from a cache's plan; memory is that of one unit's token ids."""

    def __init__(self, cache: Cache, batch_tokens: int | None = None) -> None:
        """``batch_tokens``: padded tokens a batch, where it is not the plan's."""
        self._token_id = cache.array("tokens/token_id")
        self._sequence_offset = cache.sequence_offset
        self._cache = cache
        self._batch_tokens = batch_tokens or cache.plan.batch_tokens

    def batches(self, unit: int) -> list[list[Piece]]:
        """The batches of a unit: a pure function of plan and batch budget, so that equal bytes can be promised."""
        pieces = unit_pieces(self._sequence_offset, self._cache.unit_rows(unit))
        return make_batches(pieces, self._batch_tokens)

    def token_ids(self, batch: Sequence[Piece]) -> npt.NDArray[np.int64]:
        """Right-padded ids ``[sequences, longest]``. Padding comes after, where a causal model never looks."""
        ids = np.zeros((len(batch), len(batch[0])), np.int64)
        for line, piece in zip(ids, batch, strict=True):
            line[: len(piece)] = self._token_id.read(piece.start, piece.stop)
        return ids
