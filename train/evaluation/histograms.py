"""Distributions over rows as counts in fixed bins, by group: they recombine exactly, and quantiles follow from them.

Rows are never kept, so that a held-out set of any size takes the same memory. How fine the bins are, a quantile is:
L0 exactly below 256 and to 1 part in 128 above, normalised errors and 1 - cosine to 2.4 % of themselves.
"""

from dataclasses import dataclass

import numpy as np

from train.evaluation.metrics import Bools, Floats, Ints, RowFigures

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)

_PER_DECADE = 50
_LOWEST, _HIGHEST = -8, 2
"""log10 of the ends; what lies beyond is counted in the bin at the end."""
LOG_BINS = (_HIGHEST - _LOWEST) * _PER_DECADE

_EXACT = 256
"""Numbers of latents below this have a bin of their own; above, each doubling has half as many bins."""


def log_bin(values: Floats) -> Ints:
    """The bin of each value >= 0: 50 of equal ratio for every factor of ten, from 1e-8 to 1e2."""
    exponent = np.log10(np.maximum(values, 10.0**_LOWEST))
    number: Ints = np.clip(np.floor((exponent - _LOWEST) * _PER_DECADE), 0, LOG_BINS - 1).astype(np.int64)
    return number


def log_bin_middle(number: int) -> float:
    """The geometric middle of a bin of `log_bin`."""
    return float(10.0 ** (_LOWEST + (number + 0.5) / _PER_DECADE))


def count_bin(values: Ints) -> Ints:
    """The bin of each count >= 0: the count itself below 256; above, 128 bins for every doubling."""
    shift = np.maximum(np.frexp(values.astype(np.float64))[1] - 8, 0).astype(np.int64)
    return np.where(shift == 0, values, _EXACT + (shift - 1) * (_EXACT // 2) + (values >> shift) - _EXACT // 2)


def count_bin_start(number: int) -> int:
    """The smallest count of a bin of `count_bin`."""
    if number < _EXACT:
        return number
    shift, within = divmod(number - _EXACT, _EXACT // 2)
    return (within + _EXACT // 2) << (shift + 1)


def quantile_bin(counts: Ints, share: float) -> int:
    """The first bin up to which at least ``share`` of the rows lie (counts [bins], not all 0): the nearest rank."""
    rank = np.ceil(share * counts.sum() - 1e-9)  # 1 - 0.95 is a little more than 0.05
    return int(np.searchsorted(counts.cumsum(), rank))


@dataclass(frozen=True)
class Histograms:
    """Counts of rows by group and bin, ``[groups, bins]``."""

    normalised_error: Ints
    one_minus_cosine: Ints
    l0: Ints

    @classmethod
    def empty(cls, num_groups: int, d_sae: int) -> "Histograms":
        """Counts of nothing; ``d_sae`` is the largest L0 there can be."""
        l0_bins = int(count_bin(np.array([d_sae]))[0]) + 1
        return cls(*(np.zeros((num_groups, bins), np.int64) for bins in (LOG_BINS, LOG_BINS, l0_bins)))

    def add(self, rows: RowFigures, group: Ints) -> None:
        """Add rows with their groups ``[n]``."""
        np.add.at(self.normalised_error, (group, log_bin(rows["normalised_error"])), 1)
        np.add.at(self.one_minus_cosine, (group, log_bin(1 - rows["cosine"])), 1)
        np.add.at(self.l0, (group, count_bin(rows["active"].astype(np.int64))), 1)

    def quantiles(self, groups: Bools) -> dict[str, list[float]]:
        """The `QUANTILES` over the rows of ``groups`` (bool [num_groups])."""
        error, distance, l0 = (counts[groups].sum(axis=0)
                               for counts in (self.normalised_error, self.one_minus_cosine, self.l0))
        return {
            "normalised_error": [log_bin_middle(quantile_bin(error, share)) for share in QUANTILES],
            "cosine": [1 - log_bin_middle(quantile_bin(distance, 1 - share)) for share in QUANTILES],
            "l0": [count_bin_start(quantile_bin(l0, share)) for share in QUANTILES],
        }


DENSITY_EDGES = [edge / 4 for edge in range(-24, 1)]
"""Edges of the histogram of log10 of the share of rows that a latent fires on: -6 to 0 by quarters."""


def density_histogram(fired: Ints, num_rows: int) -> dict[str, list[float] | list[int] | int]:
    """Histogram of log10(fired / num_rows) over latents ``[d_sae]``; those that never fired are counted apart."""
    density = np.log10(fired[fired > 0] / num_rows)
    counts, _ = np.histogram(np.clip(density, DENSITY_EDGES[0], 0.0), DENSITY_EDGES)
    return {"edges": DENSITY_EDGES, "counts": counts.tolist(), "never_fired": int((fired == 0).sum())}
