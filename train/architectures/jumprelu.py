"""JumpReLU with a tanh penalty (Anthropic, January 2025 update; JumpReLU: Rajamanoharan et al. 2024).

    latents = z * H(z - threshold),   z = x W_enc + b_enc
    loss    = |x - x_hat|^2 + c * sum_i tanh(4 latents_i) + p * sum_{i silent} ReLU(threshold_i - z_i)

averaged over the batch, rows of W_dec of unit norm. H is the step, differentiated through a rectangle of
width ``bandwidth`` (eps), to the threshold and to z:

    d latents / d z         = H(z - threshold) + (threshold / eps) * rect((z - threshold) / eps)
    d latents / d threshold =                  - (threshold / eps) * rect((z - threshold) / eps)

With a wide rectangle and gradients to all parameters, hundreds of steps are enough; the original recipe
(narrow rectangle, L0 penalty, gradient to the threshold alone) needs billions of tokens. The threshold is a
parameter itself, in fp32 and clamped at zero: its logarithm would move by threshold * lr a step.
``c`` follows the asked L0 (`train.sparsity`) or is given.
"""

from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from train.architectures.base import SAE, Loss, RunLength, SAEConfig
from train.architectures.sparse import decode_active
from train.sparsity import CoefficientController, FixedCoefficient


class JumpReLUConfig(SAEConfig):
    """Fields of a [[sae]] table with ``architecture = "jumprelu"``."""

    l0: float = Field(default=32.0, gt=0)
    """Mean number of active latents to come to; not used where sparsity_coefficient is given."""
    sparsity_coefficient: float | None = Field(default=None, ge=0)
    """Fixed coefficient of the tanh penalty, in the units of the scaled input."""
    coefficient_warmup: float = Field(default=1.0, ge=0, le=1)
    """Share of the steps over which a fixed coefficient rises from zero."""
    bandwidth: float = Field(default=2.0, gt=0)
    """Width of the rectangle of the straight-through gradient, in units of the pre-activations."""
    threshold_init: float | None = Field(default=None, ge=0)
    """Threshold of every latent at the start. By default each latent's own, from the first batch: so that the
    mean L0 starts at start_l0 times the asked one."""
    start_l0: float = Field(default=4.0, gt=0)
    """L0 at the start as a multiple of l0, where threshold_init is not given."""
    threshold_lr: float = Field(default=3.0, gt=0)
    """Learning rate of the thresholds as a multiple of the SAE's."""
    tanh_scale: float = Field(default=4.0, gt=0)
    """The factor inside the tanh."""
    pre_act_coefficient: float = Field(default=3e-6, ge=0)
    """Coefficient of the term that pulls silent latents back over their threshold."""

    def sparsity_name(self) -> str:
        return f"l0-{self.l0:g}" if self.sparsity_coefficient is None else f"c{self.sparsity_coefficient:g}"


class _Jump(torch.autograd.Function):
    """z * H(z - threshold) with the straight-through gradients of the module's docstring."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, threshold: Tensor, bandwidth: float) -> Tensor:
        ctx.save_for_backward(z, threshold)
        ctx.bandwidth = bandwidth
        return z * (z > threshold)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        (grad,) = grads
        z, threshold = ctx.saved_tensors
        near = ((z - threshold).abs() < ctx.bandwidth / 2) * (threshold / ctx.bandwidth)
        through = grad * near
        return torch.addcmul(through, grad, (z > threshold).to(grad.dtype)), -through.sum(0), None


class JumpReLUSAE(SAE):
    """See the module's docstring."""

    Config = JumpReLUConfig
    name = "jumprelu"

    def __init__(self, config: JumpReLUConfig, d_in: int, length: RunLength) -> None:
        super().__init__(config, d_in, length)
        self.config: JumpReLUConfig = config
        self.threshold = nn.Parameter(torch.full((self.d_sae,), config.threshold_init or 0.0))
        self.controller: CoefficientController | FixedCoefficient
        if config.sparsity_coefficient is None:
            self.controller = CoefficientController(config.l0, 1.0, length.num_steps)
        else:
            self.controller = FixedCoefficient(config.sparsity_coefficient,
                                               round(config.coefficient_warmup * length.num_steps))

    def encode(self, x: Tensor) -> Tensor:
        pre_acts = self.pre_acts(x)
        return pre_acts.relu() * (pre_acts > self.threshold)

    def lr_multiples(self) -> dict[str, float]:
        return {"threshold": self.config.threshold_lr}

    @torch.no_grad()
    def _start_thresholds(self, pre_acts: Tensor) -> None:
        """Each latent fires on the same share of the first batch: far fewer to prune than from half of all."""
        share = min(0.5, self.config.start_l0 * self.config.l0 / self.d_sae)
        number = max(1, round(share * len(pre_acts)))
        self.threshold.copy_(torch.topk(pre_acts, number, dim=0, sorted=True).values[-1].clamp_min(0.0))

    def loss(self, x: Tensor, step: int) -> Loss:
        pre_acts = self.pre_acts(x).float()
        if step == 0 and self.config.threshold_init is None and "threshold" not in self.given:
            self._start_thresholds(pre_acts)
        latents: Tensor = _Jump.apply(  # type: ignore[no-untyped-call]
            pre_acts, self.threshold, self.config.bandwidth)
        error = self.reconstruction_error(x, decode_active(latents, self.W_dec) + self.b_dec)
        penalty = self.controller.coefficient() * torch.tanh(self.config.tanh_scale * latents).sum() / len(x)
        silent = (self.tokens_since_fired >= self.length.dead_window).to(pre_acts.dtype)
        pull = (torch.relu(self.threshold - pre_acts) @ silent).sum() / len(x) * self.config.pre_act_coefficient
        active = latents.detach() > 0
        l0 = active.sum() / len(x)
        self.controller.update(l0, step)
        return Loss(total=error + penalty + pull, mse=error.detach() / self.d_in, sparsity=penalty.detach(),
                    aux=pull.detach(), l0=l0, fired=active.any(0))

    @torch.no_grad()
    def after_step(self, loss: Loss, batch_size: int, step: int) -> None:
        super().after_step(loss, batch_size, step)
        self.threshold.clamp_(min=0.0)
