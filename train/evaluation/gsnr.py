"""Gradient signal-to-noise ratios at fixed weights, without the bias of a finite sample.

GSNR (Liu et al. 2020, arXiv 2001.07384) of one number theta_j of a model is E[g_j]^2 / Var[g_j] over the data, g_j the
gradient of the loss. M batches of B rows have gradients g_m, with mean G and variance s^2 = sum (g_m - G)^2 / (M - 1)
for each j. E[G^2] is E[g]^2 + Var/M, so that G^2 / s^2 is too large by 1/M: noise alone would look like signal. Here

    entry j   r_j = ((M - 3) / (M - 1) * G_j^2 / s_j^2 - 1 / M) / B
    pooled    R   = (|G|^2 - S / M) / (B * S),         S = sum_j s_j^2, an estimate of the covariance's trace
    halves    R'  = <G_A, G_B> / (B * S)               G_A and G_B of the first and the second half of the batches

Division by B makes them ratios of single rows, whatever B is (a batch's variance is a row's over B). r_j is unbiased
where batch gradients are normal: then G and s^2 are independent and E[1 / s^2] = (M - 1) / (M - 3) / Var. |G|^2 - S / M
is the mean of <g_m, g_n> over all pairs of different batches, so R is R' averaged over all ways to halve the batches,
with less noise. All three may be below zero where there is no signal.

Over the entries whose gradient varies, the mean of r_j is reported, which is as unbiased, and the median of
max(0, r_j), which is not: an entry's r_j has an error of some 1 / (M B), so what is smaller than that is lost in the
median, which is 0 where half of all entries show no signal. Intervals are those of the delete-one jackknife over
batches (Efron and Tibshirani 1993, ch. 11) with Student's t. The gradients are computed twice: once for
G and s^2, once to leave each batch out. Kept are two float64 numbers for each parameter, and one float32 for those of
the largest tensor.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from statistics import NormalDist
from typing import Any

import torch
from torch import Tensor

from train.evaluation.bootstrap import LEVEL

MIN_BATCHES = 8
"""Fewer say too little of a variance."""

ALL = "all"
"""The group of all parameters together, which has pooled figures alone."""

_CHUNK = 1 << 20
"""Entries that are worked on at a time."""

_VARIES = 1e-9
"""Without one batch, an entry's variance below this share of the whole one is rounding."""

Gradients = Callable[[int], Mapping[str, Tensor]]
"""From the number of a batch to its gradient by parameter. The same number gives the same gradient."""


@dataclass
class _Group:
    """Running moments of one parameter's gradient, flat in float64 (Welford's recurrence)."""

    mean: Tensor
    squares: Tensor
    """Sums of squared deviations from the mean."""
    count: int = 0
    half: float = 0.0
    """|sum of the gradients|^2 of the first half of the batches."""
    with_sum: list[float] = field(default_factory=list)
    """<g_m, sum of all gradients> of each batch."""
    norms: list[float] = field(default_factory=list)
    """|g_m|^2 of each batch."""

    def add(self, gradient: Tensor) -> None:
        self.count += 1
        for part in _chunks(self.mean):
            g = gradient[part].double()
            apart = g - self.mean[part]
            self.mean[part] += apart / self.count
            self.squares[part].addcmul_(apart, g - self.mean[part])

    def sum_squared(self) -> float:
        """|sum of the gradients so far|^2."""
        return self.count**2 * float(self.mean.dot(self.mean))

    def project(self, gradient: Tensor) -> None:
        g = gradient.double()
        self.with_sum.append(self.count * float(g.dot(self.mean)))
        self.norms.append(float(g.dot(g)))


def measure_gsnr(gradients: Gradients, num_batches: int, batch_size: int) -> dict[str, dict[str, Any]]:
    """GSNR of each parameter's gradient over batches 0 to ``num_batches`` - 1 of ``batch_size`` rows.

    Returns by parameter, and for `ALL`: ``entries``, ``active_entries`` (those whose gradient varies), ``median``,
    ``mean``, ``pooled`` and ``pooled_halves``, all per row, and ``intervals`` of the first three. What is not defined
    (nothing varies) is None.
    """
    assert num_batches >= MIN_BATCHES
    groups: dict[str, _Group] = {}
    for number in range(num_batches):
        for name, gradient in gradients(number).items():
            if name not in groups:
                mean = torch.zeros(gradient.numel(), dtype=torch.float64, device=gradient.device)
                groups[name] = _Group(mean, mean.clone())
            groups[name].add(gradient.flatten())
        if number + 1 == num_batches // 2:
            for group in groups.values():
                group.half = group.sum_squared()
    entries = {name: _over_entries(group, batch_size) for name, group in groups.items()}
    left_out: dict[str, list[dict[str, float]]] = {name: [] for name in groups}
    for number in range(num_batches):
        for name, gradient in gradients(number).items():
            flat = gradient.flatten()
            groups[name].project(flat)
            left_out[name].append(_over_entries(groups[name], batch_size, without=flat))
    found = {}
    for name, group in groups.items():
        active = int((group.squares > 0).sum())
        pooled = _pooled([group], batch_size)
        found[name] = {"entries": group.mean.numel(), "active_entries": active,
                       **{key: _defined(value) for key, value in entries[name].items()}, **pooled}
        found[name]["intervals"] = {
            **{key: _jackknife(value, [one[key] for one in left_out[name]]) for key, value in entries[name].items()},
            **pooled["intervals"]}
    everything = list(groups.values())
    found[ALL] = {"entries": sum(one["entries"] for one in found.values()),
                  "active_entries": sum(one["active_entries"] for one in found.values()),
                  "median": None, "mean": None, **_pooled(everything, batch_size)}
    return found


def _over_entries(group: _Group, batch_size: int, without: Tensor | None = None) -> dict[str, float]:
    """Median of max(0, r_j) and mean of r_j over the entries that vary, of all batches or ``without`` the one of this
    gradient."""
    n = group.count - (without is not None)
    ratios, total, number = [], 0.0, 0
    for part in _chunks(group.mean):
        mean, squares = group.mean[part], group.squares[part]
        varies = squares > 0
        if without is not None:
            apart = mean - without[part].double()
            mean = mean + apart / n
            left = squares - apart.square() * (group.count / n)
            varies, squares = left > _VARIES * squares, left
        ratio = ((n - 3) * mean[varies].square() / squares[varies] - 1 / n) / batch_size  # s^2 = squares / (n - 1)
        total += float(ratio.sum())
        number += len(ratio)
        ratios.append(ratio.float().clamp_min_(0.0))
    if not number:
        return {"median": math.nan, "mean": math.nan}
    return {"median": _median(torch.cat(ratios)), "mean": total / number}


def _median(values: Tensor) -> float:
    """The median; of an even number the mean of the middle two."""
    places = {(len(values) - 1) // 2 + 1, len(values) // 2 + 1}
    return sum(float(values.kthvalue(place).values) for place in places) / len(places)


def _pooled(groups: list[_Group], batch_size: int) -> dict[str, Any]:
    """R and R' of some parameters together, and the jackknife's interval of R."""
    count = groups[0].count
    squared = sum(group.sum_squared() for group in groups)
    with_sum = [sum(parts) for parts in zip(*(group.with_sum for group in groups), strict=True)]
    norms = [sum(parts) for parts in zip(*(group.norms for group in groups), strict=True)]
    trace = sum(float(group.squares.sum()) for group in groups) / (count - 1)

    def ratio(squared: float, trace: float, n: int) -> float:
        return (squared / n**2 - trace / n) / (batch_size * trace) if trace > 0 else math.nan

    value = ratio(squared, trace, count)
    left_out = []
    for product, norm in zip(with_sum, norms, strict=True):
        rest = squared - 2 * product + norm
        # sum of squares about the mean, without one batch: what it takes with it is count / (count - 1) |g - G|^2.
        apart = norm - 2 * product / count + squared / count**2
        left_out.append(ratio(rest, ((count - 1) * trace - apart * count / (count - 1)) / (count - 2), count - 1))
    half = count // 2
    of_halves = sum(with_sum[:half]) - sum(group.half for group in groups)
    halves = of_halves / (half * (count - half)) / (batch_size * trace) if trace > 0 else math.nan
    return {"pooled": _defined(value), "pooled_halves": _defined(halves),
            "intervals": {"pooled": _jackknife(value, left_out)}}


def _jackknife(value: float, left_out: list[float]) -> list[float] | None:
    """The interval of level `LEVEL` around ``value`` from its values without each batch; None where not defined."""
    n = len(left_out)
    if not math.isfinite(value) or not all(map(math.isfinite, left_out)):
        return None
    middle = math.fsum(left_out) / n
    error = math.sqrt((n - 1) / n * math.fsum((one - middle) ** 2 for one in left_out))
    reach = student_t((1 + LEVEL) / 2, n - 1) * error
    return [value - reach, value + reach]


def student_t(share: float, degrees: int) -> float:
    """The quantile of Student's t, by Abramowitz and Stegun 26.7.5: to 0.2 % from 7 degrees of freedom on."""
    z = NormalDist().inv_cdf(share)
    return (z + (z**3 + z) / (4 * degrees) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * degrees**2)
            + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * degrees**3))


def _chunks(values: Tensor) -> list[slice]:
    return [slice(start, start + _CHUNK) for start in range(0, len(values), _CHUNK)]


def _defined(value: float) -> float | None:
    return value if math.isfinite(value) else None
