"""The sparse half of a TopK step: only the selected pre-activations are decoded and differentiated.

With k of d_sae latents active, decoding costs k/d_sae of the dense product, and so do the gradients of both
weight matrices. All four products are ``embedding_bag`` sums: over the latents of a row (decode), and, after
the selected pairs are sorted by latent (CSC), over the rows of a latent (the weights' gradients). Sums run in
a fixed order, so a step gives the same bits every time. Dense autograd is the reference in tests.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag


@dataclass(frozen=True)
class Selection:
    """The n selected (row, latent) pairs of a batch, by row and by latent. All int64."""

    flat: Tensor
    """[n]: row * d_sae + latent, rows ascending."""
    rows: Tensor
    """[n], ascending."""
    latents: Tensor
    """[n]"""
    row_offsets: Tensor
    """[batch]: where each row's pairs begin."""
    by_latent: Tensor
    """[n]: the order that sorts the pairs by latent, rows ascending."""
    rows_by_latent: Tensor
    """[n]: the rows in that order."""
    latent_offsets: Tensor
    """[d_sae]: where each latent's pairs begin in that order."""
    counts: Tensor
    """[d_sae]: pairs of each latent."""


def select_pairs(flat: Tensor, batch: int, d_sae: int) -> Selection:
    """Index selected pairs, given as row * d_sae + latent and sorted by row."""
    rows = torch.div(flat, d_sae, rounding_mode="floor")
    latents = flat - rows * d_sae
    by_latent = torch.argsort(latents.to(torch.int32), stable=True)
    counts = torch.bincount(latents, minlength=d_sae)
    per_row = torch.bincount(rows, minlength=batch)
    return Selection(
        flat=flat,
        rows=rows,
        latents=latents,
        row_offsets=per_row.cumsum(0) - per_row,
        by_latent=by_latent,
        rows_by_latent=rows[by_latent],
        latent_offsets=counts.cumsum(0) - counts,
        counts=counts,
    )


def _sum_by_latent(dense: Tensor, values: Tensor, selection: Selection) -> Tensor:
    """``sum over pairs of values * dense[row]`` for each latent: [batch, d], [n] -> [d_sae, d]."""
    return embedding_bag(selection.rows_by_latent, dense, selection.latent_offsets, mode="sum",
                         per_sample_weights=values[selection.by_latent])


class _GatherPreActs(torch.autograd.Function):
    """``(x W_enc + b_enc)[rows, latents]`` from pre-activations already there; no gradient to x."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, W_enc: Tensor, b_enc: Tensor, pre_acts: Tensor,
                selection: Selection) -> Tensor:
        ctx.save_for_backward(x)
        ctx.selection = selection
        return pre_acts.flatten().index_select(0, selection.flat)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, Tensor, Tensor, None, None]:
        (grad,) = grads
        (x,) = ctx.saved_tensors
        grad_W = _sum_by_latent(x, grad, ctx.selection).t()
        grad_b = torch.zeros(len(ctx.selection.counts), dtype=grad.dtype).index_add_(0, ctx.selection.latents, grad)
        return None, grad_W, grad_b, None, None


class _DecodePairs(torch.autograd.Function):
    """``latents W_dec`` where the latents are n values at the selected pairs and zero elsewhere."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, W_dec: Tensor, selection: Selection) -> Tensor:
        ctx.save_for_backward(values, W_dec)
        ctx.selection = selection
        return embedding_bag(selection.latents, W_dec, selection.row_offsets, mode="sum",
                             per_sample_weights=values)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        grad = grads[0].contiguous()
        values, W_dec = ctx.saved_tensors
        selection: Selection = ctx.selection
        # <grad[row], W_dec[latent]> for each pair, without gathering either.
        grad_values = torch.ops.aten._embedding_bag_per_sample_weights_backward(
            grad, W_dec, selection.latents, selection.row_offsets, selection.rows, 0)
        return grad_values, _sum_by_latent(grad, values, selection), None


def gather_pre_acts(x: Tensor, W_enc: Tensor, b_enc: Tensor, pre_acts: Tensor, selection: Selection) -> Tensor:
    """Selected pre-activations [n], differentiable in ``W_enc`` and ``b_enc``."""
    values: Tensor = _GatherPreActs.apply(x, W_enc, b_enc, pre_acts, selection)  # type: ignore[no-untyped-call]
    return values


def decode_pairs(values: Tensor, W_dec: Tensor, selection: Selection) -> Tensor:
    """Decoded values [batch, d_in] without ``b_dec``, differentiable in ``values`` [n] and ``W_dec``."""
    decoded: Tensor = _DecodePairs.apply(values, W_dec, selection)  # type: ignore[no-untyped-call]
    return decoded
