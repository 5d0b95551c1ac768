"""The optimiser of one SAE: fused Adam, the learning rate's course, clipping by the global norm."""

import math
from collections.abc import Collection, Iterable, Mapping
from typing import Literal

import torch
from torch import Tensor, nn

from train.kernels.rows import adam, row_sums
from train.shards import ALONE, Shards


def default_lr(d_sae: int, num_tokens: int, batch_size: int) -> float:
    """Peak learning rate where none is given: 3e-3 * sqrt(4608 / d_sae) * (1 M / num_tokens)^(1/3), at most 6e-3, and
    that times sqrt(batch_size / 1024) for batches under 1,024 rows.

    1/sqrt(d_sae) is the rule in general use (Gao et al. 2024). The second factor joins two measured points:
    3e-3 to 4e-3 is best for a run of a million tokens at d_sae 4,608, and libraries use 4e-4 for the same
    width at 500 million. The root of the batch is Adam's (Malladi et al. 2022, arXiv 2205.10287). On 307,200 tokens of
    layer 9 of the embedded model TopK explains most at the rule's rate in every case of `benchmarks.learning_rate`:
    0.841, 0.868 and 0.872 with 1,024 rows at 2x, 8x and 16x, 0.871 and 0.874 with 512 and 128 at 8x; at half or twice
    the rate 0.003 to 0.013 less. Larger batches than 1,024 were not measured.
    """
    of_run = min(6e-3, 3e-3 * math.sqrt(4608 / d_sae) * (1e6 / max(1, num_tokens)) ** (1 / 3))
    return float(of_run * math.sqrt(min(1.0, batch_size / 1024)))


def default_beta2(num_steps: int) -> float:
    """Adam looks back over a tenth of the run: 100 steps at least (0.99), 1,000 at most (0.999, as is usual).

    In a run of 1,000 steps, 0.999 weighs the large gradients of the beginning until the end. There 0.99 explains more
    with every architecture, beside the decoder's threefold rate (docs/quality.md).
    """
    return 1 - 1 / min(1000, max(100, num_steps // 10))


COSINE_FLOOR = 0.1
"""Share of the peak rate that a cosine falls to (FAST: 7e-5 to 7e-6)."""


def lr_factor(step: int, num_steps: int, warmup_share: float, decay_share: float,
              schedule: Literal["linear", "cosine"] = "linear") -> float:
    """Share of the peak rate at a step (0-based), in three parts, the first and last ``*_share`` of the steps.

    The first is a linear warm-up, (step + 1) / its length. "linear" stays at 1 and then falls along a line to 0.
    "cosine" is FAST's (arXiv 2506.07691), which is SAELens 5's: half a cosine from 1 to `COSINE_FLOOR`, and then
    a line from there to 0. The last step still has a rate above zero.
    """
    warmup = warmup_share * num_steps
    decay = decay_share * num_steps
    up = math.inf if warmup < 1 else (step + 1) / warmup
    down = math.inf if decay < 1 else (num_steps - step) / decay
    if schedule == "linear" or up <= 1:
        return min(1.0, up, down)
    if down <= 1:
        return COSINE_FLOOR * down
    passed = (step - warmup) / max(1.0, num_steps - warmup - decay)
    return COSINE_FLOOR + (1 - COSINE_FLOOR) * (1 + math.cos(math.pi * passed)) / 2


class Adam:
    """Fused Adam over an SAE's parameters, with its state as named tensors for checkpoints.

    With it, in the same pass, goes what keeps the decoder's rows at unit norm: the part of the gradient along
    a row is taken out, for it would only change the row's length and still fill Adam's moments (Bricken et al.
    2023, "Towards Monosemanticity", appendix), and after the update the row is scaled back.
    """

    def __init__(self, parameters: Iterable[tuple[str, nn.Parameter]], lr: float, betas: tuple[float, float],
                 lr_multiples: Mapping[str, float], unit_rows: Collection[str] = (), *,
                 divided: Collection[str] = (), shards: Shards = ALONE) -> None:
        """``lr_multiples`` names parameters that learn at a multiple of ``lr``; ``unit_rows`` matrices
        ``[rows, columns]`` whose rows have unit L2 norm and keep it; ``divided`` those of which each of several
        processes has a part: the global norm counts all parts, and the others once."""
        self.parameters = dict(parameters)
        self._lr = {name: lr * lr_multiples.get(name, 1.0) for name in self.parameters}
        self._betas = betas
        self._unit_rows = frozenset(unit_rows)
        self._divided, self._shards = frozenset(divided), shards
        # The moments have their parameter's memory layout, along which the fused kernel walks.
        self._state = {name: {
            "step": torch.zeros((), dtype=torch.float32, device=parameter.device),
            "exp_avg": torch.zeros_like(parameter, memory_format=torch.preserve_format),
            "exp_avg_sq": torch.zeros_like(parameter, memory_format=torch.preserve_format),
        } for name, parameter in self.parameters.items()}

    @torch.no_grad()
    def step(self, factor: float | Tensor, max_norm: float | None = None,
             written: Mapping[str, Tensor] | None = None) -> None:
        """One update at ``factor`` times the peak rate; the gradients are dropped. No wait for the device.

        Args:
            factor: a number; on CUDA also a scalar on the device.
            max_norm: the largest global norm of all gradients, without the parts along unit rows; a larger one
                is scaled down to it.
            written: on CUDA, matrices of whose gradients only some rows are written, along memory, and which
                (`train.kernels.rows.row_sums`).
        """
        written = written or {}
        gradients = {name: parameter.grad for name, parameter in self.parameters.items()
                     if parameter.grad is not None}
        sums = {name: row_sums(self.parameters[name], gradient, unit_rows=name in self._unit_rows,
                               written=written.get(name))
                for name, gradient in gradients.items()
                if max_norm is not None or name in self._unit_rows or name in written}
        divisor = None
        if max_norm is not None:
            squares = {name: of.squares.sum() for name, of in sums.items()}
            own = [square if name in self._divided else self._shards.once(square) for name, square in squares.items()]
            # |g - <g, w> w|^2 = |g|^2 - <g, w>^2 where |w| = 1.
            own += [-of.along.square().sum() for of in sums.values() if of.along is not None]
            square = self._shards.sum(torch.stack(own)).sum().clamp_min(0)
            divisor = square.sqrt().add_(1e-6).div_(max_norm).clamp_min_(1.0)
        for name, gradient in gradients.items():
            parameter, state = self.parameters[name], self._state[name]
            state["step"] += 1
            adam(parameter, gradient, sums.get(name), state["exp_avg"], state["exp_avg_sq"], state["step"],
                 self._lr[name] * factor, self._betas, divisor)
            parameter.grad = None

    def state(self) -> dict[str, Tensor]:
        """Its state: ``<parameter>.exp_avg`` and so on."""
        return {f"{name}.{key}": value for name, of in self._state.items() for key, value in of.items()}
