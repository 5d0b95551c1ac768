"""Matryoshka BatchTopK (Bussmann, Nabeshima, Karvonen, Nanda 2025, arXiv 2503.17547): nested dictionaries.

    latents = BatchTopK(x W_enc + b_enc)                      over all d_sae latents (`train.architectures.batchtopk`)
    x_hat_m = sum_{g <= m} latents_g W_dec_g + b_dec          from the first d_m latents, d_1 < d_2 < ... < d_M = d_sae
    loss    = mean_m |x - x_hat_m|^2 + AuxK of x_hat_M        AuxK as TopK's (`train.architectures.topk`)

averaged over the batch, rows of W_dec of unit norm. Each prefix has to reconstruct by itself, so the first latents
learn general features and later ones do not absorb them. The prefixes are nested: each group is decoded once, and
the residual of one prefix less the next group's part is that of the next. The paper takes the sum over prefixes;
the mean is the same but for the weight beside AuxK, which it leaves as it is in BatchTopK whatever M.

The threshold of inference, and the form on disk (JumpReLU), are BatchTopK's.
"""

import itertools

import torch
from pydantic import Field, field_validator
from torch import Tensor

from train.architectures.base import Loss, RunLength
from train.architectures.batchtopk import BatchTopKSAE
from train.architectures.sparse import decode_pairs, divided
from train.architectures.topk import SilentWeights, TopKConfig
from train.kernels.products import product
from train.shards import ALONE, Shards


class MatryoshkaConfig(TopKConfig):
    """Fields of a [[sae]] table with ``architecture = "matryoshka"``."""

    prefixes: tuple[float, ...] = Field(default=(1 / 32, 3 / 32, 7 / 32, 15 / 32), min_length=1)
    """Widths of the inner dictionaries as shares of d_sae, ascending; d_sae itself is always the last. The default
    are the paper's 2,048, 6,144, 14,336 and 30,720 of 65,536."""

    @field_validator("prefixes")
    @classmethod
    def _ascending(cls, prefixes: tuple[float, ...]) -> tuple[float, ...]:
        if list(prefixes) != sorted(set(prefixes)) or not 0 < prefixes[0] <= prefixes[-1] < 1:
            raise ValueError("must be ascending shares between 0 and 1")
        return prefixes

    def group_sizes(self, d_sae: int) -> list[int]:
        """Widths of the groups that each prefix adds to the one before; they add up to ``d_sae``."""
        widths = sorted({max(1, round(share * d_sae)) for share in self.prefixes} | {d_sae})
        return [width - before for width, before in zip(widths, [0, *widths[:-1]], strict=True)]


class MatryoshkaSAE(BatchTopKSAE):
    """See the module's docstring."""

    Config = MatryoshkaConfig
    name = "matryoshka"

    group_of: Tensor
    """[width]: the group of each latent."""

    def __init__(self, config: MatryoshkaConfig, d_in: int, length: RunLength, shards: Shards = ALONE) -> None:
        super().__init__(config, d_in, length, shards)
        # Of each group, what is among this process's latents: there may be nothing.
        first = shards.rank * self.width
        edges = [min(max(edge - first, 0), self.width)
                 for edge in (0, *itertools.accumulate(config.group_sizes(self.d_sae)))]
        self.group_sizes = [stop - start for start, stop in itertools.pairwise(edges)]
        groups = torch.arange(len(self.group_sizes)).repeat_interleave(torch.tensor(self.group_sizes))
        self.register_buffer("group_of", groups, persistent=False)

    def loss(self, x: Tensor, step: int) -> Loss:
        if step == 0:
            self.start(x)
        found = self._parts_sparse(x) if self.sums_pairs(x) else self._parts_dense(x)
        parts, counts, silent, with_gradient = found
        residual = x - self.b_dec
        prefix_errors = []
        for part in self.shards.sum(parts).unbind(1):
            residual = residual - part
            prefix_errors.append(residual.square().sum() / len(x))
        error = torch.stack(prefix_errors).mean()
        aux = self.aux_loss(x, x - residual, silent)
        total = error if aux is None else error + aux
        return Loss(total=total, mse=prefix_errors[-1].detach() / self.d_in, sparsity=error.new_zeros(()),
                    aux=error.new_zeros(()) if aux is None else aux.detach(),
                    l0=self.shards.sum(counts.sum()) / len(x), counts=counts, with_gradient=with_gradient)

    def _parts_sparse(self, x: Tensor) -> tuple[Tensor, Tensor, SilentWeights, Tensor | None]:
        """Each group's part of the reconstruction ``[batch, groups, d_in]``, counts, silent latents and
        `Loss.with_gradient`; over selected pairs only."""
        values, selection, counts, encoder, biases = self.select(x)
        by_group = divided(selection, self.group_of, len(self.group_sizes))
        parts, decoder = decode_pairs(values, self.W_dec, by_group, self._silent_list)
        silent = SilentWeights(encoder, biases, decoder)
        return parts.view(len(x), -1, self.d_in), counts, silent, selection.written

    def _parts_dense(self, x: Tensor) -> tuple[Tensor, Tensor, SilentWeights, None]:
        """The same through dense autograd."""
        pre_acts = self.pre_acts(x)
        with torch.no_grad():
            mask = torch.zeros_like(pre_acts, dtype=torch.bool)
            mask.view(-1).index_fill_(0, self.choose(pre_acts), True)
            mask &= pre_acts > 0
        latents = torch.split(pre_acts * mask, self.group_sizes, dim=1)
        decoders = torch.split(self.W_dec, self.group_sizes)
        parts = [product(group, W_dec) for group, W_dec in zip(latents, decoders, strict=True)]
        return torch.stack(parts, 1), mask.sum(0), self._silent_weights(), None
