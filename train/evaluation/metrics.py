"""Figures of a reconstruction, from float64 sums over groups of rows. docs/metrics.md has every formula and source.

Rows are put into groups that are never split (by class, role, and what else a subset asks for), and for each group
n, sum x, sum |x|^2 and the sums of what is measured on each row (`ROW_FIGURES`) are kept. A subset is a union of
groups, so classes recombine exactly to the whole, and no subset needs another pass:

    mse                 = squared error / (n d_in)
    explained_variance  = 1 - squared error / (sum |x|^2 - |sum x|^2 / n)      centred on the subset's own mean
    shrinkage           = sum |x_hat|^2 / sum <x, x_hat>      (Rajamanoharan et al. 2024, arXiv 2404.16014, eq. 10)
    mse_paper           = mean over sequences of the mean over a sequence's rows of |x - x_hat|^2 / d_in
                          (FAST, arXiv 2506.07691, eq. 7)

and the mean over rows of normalised_error, cosine, norm_ratio, l0 and l1.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

ROW_FIGURES = ("squared_error", "x_hat2", "dot", "normalised_error", "cosine", "norm_ratio", "active", "l1")
"""What is measured on a row: |x - x_hat|^2, |x_hat|^2, <x, x_hat>, |x - x_hat|^2 / |x|^2, the cosine of x and x_hat,
|x_hat| / |x|, the number of latents that are not 0, and the sum of their absolute values."""

OF_LATENTS = ("l0", "l1")
"""Figures that a reconstruction without latents does not have."""

RowFigures = Mapping[str, Floats]
"""Each of `ROW_FIGURES` for some rows, ``[n]``."""

CONSTANT = 1e-9
"""A variance below this share of the mean square is rounding: all rows are one point, and none of it is explained."""


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
        order = np.argsort(group, kind="stable")
        present, first = np.unique(group[order], return_index=True)
        self.n[:] += np.bincount(group, minlength=num_groups)
        self.sum_x[present] += np.add.reduceat(x[order], first, axis=0)
        self.sum_x2[:] += np.bincount(group, np.einsum("ij,ij->i", x, x), num_groups)

    def mean(self, groups: Bools) -> Floats:
        """Mean activation ``[d_in]`` of the rows of ``groups`` (bool [num_groups])."""
        mean: Floats = self.sum_x[groups].sum(axis=0) / self.n[groups].sum()
        return mean

    def variance(self, groups: Bools) -> float | None:
        """Sum over the rows of ``groups`` of |x - mean|^2, or None where they are one point (`CONSTANT`)."""
        n, sum_x2 = int(self.n[groups].sum()), float(self.sum_x2[groups].sum())
        sum_x = self.sum_x[groups].sum(axis=0)
        variance = sum_x2 - float(sum_x @ sum_x) / n
        return variance if n > 1 and variance > CONSTANT * sum_x2 else None


@torch.no_grad()
def row_figures(x: Tensor, x_hat: Tensor, latents: Tensor | None) -> dict[str, Floats]:
    """`ROW_FIGURES` of rows ``[n, d_in]``, their reconstructions and latents ``[n, d_sae]``, in float64.

    A row of zeros, which no model gives, counts with a normalised error of 1, a cosine and a ratio of 0. Without
    latents ``active`` and ``l1`` are 0.
    """
    x, x_hat = x.double(), x_hat.double()
    error, dot = (x - x_hat).square().sum(1), (x * x_hat).sum(1)
    x2, x_hat2 = x.square().sum(1), x_hat.square().sum(1)
    there = x2 > 0
    product = (x2 * x_hat2).sqrt()
    nothing = torch.zeros_like(error)
    figures = {
        "squared_error": error,
        "x_hat2": x_hat2,
        "dot": dot,
        "normalised_error": torch.where(there, error / x2, 1.0),
        "cosine": torch.where(product > 0, dot / product, 0.0),
        "norm_ratio": torch.where(there, (x_hat2 / x2).sqrt(), 0.0),
        "active": nothing if latents is None else torch.count_nonzero(latents, dim=1).double(),
        "l1": nothing if latents is None else torch.linalg.vector_norm(latents, 1, dim=1, dtype=torch.float64),
    }
    return {name: values.cpu().numpy() for name, values in figures.items()}


@dataclass(frozen=True)
class ErrorSums:
    """Sums of `ROW_FIGURES` of one SAE, by group: each ``[groups]``."""

    sums: dict[str, Floats]

    @classmethod
    def empty(cls, num_groups: int) -> "ErrorSums":
        """Sums of nothing."""
        return cls({name: np.zeros(num_groups) for name in ROW_FIGURES})

    def add(self, rows: RowFigures, group: Ints) -> None:
        """Add rows with their groups ``[n]``."""
        for name, total in self.sums.items():
            total += np.bincount(group, rows[name], len(total))

    def of(self, groups: Bools) -> dict[str, float]:
        """The sums over the rows of ``groups`` (bool [num_groups])."""
        return {name: float(total[groups].sum()) for name, total in self.sums.items()}


def subset_figures(inputs: InputSums, errors: ErrorSums, groups: Bools, mse_paper: float | None,
                   ) -> dict[str, float | int | None]:
    """The figures of the subset made up of ``groups`` (bool [num_groups]).

    A figure that is not defined (log2 of 0, variance of a single row) is None.
    """
    n, d_in = int(inputs.n[groups].sum()), inputs.sum_x.shape[1]
    total = errors.of(groups)
    variance = inputs.variance(groups)
    mse = total["squared_error"] / (n * d_in)
    return {
        "num_rows": n,
        "mse": mse,
        "mse_paper": mse_paper,
        "log2_mse": log2(mse),
        "log2_mse_paper": log2(mse_paper),
        "explained_variance": None if variance is None else 1 - total["squared_error"] / variance,
        "normalised_error": total["normalised_error"] / n,
        "cosine": total["cosine"] / n,
        "shrinkage": total["x_hat2"] / total["dot"] if total["dot"] > 0 else None,
        "norm_ratio": total["norm_ratio"] / n,
        "l0": total["active"] / n,
        "l1": total["l1"] / n,
    }


def log2(value: float | None) -> float | None:
    """log2 of a positive value, else None."""
    return math.log2(value) if value is not None and value > 0 else None
