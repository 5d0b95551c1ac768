"""Figures of a reconstruction, from float64 sums over groups of rows.

Rows are put into groups that are never split (by class, role, and what else a subset asks for), and for each
group n, sum x, sum |x|^2, the squared error and the number of active latents are summed. A subset is a union
of groups, so classes recombine exactly to the whole, and no subset needs another pass:

    mse                 = squared error / (n d_in)
    explained_variance  = 1 - squared error / (sum |x|^2 - |sum x|^2 / n)      centred on the subset's own mean
    l0                  = active latents / n
    mse_paper           = mean over sequences of the mean over a sequence's rows of |x - x_hat|^2 / d_in
                          (FAST, arXiv 2506.07691, eq. 7)
"""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class InputSums:
    """Sums of the activations, by group: they are the same for every SAE."""

    n: Ints
    """[groups]"""
    sum_x: Floats
    """[groups, d_in]"""
    sum_x2: Floats
    """[groups]: sum of |x|^2"""

    @classmethod
    def empty(cls, num_groups: int, d_in: int) -> "InputSums":
        """Sums of nothing."""
        return cls(np.zeros(num_groups, np.int64), np.zeros((num_groups, d_in)), np.zeros(num_groups))

    def add(self, x: Floats, group: Ints) -> None:
        """Add rows ``[n, d_in]`` with their groups ``[n]``."""
        num_groups = len(self.n)
        member = np.zeros((num_groups, len(x)))
        member[group, np.arange(len(x))] = 1.0
        self.n[:] += np.bincount(group, minlength=num_groups)
        self.sum_x[:] += member @ x
        self.sum_x2[:] += np.bincount(group, np.einsum("ij,ij->i", x, x), num_groups)


@dataclass(frozen=True)
class ErrorSums:
    """Sums of one SAE's squared errors and active latents, by group."""

    squared_error: Floats
    active: Ints

    @classmethod
    def empty(cls, num_groups: int) -> "ErrorSums":
        """Sums of nothing."""
        return cls(np.zeros(num_groups), np.zeros(num_groups, np.int64))

    def add(self, squared_error: Floats, active: Ints, group: Ints) -> None:
        """Add rows: each one's |x - x_hat|^2, number of active latents, and group, all ``[n]``."""
        num_groups = len(self.active)
        self.squared_error[:] += np.bincount(group, squared_error, num_groups)
        self.active[:] += np.bincount(group, active.astype(np.float64), num_groups).astype(np.int64)


def subset_figures(inputs: InputSums, errors: ErrorSums, groups: Bools, mse_paper: float | None,
                   ) -> dict[str, float | int | None]:
    """The figures of the subset made up of ``groups`` (bool [num_groups]).

    A figure that is not defined (log2 of 0, variance of a single row) is None.
    """
    n = int(inputs.n[groups].sum())
    d_in = inputs.sum_x.shape[1]
    squared_error = float(errors.squared_error[groups].sum())
    sum_x = inputs.sum_x[groups].sum(axis=0)
    variance = float(inputs.sum_x2[groups].sum()) - float(sum_x @ sum_x) / n
    mse = squared_error / (n * d_in)
    return {
        "num_rows": n,
        "mse": mse,
        "mse_paper": mse_paper,
        "log2_mse": log2(mse),
        "log2_mse_paper": log2(mse_paper),
        # Under 1e-9 of the sum of squares the difference is rounding: all rows are one point.
        "explained_variance": 1 - squared_error / variance
        if n > 1 and variance > 1e-9 * float(inputs.sum_x2[groups].sum()) else None,
        "l0": int(errors.active[groups].sum()) / n,
    }


def mean_of_sequence_means(values: Floats, sequence: Ints) -> float:
    """Mean over sequences of the mean of their rows' values; both ``[n]``, n > 0."""
    _, number = np.unique(sequence, return_inverse=True)
    return float((np.bincount(number, values) / np.bincount(number)).mean())


def log2(value: float | None) -> float | None:
    """log2 of a positive value, else None."""
    return math.log2(value) if value is not None and value > 0 else None


HISTOGRAM_EDGES = [edge / 4 for edge in range(-24, 1)]
"""Edges of the histogram of log10 of the share of rows that a latent fires on: -6 to 0 by quarters."""


def density_histogram(fired: Ints, num_rows: int) -> dict[str, list[float] | list[int] | int]:
    """Histogram of log10(fired / num_rows) over latents ``[d_sae]``; those that never fired are counted apart."""
    density = np.log10(fired[fired > 0] / num_rows)
    counts, _ = np.histogram(np.clip(density, HISTOGRAM_EDGES[0], 0.0), HISTOGRAM_EDGES)
    return {"edges": HISTOGRAM_EDGES, "counts": counts.tolist(), "never_fired": int((fired == 0).sum())}
