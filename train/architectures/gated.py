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

from train.architectures.activations import gated
from train.architectures.base import Loss, RunLength
from train.architectures.sparse import active_pairs, decode_pairs, gather_pre_acts, select_pairs
from train.architectures.standard import StandardConfig, StandardSAE
from train.kernels.products import product
from train.shards import ALONE, Shards


class GatedConfig(StandardConfig):
    """Fields of a [[sae]] table with ``architecture = "gated"``: those of "standard", the penalty on the gate."""

    bias_lr: float = Field(default=1.0, gt=0)
    """b_enc, the gate's bias, learns at this multiple of the learning rate. 4 explained less (docs/quality.md)."""
    start_l0: float = Field(default=8.0, ge=0)
    """As Standard's. From 4, 1.4 % of the latents died at L0 16; from 8, 0.6 % (docs/quality.md)."""


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

    def magnitudes(self, gate: Tensor, latents: Tensor | None = None) -> Tensor:
        """ReLU(magnitude) from the gate, without a second product with W_enc: of all latents ``[batch, width]``, or of
        pairs ``[n]`` whose ``latents`` are given."""
        of_latents: tuple[Tensor, ...] = self.b_mag, self.b_enc, self.r_mag.exp()
        if latents is not None:
            of_latents = tuple(part.index_select(0, latents) for part in of_latents)
        b_mag, b_gate, scale = of_latents
        return torch.addcmul(b_mag, gate - b_gate, scale).relu()

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
        gate = self.pre_acts(x)
        flat = active_pairs(gate)
        frozen_W, frozen_b = self.W_dec.detach(), self.b_dec.detach()
        if flat is None:
            latents, opened, total, counts = gated(gate, self.b_enc, self.r_mag.exp(), self.b_mag)
            x_hat = self.decode(latents)
            of_gates = self.shards.sum(product(opened, frozen_W, self.shards.once(frozen_b)))
        else:
            # Nothing has a gradient where the gate is closed, so nothing else is decoded or differentiated.
            selection = select_pairs(flat, len(x), self.width)
            opened, *_ = gather_pre_acts(x, self.W_enc, self.b_enc, gate.detach(), selection)
            latents = self.magnitudes(opened, selection.latents)
            x_hat = self.shards.sum(decode_pairs(latents, self.W_dec, selection)[0] + self.shards.once(self.b_dec))
            of_gates = self.shards.sum(decode_pairs(opened, frozen_W, selection)[0] + self.shards.once(frozen_b))
            total = opened.sum()
            counts = torch.zeros_like(selection.counts).index_add_(0, selection.latents, (latents > 0).long())
        error, aux = self.reconstruction_error(x, x_hat), self.reconstruction_error(x, of_gates)
        penalty = self.controller.coefficient() * self.shards.sum(total) / len(x)
        return Loss(total=error + penalty + aux, mse=error.detach() / self.d_in, sparsity=penalty.detach(),
                    aux=aux.detach(), l0=self.shards.sum(counts.sum()) / len(x), counts=counts)

    def _gates(self, x: Tensor) -> Tensor:
        """The gates of latents that would be active if theirs were open, flat."""
        gate = self.pre_acts(x)
        return gate[self.magnitudes(gate) > 0]
