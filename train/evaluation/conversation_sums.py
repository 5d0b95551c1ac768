"""Sums over the rows of each conversation, by subset: what intervals and paired comparisons of SAEs are made of.

Rows come in the order of the cache, so that conversations and sequences are runs of rows. A cell is a run of one
conversation and one sequence: both at once where each conversation goes through the model on its own, pieces where
blocks cut conversations (design 4). Sums by conversation and by sequence both follow from those by cell.

The variance of a conversation is taken about the mean of the subset over all held-out rows. In a resample that mean
stays: explained variance is then by how much the SAE beats one fixed vector, and needs one number a conversation
where a mean of its own would need d_in.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from shared.reading.cache import Cache
from train.evaluation.bootstrap import interval, resampled_sums
from train.evaluation.metrics import OF_LATENTS, Bools, Floats, Ints, RowFigures

BY_CELL = ("squared_error", "x_hat2", "dot", "normalised_error", "cosine", "active")
"""Those of `ROW_FIGURES` that have intervals."""


@dataclass(frozen=True)
class Cells:
    """The runs of rows, and which conversation and sequence each belongs to."""

    of_row: Ints
    """[rows], ascending from 0"""
    conversation: Ints
    """[cells]: numbers from 0 of the conversations that have rows"""
    sequence: Ints
    """[cells]: likewise"""
    conversations: Ints
    """[conversations]: their numbers in the cache, ascending"""

    @classmethod
    def of(cls, cache: Cache, rows: Ints) -> "Cells":
        """The cells of ``rows``, ascending row numbers."""
        numbers = np.stack([cache.conversation(rows), cache.sequence(rows)])
        begins = np.flatnonzero(np.append(True, (np.diff(numbers) != 0).any(axis=0)))
        of_row = np.zeros(len(rows), np.int64)
        of_row[begins[1:]] = 1
        conversations, conversation = np.unique(numbers[0, begins], return_inverse=True)
        _, sequence = np.unique(numbers[1, begins], return_inverse=True)
        return cls(of_row.cumsum(), conversation.astype(np.int64), sequence.astype(np.int64), conversations)

    def __len__(self) -> int:
        return len(self.conversation)

    @cached_property
    def nested(self) -> bool:
        """Whether every sequence lies in one conversation, so that resampling these resamples whole sequences."""
        return len(self) == int(self.sequence.max()) + 1

    def by_conversation(self, values: Floats) -> Floats:
        """Sums ``[conversations, ...]`` of values ``[cells, ...]``."""
        return _runs(values, self.conversation)

    def add(self, sums: Floats, values: Floats, member: Bools, here: slice) -> None:
        """Add to ``sums`` [cells, subsets] the values ``[n]``, or ``[n, subsets]``, of the rows ``here``.

        Args:
            member: bool [n, subsets], which subsets each row is in.
        """
        cell = self.of_row[here]
        values = values if values.ndim == 2 else values[:, None]
        sums[cell[0] : cell[-1] + 1] += _runs(np.where(member, values, 0.0), cell - cell[0])


def _runs(values: Floats, number: Ints) -> Floats:
    """Sums over runs of equal ``number`` [n], which ascends from 0 without a gap, of values ``[n, ...]``."""
    sums: Floats = np.add.reduceat(values, np.flatnonzero(np.append(True, np.diff(number))), axis=0)
    return sums


class CellSums:
    """Sums by cell and subset of the activations (`n`, `variance`), or of one SAE: each ``[cells, subsets]``."""

    def __init__(self, cells: Cells, num_subsets: int, names: Sequence[str]) -> None:
        self.cells = cells
        self.sums = {name: np.zeros((len(cells), num_subsets)) for name in names}

    def add(self, rows: RowFigures, member: Bools, here: slice) -> None:
        """Add the rows ``here``; see `Cells.add`."""
        for name, total in self.sums.items():
            self.cells.add(total, rows[name], member, here)

    def by_conversation(self) -> dict[str, Floats]:
        """Each of the sums ``[conversations, subsets]``."""
        return {name: self.cells.by_conversation(total) for name, total in self.sums.items()}


def sequence_means(inputs: CellSums, errors: CellSums, d_in: int) -> tuple[Floats, Floats]:
    """For FAST's eq. 7: the mean of |x - x_hat|^2 / d_in over each sequence's rows of a subset, and whether it has any.

    Both ``[sequences, subsets]``, the second as 0 and 1.
    """
    n, error = (_runs(values, inputs.cells.sequence) for values in (inputs.sums["n"], errors.sums["squared_error"]))
    return error / np.maximum(n, 1) / d_in, (n > 0).astype(np.float64)


def conversation_table(inputs: CellSums, errors: CellSums, d_in: int) -> dict[str, Floats]:
    """All sums by conversation, ``[conversations, subsets]``: what a resample needs.

    ``sequence_means`` and ``sequences`` are there where every sequence lies in one conversation.
    """
    table = inputs.by_conversation() | errors.by_conversation()
    if inputs.cells.nested:
        means, there = sequence_means(inputs, errors, d_in)
        table |= {"sequence_means": inputs.cells.by_conversation(means),
                  "sequences": inputs.cells.by_conversation(there)}
    return table


def figures_of_sums(sums: dict[str, Floats], d_in: int) -> dict[str, Floats]:
    """The figures that sums of a `conversation_table` give, of any shape; NaN where one is not defined.

    Shrinkage and `mse_paper` are there where their sums are: a file of sums by conversation lacks the first's.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        figures = {
            "mse": sums["squared_error"] / (sums["n"] * d_in),
            "explained_variance": 1 - sums["squared_error"] / sums["variance"],
            "normalised_error": sums["normalised_error"] / sums["n"],
            "cosine": sums["cosine"] / sums["n"],
            **({"shrinkage": sums["x_hat2"] / sums["dot"]} if "dot" in sums else {}),
            "l0": sums["active"] / sums["n"],
        }
        if "sequences" in sums:
            figures["mse_paper"] = sums["sequence_means"] / sums["sequences"]
    return figures


def intervals(table: dict[str, Floats], d_in: int, has_latents: bool) -> list[dict[str, list[float]]]:
    """95 % intervals of every figure that has one, subset by subset; none where there is but one conversation."""
    num_conversations, num_subsets = table["n"].shape
    if num_conversations < 2:
        return [{} for _ in range(num_subsets)]
    figures = figures_of_sums(resampled_sums(table), d_in)
    found: list[dict[str, list[float]]] = []
    for subset in range(num_subsets):
        ends = {name: interval(samples[:, subset]) for name, samples in figures.items()
                if has_latents or name not in OF_LATENTS}
        found.append({name: pair for name, pair in ends.items() if pair is not None})
    return found
