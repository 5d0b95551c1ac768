"""The optimiser of one SAE: fused Adam, the learning rate's course, clipping by the global norm."""

import math
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn


def default_lr(d_sae: int, num_tokens: int) -> float:
    """Peak learning rate where none is given: 3e-3 * sqrt(4608 / d_sae) * (1 M / num_tokens)^(1/3), at most 6e-3.

    1/sqrt(d_sae) is the rule in general use (Gao et al. 2024). The other factor joins two measured points:
    3e-3 to 4e-3 is best for a run of a million tokens at d_sae 4,608, and libraries use 4e-4 for the same
    width at 500 million.
    """
    return float(min(6e-3, 3e-3 * math.sqrt(4608 / d_sae) * (1e6 / max(1, num_tokens)) ** (1 / 3)))


def lr_factor(step: int, num_steps: int, warmup_share: float, decay_share: float) -> float:
    """Share of the peak rate at a step (0-based): linear warm-up, constant, linear decay to zero.

    The last step still has a rate above zero. Where the two shares overlap, the smaller factor counts.
    """
    warmup = warmup_share * num_steps
    decay = decay_share * num_steps
    up = 1.0 if warmup < 1 else (step + 1) / warmup
    down = 1.0 if decay < 1 else (num_steps - step) / decay
    return min(1.0, up, down)


class Adam:
    """Fused Adam over an SAE's parameters, with its state as named tensors for checkpoints."""

    def __init__(self, parameters: Iterable[tuple[str, nn.Parameter]], lr: float, betas: tuple[float, float],
                 lr_multiples: Mapping[str, float]) -> None:
        """``lr_multiples`` names parameters that learn at a multiple of ``lr``."""
        self.parameters = dict(parameters)
        groups: dict[float, list[nn.Parameter]] = {}
        for name, parameter in self.parameters.items():
            groups.setdefault(lr * lr_multiples.get(name, 1.0), []).append(parameter)
        self._adam = torch.optim.Adam([{"params": members, "lr": rate} for rate, members in groups.items()],
                                      lr=lr, betas=betas, fused=True)
        self._peak_lr = list(groups)
        for parameter in self.parameters.values():
            # Made here and not at the first step, so that a checkpoint can be copied into it and the moments
            # always have their parameter's memory layout, which the fused kernel walks along.
            self._adam.state[parameter] = {
                "step": torch.zeros((), dtype=torch.float32, device=parameter.device),
                "exp_avg": torch.zeros_like(parameter, memory_format=torch.preserve_format),
                "exp_avg_sq": torch.zeros_like(parameter, memory_format=torch.preserve_format),
            }

    def clip(self, max_norm: float) -> None:
        """Scale all gradients so that their global norm is at most ``max_norm``; no wait for the device."""
        torch.nn.utils.clip_grad_norm_(list(self.parameters.values()), max_norm)

    def step(self, factor: float) -> None:
        """One update at ``factor`` times the peak rate; the gradients are dropped."""
        for group, rate in zip(self._adam.param_groups, self._peak_lr, strict=True):
            group["lr"] = rate * factor
        self._adam.step()
        self._adam.zero_grad(set_to_none=True)

    def state(self) -> dict[str, Tensor]:
        """Its state: ``<parameter>.exp_avg`` and so on."""
        return {f"{name}.{key}": value for name, parameter in self.parameters.items()
                for key, value in self._adam.state[parameter].items()}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Copy back what `state` gave."""
        for name, value in self.state().items():
            value.copy_(state[name])
