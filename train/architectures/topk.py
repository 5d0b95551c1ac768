"""TopK (Gao et al. 2024, arXiv 2406.04093): the k largest pre-activations of each row, and AuxK.

    latents = TopK(ReLU(x W_enc + b_enc), k)
    loss    = |x - x_hat|^2 + a * d_in * |e - e_hat|^2 / |e - mean(e)|^2

averaged over the batch, rows of W_dec of unit norm. The second term is AuxK: e = x - x_hat, detached, and
e_hat its reconstruction from the k_aux largest pre-activations of the latents that have been silent for a
while (counted in tokens), so that dead latents learn what the others miss. With inputs scaled to a mean
square of 1 per dimension, both terms are in units of explained variance times d_in.
"""

from dataclasses import dataclass, replace
from functools import partial

import torch
from pydantic import Field
from torch import Tensor

from train.architectures.base import SAE, Loss, RunLength, SAEConfig
from train.architectures.selection import largest_of_rows
from train.architectures.sparse import Selection, decode_pairs, gather_pre_acts, nothing_of, select_pairs
from train.shards import ALONE, Shards

_REFRESH_STEPS = 16
"""Every how many steps the list of silent latents is made anew. On a GPU that is a wait for the device."""

_DEAD_INTERVALS = 64
"""Before it has missed so many of its mean intervals between firings, no latent is called silent: in short runs most
would be, rare but alive."""

_SPARSE_SHARE_ON_CUDA = 1 / 200
"""Share of active latents up to which sparse sums are taken on a GPU, where gathered rows come at the speed of its
memory and dense products at that of its tensor cores. An estimate: at 1/768 a step took 6.5 ms on an H100, and a dense
one 14 ms at any k."""


class TopKConfig(SAEConfig):
    """Fields of a [[sae]] table with ``architecture = "topk"`` or "batchtopk"."""

    k: int = Field(default=32, ge=1)
    """Number of active latents: of each row (topk), or on average over a batch (batchtopk)."""
    aux_coefficient: float = Field(default=1 / 4, ge=0)
    """Weight of AuxK relative to the reconstruction's; 0 turns it off."""
    k_aux: int | None = Field(default=None, ge=1)
    """How many silent latents reconstruct the residual of a row. By default half of d_in."""
    dead_after_tokens: int | None = Field(default=None, ge=1)
    """Tokens without firing after which AuxK takes a latent. By default a fiftieth of the run: 64 d_sae / k at least
    (64 times what lies between two firings on average), 10 M at most."""

    def asked_l0(self) -> float:
        return self.k

    def sparsity_name(self) -> str:
        return f"k{self.k}"


@dataclass(frozen=True)
class SilentWeights:
    """Differentiable weights of the latents that AuxK takes."""

    encoder: Tensor
    """[silent, d_in]: columns of W_enc, as rows."""
    biases: Tensor
    """[silent]"""
    decoder: Tensor
    """[silent, d_in]"""


class TopKSAE(SAE):
    """See the module's docstring."""

    Config = TopKConfig
    name = "topk"
    per_latent = SAE.per_latent | {"silent": 0}

    silent: Tensor

    def __init__(self, config: TopKConfig, d_in: int, length: RunLength, shards: Shards = ALONE) -> None:
        super().__init__(config, d_in, length, shards)
        self.config: TopKConfig = config
        self.k = min(config.k, self.d_sae)
        self.k_aux = config.k_aux if config.k_aux is not None else max(1, d_in // 2)
        self.dead_after = config.dead_after_tokens or min(
            10_000_000, max(length.num_tokens // 50, _DEAD_INTERVALS * self.d_sae // self.k))
        self.sparse_on_cpu = True  # tests turn it off to compare with dense autograd
        self.register_buffer("silent", torch.zeros(self.width, dtype=torch.bool))
        self._silent_list: Tensor | None = None
        self._silent_weight: Tensor | None = None
        self._num_silent = 0  # of all processes, rounded up on CUDA
        self._silent_buffers: dict[int, tuple[Tensor, Tensor]] = {}

    def encode(self, x: Tensor) -> Tensor:
        pre_acts = self.pre_acts(x)
        chosen = self.choose(pre_acts)
        latents = torch.zeros_like(pre_acts)
        latents.view(-1)[chosen] = pre_acts.view(-1)[chosen].relu_()
        return latents

    def choose(self, pre_acts: Tensor) -> Tensor:
        """The pairs that a training batch keeps: row * width + latent, int64 [n], sorted by row."""
        # By groups takes a fraction of the time on a GPU, and twice the time on a CPU.
        select = largest_of_rows if pre_acts.is_cuda else partial(torch.topk, dim=1, sorted=False)
        values, latents = select(pre_acts, min(self.k, self.width))
        rows = torch.arange(len(pre_acts), device=pre_acts.device)
        pairs = latents + rows[:, None] * self.width
        among = self.shards.among_largest(values, self.k)
        return pairs.flatten() if among is None else pairs[among[0]]

    @torch.no_grad()
    def start(self, x: Tensor) -> None:
        """Scale W_enc by the first batch (`encoder_factor`)."""
        pre_acts = self.pre_acts(x)
        chosen = self.choose(pre_acts)
        latents = torch.zeros_like(pre_acts)
        latents.view(-1)[chosen] = pre_acts.view(-1)[chosen].relu()
        self.W_enc.mul_(self.encoder_factor(x, latents))

    def loss(self, x: Tensor, step: int) -> Loss:
        if step == 0:
            self.start(x)
        parts = self._reconstruct_sparse(x) if self.sums_pairs(x) else self._reconstruct_dense(x)
        x_hat, counts, silent, with_gradient = parts
        error = self.reconstruction_error(x, x_hat)
        aux = self.aux_loss(x, x_hat, silent)
        total = error if aux is None else error + aux
        return Loss(total=total, mse=error.detach() / self.d_in, sparsity=error.new_zeros(()),
                    aux=error.new_zeros(()) if aux is None else aux.detach(),
                    l0=self.shards.sum(counts.sum()) / len(x), counts=counts, with_gradient=with_gradient)

    def sums_pairs(self, x: Tensor) -> bool:
        """Whether a step on ``x`` decodes selected pairs alone, or all latents by dense products."""
        return self.sparse_on_cpu if x.device.type == "cpu" else self.k <= _SPARSE_SHARE_ON_CUDA * self.d_sae

    def _reconstruct_sparse(self, x: Tensor) -> tuple[Tensor, Tensor, SilentWeights, Tensor | None]:
        """Reconstruction, counts, silent latents and `Loss.with_gradient`; the same sums as the dense form, over
        selected pairs."""
        values, selection, counts, encoder, biases = self.select(x)
        decoded, decoder = decode_pairs(values, self.W_dec, selection, self._silent_list)
        silent = SilentWeights(encoder, biases, decoder)
        return self.shards.sum(decoded) + self.b_dec, counts, silent, selection.written

    def select(self, x: Tensor) -> tuple[Tensor, Selection, Tensor, Tensor, Tensor]:
        """What a training batch selects.

        Returns:
            Latents of the selected pairs ``[n]``; the pairs; how often each latent is over zero, int32 ``[width]``; and
            encoder rows and biases of the silent latents (`SilentWeights`).
        """
        with torch.no_grad():
            pre_acts = self.pre_acts(x)
            selection = select_pairs(self.choose(pre_acts), len(x), self.width)
            if self.skips_zeros:
                selected = selection.counts > 0
                silent = nothing_of(x) if self._silent_list is None else self._silent_list
                selection = replace(selection, written=selected.index_fill_(0, silent, True))
        values, encoder, biases = gather_pre_acts(x, self.W_enc, self.b_enc, pre_acts, selection, self._silent_list)
        values = values.relu()
        active = values.detach() > 0
        counts = torch.zeros(self.width, dtype=torch.int32, device=x.device)
        counts.index_add_(0, selection.latents, active.to(torch.int32))
        return values, selection, counts, encoder, biases

    def _reconstruct_dense(self, x: Tensor) -> tuple[Tensor, Tensor, SilentWeights, None]:
        """The same through dense autograd: the form for many latents on a GPU, and the reference for tests."""
        pre_acts = self.pre_acts(x)
        with torch.no_grad():
            mask = torch.zeros_like(pre_acts, dtype=torch.bool)
            mask.view(-1).index_fill_(0, self.choose(pre_acts), True)
            mask &= pre_acts > 0
        x_hat = self.decode(pre_acts * mask)
        return x_hat, mask.sum(0), self._silent_weights(), None

    def _silent_weights(self) -> SilentWeights:
        """What AuxK learns with, by autograd's own selection of rows."""
        silent = nothing_of(self.silent) if self._silent_list is None else self._silent_list
        return SilentWeights(self.W_enc.t().index_select(0, silent), self.b_enc[silent],
                             self.W_dec.index_select(0, silent))

    @torch.no_grad()
    def prepare(self, step: int) -> int:
        """List the silent latents, anew every 16 steps.

        On CUDA the list is filled up to a power of two, with latents of no weight, so that few sizes occur.
        """
        if self.config.aux_coefficient == 0:
            return 0
        if step % _REFRESH_STEPS == 0:
            self.silent.copy_(self.tokens_since_fired >= self.dead_after)
            self._silent_list = None
        if self._silent_list is None:
            found = self.silent.nonzero().squeeze(1)
            self._num_silent = self.shards.total(len(found))
            self._silent_list, self._silent_weight = found, None
            if found.is_cuda and self._num_silent:
                self._num_silent = 1 << (self._num_silent - 1).bit_length()
                self._silent_list, self._silent_weight = self._filled_up(found)
        return self._num_silent

    def _filled_up(self, found: Tensor) -> tuple[Tensor, Tensor]:
        """Latents ``found`` [n] and more up to a power of two, and weights: 1, and 0 for those; in the same memory for
        each size, where a recorded step reads them."""
        size = 1 << max(0, len(found) - 1).bit_length()
        latents, weights = self._silent_buffers.setdefault(size, (found.new_zeros(size), self.b_enc.new_zeros(size)))
        latents[: len(found)] = found
        weights.zero_()
        weights[: len(found)] = 1
        return latents, weights

    def aux_loss(self, x: Tensor, x_hat: Tensor, silent: SilentWeights) -> Tensor | None:
        """AuxK, or None while no latent is silent (`prepare`). Only the silent columns are computed."""
        if self._num_silent == 0:
            return None
        residual = (x - x_hat).detach()
        latents = torch.relu(torch.addmm(silent.biases, x, silent.encoder.t()))
        if self._silent_weight is not None:
            latents = latents * self._silent_weight.to(latents.dtype)
        if self._num_silent > self.k_aux:
            values, columns = torch.topk(latents, min(self.k_aux, latents.shape[1]), dim=1, sorted=False)
            among = self.shards.among_largest(values, self.k_aux)
            latents = torch.zeros_like(latents).scatter(1, columns, values if among is None else values * among[0])
        error = (residual - self.shards.sum(latents @ silent.decoder)).square().sum()
        variance = (residual - residual.mean(0)).square().sum()
        return self.config.aux_coefficient * self.d_in * error / variance.clamp_min(1e-12)
