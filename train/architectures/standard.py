"""Standard: ReLU with an L1 penalty (Bricken et al. 2023, "Towards Monosemanticity").

    latents = ReLU(x W_enc + b_enc)
    loss    = |x - x_hat|^2 + c * sum_i latents_i,    rows of W_dec of unit norm

Averaged over the batch. ``c`` follows the asked L0 (`train.sparsity`) or is given. Where it follows, a common shift
of b_enc at the end sets the mean L0 of training rows. L1 shrinks activations, so this is a baseline.
"""

import torch
from pydantic import Field
from torch import Tensor

from train.architectures.activations import rectify
from train.architectures.base import SAE, Loss, RunLength, SAEConfig
from train.architectures.sparse import active_pairs, decode_pairs, gather_pre_acts, select_pairs
from train.shards import ALONE, Shards
from train.sparsity import CoefficientController, FixedCoefficient, level_passed_by, levels_passed_by, share_at_start


class StandardConfig(SAEConfig):
    """Fields of a [[sae]] table with ``architecture = "standard"``."""

    l0: float = Field(default=32.0, gt=0)
    """Mean number of active latents to come to; not used where l1_coefficient is given."""
    l1_coefficient: float | None = Field(default=None, ge=0)
    """Fixed coefficient of the L1 penalty, in the units of the scaled input."""
    start_l0: float = Field(default=4.0, ge=0)
    """L0 at the start as a multiple of l0, within limits (`train.sparsity.share_at_start`): b_enc starts so that each
    latent is active on the same share of the first batch. 0 starts b_enc at zero, where half of all are active."""
    coefficient_warmup: float = Field(default=0.03, ge=0, le=1)
    """Share of the steps over which a fixed coefficient rises from zero."""

    def asked_l0(self) -> float | None:
        return self.l0 if self.l1_coefficient is None else None

    def sparsity_name(self) -> str:
        return f"l0-{self.l0:g}" if self.l1_coefficient is None else f"l1-{self.l1_coefficient:g}"


class StandardSAE(SAE):
    """See the module's docstring."""

    Config = StandardConfig
    name = "standard"

    def __init__(self, config: StandardConfig, d_in: int, length: RunLength, shards: Shards = ALONE) -> None:
        super().__init__(config, d_in, length, shards)
        self.config: StandardConfig = config
        self.controller: CoefficientController | FixedCoefficient
        if config.l1_coefficient is None:
            self.controller = CoefficientController(config.l0, 1.0, length.num_steps)
        else:
            self.controller = FixedCoefficient(config.l1_coefficient,
                                               round(config.coefficient_warmup * length.num_steps))

    def encode(self, x: Tensor) -> Tensor:
        return self.pre_acts(x).relu_()

    @torch.no_grad()
    def start(self, x: Tensor) -> None:
        """Set b_enc from the first batch, so that each latent is active on the same share of it."""
        if self.config.start_l0 and self.config.l1_coefficient is None:
            share = share_at_start(self.config.start_l0, self.config.l0, self.d_sae)
            self.b_enc.sub_(levels_passed_by(share, self.pre_acts(x)))

    def loss(self, x: Tensor, step: int) -> Loss:
        if step == 0 and "b_enc" not in self.given:
            self.start(x)
        pre_acts = self.pre_acts(x)
        flat = active_pairs(pre_acts)
        if flat is None:
            latents, total, counts = rectify(pre_acts)
            x_hat = self.decode(latents)
        else:
            # The gradient of ReLU stops at the other latents, so nothing else is decoded or differentiated.
            selection = select_pairs(flat, len(x), self.width)
            latents, *_ = gather_pre_acts(x, self.W_enc, self.b_enc, pre_acts.detach(), selection)
            # b_dec within the sum: another process may find many active, and take the dense form.
            x_hat = self.shards.sum(decode_pairs(latents, self.W_dec, selection)[0] + self.shards.once(self.b_dec))
            total, counts = latents.sum(), selection.counts
        error = self.reconstruction_error(x, x_hat)
        penalty = self.controller.coefficient() * self.shards.sum(total) / len(x)
        return Loss(total=error + penalty, mse=error.detach() / self.d_in, sparsity=penalty.detach(),
                    aux=error.new_zeros(()), l0=self.shards.sum(counts.sum()) / len(x), counts=counts)

    @torch.no_grad()
    def after_step(self, loss: Loss, batch_size: int, step: int | Tensor) -> None:
        super().after_step(loss, batch_size, step)
        self.controller.update(loss.l0, step)

    @torch.no_grad()
    def calibrate(self, batches: list[Tensor]) -> None:
        """Shift b_enc, for all latents alike, so that these training rows have the asked mean L0."""
        if self.config.l1_coefficient is None:
            self.b_enc.sub_(level_passed_by(self.config.l0, batches, self._gates, self.shards))

    def _gates(self, x: Tensor) -> Tensor:
        """What must be over zero for a latent to be active, flat."""
        return self.pre_acts(x).flatten()
