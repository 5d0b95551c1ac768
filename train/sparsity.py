"""A sparsity coefficient that brings an SAE to the L0 it was asked for, and the level that sets it exactly at the end.

The coefficient follows log(L0 / target): an integral controller on its logarithm, with a proportional
part that damps it. The target comes down from the L0 at the start to the one asked, along a straight line
in log space, so that latents are thinned out slowly and not killed; and for the last share of the steps the
coefficient is frozen, so that what is left of the run settles under one loss.

An SAE that learns needs ever less of a penalty for the same L0. An integral controller follows such a drift at a
distance of drift / gain: a quarter of today's gain left L0 9 % under the asked one (Standard, layer 9 of the embedded
model, 200 steps of 512 rows), on training and on held-out rows alike and already when the coefficient was frozen, after
which it stayed. In so short a run the gain is at its limit and still leaves 7 %. So the rest is left to
`level_passed_by`: with the final weights, a common shift of thresholds or biases.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from train.shards import ALONE, Shards

_BOUND = math.log(100.0)
"""The coefficient stays within a factor of 100 of its start: an L0 that cannot be reached must not wind it up."""


def share_at_start(times: float, l0: float, d_sae: int) -> float:
    """Share of the first batch on which each latent is to be active: ``times`` that of the asked L0, but over 4 times
    at most an eighth, and never over half."""
    asked = l0 / d_sae
    return min(0.5, times * asked, max(1 / 8, 4 * asked))


def levels_passed_by(share: float, values: Tensor) -> Tensor:
    """For each column of ``values`` [batch, latents] the level that ``share`` of the rows exceed, one at least: halfway
    between two neighbours, [latents]."""
    number = max(1, round(share * len(values)))
    return torch.topk(values.float(), min(number + 1, len(values)), dim=0, sorted=True).values[-2:].mean(0)


class CoefficientController(nn.Module):
    """Coefficient of a sparsity penalty. Its state are buffers, so a checkpoint holds it."""

    log_coefficient: Tensor
    error: Tensor
    start_log_l0: Tensor

    def __init__(self, target_l0: float, start: float, num_steps: int, *, ramp_share: float = 0.3,
                 frozen_share: float = 0.2, gain: float = 64.0, proportional: float = 1.0) -> None:
        """``start`` is the first coefficient; ``gain`` what the log moves in a run whose error stays 1."""
        super().__init__()
        self.target_l0 = target_l0
        self.ramp_steps = max(1, round(ramp_share * num_steps))
        self.frozen_from = round((1 - frozen_share) * num_steps)  # the first step at the final coefficient
        self.gain = min(gain / max(1, num_steps), 0.1)  # L0 answers a change some ten steps later
        self.start = math.log(start)
        self.proportional = proportional
        self.register_buffer("log_coefficient", torch.tensor(self.start))
        self.register_buffer("error", torch.tensor(0.0))
        self.register_buffer("start_log_l0", torch.tensor(math.nan))

    def start_at(self, coefficient: float) -> None:
        """Begin from this coefficient in place of the one it was made with."""
        self.start = math.log(coefficient)
        self.log_coefficient.fill_(self.start)

    def coefficient(self) -> Tensor:
        """The coefficient of this step, a scalar on the device."""
        return torch.exp(self.log_coefficient + self.proportional * self.error)

    @torch.no_grad()
    def update(self, l0: Tensor, step: int | Tensor) -> None:
        """Take in the L0 of a step (0-based; a number, or a scalar on the device). Nothing is read back."""
        step = torch.as_tensor(step, dtype=torch.float64, device=l0.device)
        log_l0 = torch.log(l0.float().clamp_min(1e-3))
        start = torch.where(step == 0, log_l0.clamp_min(math.log(self.target_l0)), self.start_log_l0)
        self.start_log_l0.copy_(start)
        left = 1 - (step / self.ramp_steps).clamp_max(1)
        target = math.log(self.target_l0) * (1 - left) + start * left
        # What the proportional part holds at the freeze is noise of one batch.
        acts = step < self.frozen_from - 1  # on the step after this one
        self.error.copy_(torch.where(acts, (log_l0 - target).clamp(-1, 1), 0.0))
        self.log_coefficient.add_(self.error, alpha=self.gain)
        self.log_coefficient.clamp_(self.start - _BOUND, self.start + _BOUND)


class FixedCoefficient(nn.Module):
    """A coefficient that is given, with a linear warm-up from zero (the paper's Standard and JumpReLU)."""

    step: Tensor

    def __init__(self, value: float, warmup_steps: int) -> None:
        super().__init__()
        self.value = value
        self.warmup_steps = warmup_steps
        self.register_buffer("step", torch.tensor(0.0))

    def coefficient(self) -> Tensor:
        """The coefficient of this step, a scalar on the device."""
        return self.value * ((self.step + 1) / max(1, self.warmup_steps)).clamp_max(1.0)

    @torch.no_grad()
    def update(self, l0: Tensor, step: int | Tensor) -> None:
        """Count the step."""
        self.step.copy_(torch.as_tensor(step) + 1)


def level_passed_by(per_row: float, batches: list[Tensor], values: Callable[[Tensor], Tensor],
                    shards: Shards = ALONE) -> Tensor:
    """The level that ``per_row`` values a row exceed, over all rows of all batches: a scalar on the device.

    Where there are fewer values than that, a level that all of them exceed; where there are none, 0.

    Args:
        per_row: how many of a row's values shall lie over the level, on average.
        batches: rows ``[batch, d_in]``.
        values: gives the values of a batch, flat, in any number: those of this process's latents.
        shards: counts those of all processes.
    """
    wanted = round(per_row * sum(len(x) for x in batches))
    twice = round(2 * per_row * len(batches[0]))
    first = shards.largest(values(batches[0]).float(), twice + 1)
    floors = [torch.kthvalue(first, len(first) - twice).values] if len(first) > twice else []
    for floor in (*floors, first.new_full((1,), -math.inf)):  # all values of all batches may not fit in memory
        kept = shards.largest(torch.cat([found[found > floor] for found in map(values, batches)]).float(), wanted + 1)
        if len(kept) > wanted:
            return torch.kthvalue(kept, len(kept) - wanted).values
    if not len(kept):
        return kept.new_zeros(())
    return torch.nextafter(kept.min(), torch.full_like(kept.min(), -math.inf))
