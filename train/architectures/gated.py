"""Gated (Rajamanoharan et al. 2024, arXiv 2404.16014): which latents are active, and how much, apart.

    gate      = x W_enc + b_gate
    magnitude = x (W_enc exp(r_mag)) + b_mag          exp(r_mag) [d_sae] scales columns: weights are shared
    latents   = H(gate) * ReLU(magnitude)
    loss      = |x - x_hat|^2 + c * sum_i ReLU(gate_i) + |x - (ReLU(gate) sg(W_dec) + sg(b_dec))|^2

averaged over the batch, rows of W_dec of unit norm. H is the step, which has no gradient: the gate learns from
the penalty and from the last, auxiliary term alone. sg stops gradients: the auxiliary reconstruction must not move
the decoder, or it would learn to fit the shrunken ReLU(gate) (peers that leave it out exist). L1 shrinks the gate,
and the magnitude, which no penalty touches, makes up for it.

b_gate is `b_enc` in our code: it is the bias of ``pre_acts``, which are the gate. ``c`` follows the asked L0
(`train.sparsity`) or is given; at the end a common shift of b_gate sets the mean L0 of training rows.
"""

from collections.abc import Mapping

import torch
from pydantic import Field
from torch import Tensor, nn

from train.architectures.base import Loss, RunLength
from train.architectures.sparse import decode_active
from train.architectures.standard import StandardConfig, StandardSAE
from train.shards import ALONE, Shards


class GatedConfig(StandardConfig):
    """Fields of a [[sae]] table with ``architecture = "gated"``: those of "standard", the penalty on the gate."""

    bias_lr: float = Field(default=1.0, gt=0)
    """b_enc, the gate's bias, learns at this multiple of the learning rate. 4 explained no more in a trial of 300
    steps."""


class GatedSAE(StandardSAE):
    """See the module's docstring."""

    Config = GatedConfig
    name = "gated"
    per_latent = StandardSAE.per_latent | {"r_mag": 0, "b_mag": 0}

    def __init__(self, config: GatedConfig, d_in: int, length: RunLength, shards: Shards = ALONE) -> None:
        super().__init__(config, d_in, length, shards)
        self.r_mag = nn.Parameter(torch.zeros(self.width))
        self.b_mag = nn.Parameter(torch.zeros(self.width))

    @torch.no_grad()
    def start_from(self, weights: Mapping[str, Tensor]) -> None:
        super().start_from(weights)
        if "b_mag" not in weights:  # a source without gates: they open where it was active, and pass what it gave
            self.b_mag.copy_(self.b_enc)
            if "threshold" in weights:
                self.b_enc.sub_(self.shards.own(weights["threshold"], 0))

    def magnitudes(self, gate: Tensor) -> Tensor:
        """ReLU(magnitude) ``[batch, width]`` from the gate, without a second product with W_enc."""
        return torch.addcmul(self.b_mag, gate - self.b_enc, self.r_mag.exp()).relu()

    def encode(self, x: Tensor) -> Tensor:
        gate = self.pre_acts(x)
        return self.magnitudes(gate) * (gate > 0)

    @torch.no_grad()
    def start(self, x: Tensor) -> None:
        super().start(x)
        self.b_mag.copy_(self.b_enc)  # the same as the gate until they learn

    def loss(self, x: Tensor, step: int) -> Loss:
        if step == 0 and "b_enc" not in self.given:
            self.start(x)
        gate = self.pre_acts(x).float()
        latents = self.magnitudes(gate) * (gate > 0)
        error = self.reconstruction_error(x, self.shards.sum(decode_active(latents, self.W_dec)) + self.b_dec)
        opened = gate.relu()
        penalty = self.controller.coefficient() * self.shards.sum(opened.sum()) / len(x)
        frozen = torch.addmm(self.shards.once(self.b_dec.detach()), opened, self.W_dec.detach())
        aux = self.reconstruction_error(x, self.shards.sum(frozen))
        counts = (latents.detach() > 0).sum(0)
        return Loss(total=error + penalty + aux, mse=error.detach() / self.d_in, sparsity=penalty.detach(),
                    aux=aux.detach(), l0=self.shards.sum(counts.sum()) / len(x), counts=counts)

    def _gates(self, x: Tensor) -> Tensor:
        """The gates of latents that would be active if theirs were open, flat."""
        gate = self.pre_acts(x)
        return gate[self.magnitudes(gate) > 0]
