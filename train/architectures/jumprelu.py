"""JumpReLU (Rajamanoharan et al. 2024, arXiv 2407.14435): ReLU with a threshold for each latent, and three losses.

    latents = z * H(z - threshold),   z = x W_enc + b_enc
    loss    = |x - x_hat|^2 + penalty + p * sum_{i silent} ReLU(threshold_i - z_i)

averaged over the batch, rows of W_dec of unit norm. H is the step. It is differentiated through a rectangle of
width ``bandwidth`` (eps) around the threshold:

    d H(z - threshold) / d threshold = - (1 / eps) * rect((z - threshold) / eps)
    d latents / d threshold          = - (threshold / eps) * rect((z - threshold) / eps)
    d latents / d z                  = H(z - threshold)     + (threshold / eps) * rect(...) with "tanh"

``loss`` says which penalty:

- "tanh", the default (Anthropic, January 2025 update): c * sum_i tanh(4 latents_i), eps 2, gradients of the rectangle
  to z too, p 3e-6. With a wide rectangle and gradients to all parameters, hundreds of steps are enough. The threshold
  is a parameter itself, in fp32 and clamped at zero: its logarithm would move by threshold * lr a step.
- "step", the paper's, as SAELens 5 and FAST (arXiv 2506.07691) have it: c * |latents|_0, eps 0.001, gradient of the
  rectangle to the threshold alone, which is the exponential of a parameter; p 0. Needs billions of tokens: in less
  the thresholds hardly move and the SAE stays dense.
- "target_l0" (Gemma Scope 2, as SAELens 6 has it): c * (2 / L) * (|latents|_0 - L)^2 with the asked L0 as L, for each
  row; otherwise like "step", with the threshold itself as parameter, eps 0.05 and p 3e-6.

``c`` follows the asked L0 (`train.sparsity`) or is given. Where it follows, a common shift of the thresholds at the
end sets the mean L0 of training rows. "target_l0" comes near L with a fixed c of 1 too, to 28 of 32 on CONTENT in 100 k
tokens (layer 9 of the embedded model, 2x); a c that follows falls to 0.5.
"""

from collections.abc import Mapping
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from train.architectures.activations import jump
from train.architectures.base import SAE, Loss, RunLength, SAEConfig
from train.architectures.sparse import decode_active
from train.kernels.latents import Jump
from train.shards import ALONE, Shards
from train.sparsity import CoefficientController, FixedCoefficient, level_passed_by, levels_passed_by, share_at_start

_BANDWIDTH = {"tanh": 2.0, "step": 0.001, "target_l0": 0.05}
_PRE_ACT = {"tanh": 3e-6, "step": 0.0, "target_l0": 3e-6}


class JumpReLUConfig(SAEConfig):
    """Fields of a [[sae]] table with ``architecture = "jumprelu"``."""

    loss: Literal["tanh", "step", "target_l0"] = "tanh"
    """Penalty and gradients: see `train.architectures.jumprelu`."""
    l0: float = Field(default=32.0, gt=0)
    """Mean number of active latents to come to; not used where sparsity_coefficient is given."""
    sparsity_coefficient: float | None = Field(default=None, ge=0)
    """Fixed coefficient of the penalty, in the units of the scaled input."""
    coefficient_warmup: float = Field(default=1.0, ge=0, le=1)
    """Share of the steps over which a fixed coefficient rises from zero."""
    bandwidth: float | None = Field(default=None, gt=0)
    """Width of the rectangle of the straight-through gradient, in units of the pre-activations. By default 2 (tanh),
    0.001 (step) or 0.05 (target_l0)."""
    threshold_init: float | None = Field(default=None, gt=0)
    """Threshold of every latent at the start. By default each latent's own, from the first batch: so that the
    mean L0 starts at start_l0 times the asked one."""
    start_l0: float = Field(default=16.0, gt=0)
    """L0 at the start as a multiple of l0, where threshold_init is not given; but no more than an eighth of d_sae, or 4
    times l0 where that is more. From 4 times l0 on, 0.7 % of d_sae, more latents die; from half of d_sae on a planted
    dictionary is not found."""
    threshold_lr: float | None = Field(default=None, gt=0)
    """Learning rate of the thresholds (with "step" of their logarithms) as a multiple of the SAE's. By default 10 with
    "tanh", and 3."""
    bias_lr: float = Field(default=10.0, gt=0)
    """As everywhere, but faster: with thresholds that move at 10 times the rate biases may too (docs/quality.md)."""
    tanh_scale: float = Field(default=4.0, gt=0)
    """The factor inside the tanh."""
    pre_act_coefficient: float | None = Field(default=None, ge=0)
    """Coefficient p of the term that pulls silent latents back over their threshold. By default 3e-6, with "step" 0."""

    def asked_l0(self) -> float | None:
        return self.l0 if self.sparsity_coefficient is None else None

    def sparsity_name(self) -> str:
        return f"l0-{self.l0:g}" if self.sparsity_coefficient is None else f"c{self.sparsity_coefficient:g}"


class JumpReLUSAE(SAE):
    """See the module's docstring."""

    Config = JumpReLUConfig
    name = "jumprelu"
    per_latent = SAE.per_latent | {"theta": 0}

    def __init__(self, config: JumpReLUConfig, d_in: int, length: RunLength, shards: Shards = ALONE) -> None:
        super().__init__(config, d_in, length, shards)
        self.config: JumpReLUConfig = config
        self.jump = Jump(bandwidth=config.bandwidth or _BANDWIDTH[config.loss],
                         tanh_scale=config.tanh_scale if config.loss == "tanh" else None)
        self.pre_act_coefficient = (_PRE_ACT[config.loss] if config.pre_act_coefficient is None
                                    else config.pre_act_coefficient)
        threshold = torch.full((self.width,), config.threshold_init or 0.0)
        if config.init == "kaiming":
            # The decoder's rows were scaled to unit norm: the function stays the same if this goes to the other side.
            with torch.no_grad():
                self.W_enc.mul_(self.drawn_norms)
            threshold *= self.drawn_norms
        # With "step" this is the logarithm of the threshold.
        self.theta = nn.Parameter(threshold)
        self.set_threshold(threshold)
        self.controller: CoefficientController | FixedCoefficient
        if config.sparsity_coefficient is None:
            self.controller = CoefficientController(config.l0, 1.0, length.num_steps)
        else:
            self.controller = FixedCoefficient(config.sparsity_coefficient,
                                               round(config.coefficient_warmup * length.num_steps))

    @property
    def threshold(self) -> Tensor:
        """[width]: what a pre-activation must exceed, differentiable."""
        return self.theta.exp() if self.config.loss == "step" else self.theta

    @torch.no_grad()
    def set_threshold(self, threshold: Tensor) -> None:
        """Set the threshold ``[width]``; below zero is zero, which is ReLU."""
        self.theta.copy_(threshold.clamp_min(1e-8).log() if self.config.loss == "step" else threshold.clamp_min(0.0))

    def start_from(self, weights: Mapping[str, Tensor]) -> None:
        super().start_from(weights)
        if "threshold" in weights:
            self.set_threshold(self.shards.own(weights["threshold"], 0))

    def encode(self, x: Tensor) -> Tensor:
        pre_acts = self.pre_acts(x)
        return pre_acts.relu() * (pre_acts > self.threshold)

    def lr_multiples(self) -> dict[str, float]:
        threshold_lr = self.config.threshold_lr or (10.0 if self.config.loss == "tanh" else 3.0)
        return super().lr_multiples() | {"theta": threshold_lr}

    @torch.no_grad()
    def start(self, x: Tensor) -> None:
        """Set the thresholds from the first batch, so that each latent fires on the same share of it: far fewer to
        prune than from half of all. Then scale W_enc and them (`encoder_factor`), but not with "step": gradients of
        logarithms are smaller the smaller the thresholds, and they would hardly move (docs/quality.md)."""
        share = share_at_start(self.config.start_l0, self.config.l0, self.d_sae)
        self.set_threshold(levels_passed_by(share, self.pre_acts(x)))
        if self.config.loss != "step":
            factor = self.encoder_factor(x, self.encode(x))
            self.W_enc.mul_(factor)
            self.set_threshold(self.threshold * factor)

    def loss(self, x: Tensor, step: int) -> Loss:
        config = self.config
        if step == 0 and config.threshold_init is None and "threshold" not in self.given:
            self.start(x)
        pre_acts = self.pre_acts(x)
        silent = None
        if self.pre_act_coefficient > 0:
            silent = (self.tokens_since_fired >= self.length.dead_window).to(self.theta.dtype)
        latents, tanh, pull, counts, row_l0 = jump(pre_acts, self.threshold, silent, self.jump)
        error = self.reconstruction_error(x, self.shards.sum(decode_active(latents, self.W_dec)) + self.b_dec)
        penalty = self.controller.coefficient() * self._penalty(tanh, row_l0) / len(x)
        pull = self.pre_act_coefficient * self.shards.sum(pull) / len(x)
        return Loss(total=error + penalty + pull, mse=error.detach() / self.d_in, sparsity=penalty.detach(),
                    aux=pull.detach(), l0=self.shards.sum(counts.sum()) / len(x), counts=counts)

    def _penalty(self, tanh: Tensor, row_l0: Tensor | None) -> Tensor:
        """What the coefficient multiplies, summed over the batch: from the sum of the tanh, or each row's L0."""
        if row_l0 is None:
            return self.shards.sum(tanh)
        l0 = self.shards.sum(row_l0)
        if self.config.loss == "step":
            return l0.sum()
        return (l0 - self.config.l0).square().sum() * (2 / self.config.l0)

    @torch.no_grad()
    def after_step(self, loss: Loss, batch_size: int, step: int | Tensor) -> None:
        super().after_step(loss, batch_size, step)
        self.controller.update(loss.l0, step)
        if self.config.loss != "step":
            self.theta.clamp_(min=0.0)

    @torch.no_grad()
    def calibrate(self, batches: list[Tensor]) -> None:
        """Shift all thresholds alike, so that these training rows have the asked mean L0."""
        if self.config.sparsity_coefficient is None:
            level = level_passed_by(self.config.l0, batches, self._margins, self.shards)
            self.set_threshold(self.threshold + level)

    def _margins(self, x: Tensor) -> Tensor:
        """How far positive pre-activations are over their threshold, flat."""
        pre_acts = self.pre_acts(x)
        return (pre_acts - self.threshold)[pre_acts > 0]
