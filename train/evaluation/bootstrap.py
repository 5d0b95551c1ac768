"""Confidence intervals by the cluster bootstrap: whole conversations are drawn again, with replacement.

Tokens of a conversation are alike, so that an interval from tokens drawn one by one would be too narrow. Every figure
is a ratio of sums over rows, and a sum over a resample is the sum over conversations of their own sums, each as often
as it was drawn: a matrix product of counts and sums, equal to putting the rows together anew. Intervals are the
percentiles of the resampled figures (Efron and Tibshirani 1993, An Introduction to the Bootstrap, ch. 13; resampling
clusters: Davison and Hinkley 1997, section 3.8). With few conversations, under about 40, they are somewhat too narrow
(Cameron, Gelbach and Miller 2008).

What is drawn depends on the number of conversations and the seed alone: two SAEs on the same conversations see the
same resamples, so that a difference of their figures can be resampled pair by pair.
"""

from collections.abc import Iterator, Mapping

import numpy as np

from train.evaluation.metrics import Floats

RESAMPLES = 1000
SEED = 0
LEVEL = 0.95

_AT_ONCE = 50
"""Resamples in one product: with 100,000 conversations 40 MB."""


def resamples(num_clusters: int, num_resamples: int = RESAMPLES, seed: int = SEED) -> Iterator[Floats]:
    """How often each cluster was drawn, ``[<=50, num_clusters]``; rows add up to ``num_clusters``."""
    generator = np.random.Generator(np.random.Philox(seed))
    for start in range(0, num_resamples, _AT_ONCE):
        number = min(_AT_ONCE, num_resamples - start)
        drawn = generator.integers(num_clusters, size=(number, num_clusters))
        drawn += np.arange(number)[:, None] * num_clusters
        yield np.bincount(drawn.ravel(), minlength=number * num_clusters).reshape(number, -1).astype(np.float64)


def resampled_sums(sums: Mapping[str, Floats], num_resamples: int = RESAMPLES, seed: int = SEED) -> dict[str, Floats]:
    """Sums over each resample, ``[num_resamples, ...]``, of sums by cluster ``[num_clusters, ...]``."""
    num_clusters = len(next(iter(sums.values())))
    parts: dict[str, list[Floats]] = {name: [] for name in sums}
    for counts in resamples(num_clusters, num_resamples, seed):
        for name, values in sums.items():
            parts[name].append(counts @ values)
    return {name: np.concatenate(found) for name, found in parts.items()}


def interval(samples: Floats, level: float = LEVEL) -> list[float] | None:
    """The middle ``level`` of resampled figures ``[num_resamples]``; None where none of them is defined.

    Resamples in which the figure is not defined (none of the subset's conversations was drawn) are left out.
    """
    defined = samples[np.isfinite(samples)]
    if len(defined) == 0:
        return None
    low, high = np.quantile(defined, [(1 - level) / 2, (1 + level) / 2])
    return [float(low), float(high)]
