"""The sparse half of a step: only the active latents are decoded and differentiated.

With k of d_sae latents active, decoding costs k/d_sae of the dense product, and so do the gradients of both
weight matrices. All four products are ``embedding_bag`` sums: over the latents of a row (decode), and, after
the selected pairs are sorted by latent (CSC), over the rows of a latent (the weights' gradients). Sums run in
a fixed order. (The gradient of b_enc adds up in any order on CUDA, unless --deterministic asks for one.) Dense
autograd is the reference in tests. Under autocast operands are in its precision and sums in float32, as in dense
products.

TopK kinds select a known number of pairs. Where an activation function decides (`active_pairs`), few latents are
active too once an SAE is sparse: a ReLU's or a gate's gradient stops at the others (`gather_pre_acts`), while one
that goes on there (a straight-through estimate) needs the gradient of every latent (`decode_active`).
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from train.kernels.bags import bag_sum, pair_products
from train.kernels.device import on_triton
from train.kernels.products import product

_SPARSE_SHARE = 1 / 16
"""Share of active latents up to which sparse sums are taken on a CPU. They cost as much as dense ones at about a
tenth."""


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
    latents_by_latent: Tensor
    """[n], ascending: the latents in that order."""
    latent_offsets: Tensor
    """[d_sae]: where each latent's pairs begin in that order."""
    counts: Tensor
    """[d_sae]: pairs of each latent."""
    written: Tensor | None = None
    """bool [d_sae]: latents whose rows of the weights' gradients are to be written, or None for all."""


def select_pairs(flat: Tensor, batch: int, d_sae: int) -> Selection:
    """Index selected pairs, given as row * d_sae + latent and sorted by row."""
    rows = torch.div(flat, d_sae, rounding_mode="floor")
    latents = flat - rows * d_sae
    by_latent = torch.argsort(latents.to(torch.int32), stable=True)
    counts, per_row = _count(latents, d_sae), _count(rows, batch)
    return Selection(
        flat=flat,
        rows=rows,
        latents=latents,
        row_offsets=per_row.cumsum(0) - per_row,
        by_latent=by_latent,
        rows_by_latent=rows[by_latent],
        latents_by_latent=latents[by_latent],
        latent_offsets=counts.cumsum(0) - counts,
        counts=counts,
    )


def divided(selection: Selection, part_of: Tensor, parts: int) -> Selection:
    """The pairs of ``selection`` with every row divided by latents: rows are row * parts + part, for `decode_pairs`
    alone (``flat`` is still of the whole rows).

    Args:
        selection: its pairs sorted by row and latent.
        part_of: ``[d_sae]`` int64, ascending: the part, 0 ... parts - 1, of each latent.
    """
    rows = selection.rows * parts + part_of[selection.latents]
    per_row = _count(rows, len(selection.row_offsets) * parts)
    return replace(selection, rows=rows, row_offsets=per_row.cumsum(0) - per_row,
                   rows_by_latent=rows[selection.by_latent])


def _count(numbers: Tensor, length: int) -> Tensor:
    """How often each of 0 ... length - 1 is there, int64; unlike torch.bincount without a wait for a GPU."""
    return numbers.new_zeros(length).index_add_(0, numbers, torch.ones_like(numbers))


def active_pairs(latents: Tensor) -> Tensor | None:
    """Where ``latents`` [batch, d_sae] are over zero, as row * d_sae + latent, sorted by row: int64 [n].

    None where dense products are as fast: with many active latents, and on a GPU, where the number of pairs
    would have to be waited for.
    """
    if latents.device.type != "cpu":
        return None
    flat = np.flatnonzero(latents.detach().numpy() > 0)
    return torch.from_numpy(flat) if len(flat) <= _SPARSE_SHARE * latents.numel() else None


def _operand(matrix: Tensor, selection: Selection) -> Tensor:
    """What sums take rows from: in the precision of autocast, where copying all rows costs less than it saves.

    torch's own sums take no rows of another precision than their weights.
    """
    kind = matrix.device.type
    if on_triton(matrix) and torch.is_autocast_enabled(kind) and len(selection.flat) > 2 * len(matrix):
        return matrix.to(torch.get_autocast_dtype(kind))
    return matrix


def _sum_by_latent(dense: Tensor, values: Tensor, selection: Selection) -> Tensor:
    """``sum over pairs of values * dense[row]`` for each latent: [batch, d], [n] -> [d_sae, d]."""
    return bag_sum(dense, selection.rows_by_latent, selection.latent_offsets, values[selection.by_latent],
                   selection.written)


def _decode(values: Tensor, W_dec: Tensor, selection: Selection) -> Tensor:
    """``sum over pairs of values * W_dec[latent]`` for each row: [n], [d_sae, d] -> [batch, d]."""
    return bag_sum(W_dec, selection.latents, selection.row_offsets, values)


class _GatherPreActs(torch.autograd.Function):
    """``(x W_enc + b_enc)[rows, latents]`` from pre-activations already there; no gradient to x.

    And the weights of the latents ``also``. Their gradients are added to the others in place: by themselves they would
    be a matrix of zeros with a few rows filled, and autograd would add two matrices.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, W_enc: Tensor, b_enc: Tensor, pre_acts: Tensor, selection: Selection,
                also: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        ctx.save_for_backward(_operand(x, selection), also)
        ctx.selection = selection
        values = pre_acts.flatten().index_select(0, selection.flat).to(W_enc.dtype)  # bf16 under autocast
        return values, W_enc.t().index_select(0, also), b_enc.index_select(0, also)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, Tensor, Tensor, None, None, None]:
        grad, of_rows, of_biases = grads
        x, also = ctx.saved_tensors
        grad_W = _sum_by_latent(x, grad, ctx.selection)
        grad_b = grad.new_zeros(len(ctx.selection.counts)).index_add_(0, ctx.selection.latents, grad)
        grad_W.index_add_(0, also, of_rows)
        grad_b.index_add_(0, also, of_biases)
        return None, grad_W.t(), grad_b, None, None, None


class _DecodePairs(torch.autograd.Function):
    """``latents W_dec`` where the latents are n values at the selected pairs and zero elsewhere; and the rows of the
    latents ``also``, as in `_GatherPreActs`."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, W_dec: Tensor, selection: Selection,
                also: Tensor) -> tuple[Tensor, Tensor]:
        rows = W_dec.index_select(0, also)
        W_dec = _operand(W_dec, selection)
        ctx.save_for_backward(values, W_dec, also)
        ctx.selection = selection
        return _decode(values, W_dec, selection), rows

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor | None, None, None]:
        values, W_dec, also = ctx.saved_tensors
        grad = grads[0].to(W_dec.dtype).contiguous()
        selection: Selection = ctx.selection
        # <grad[row], W_dec[latent]> for each pair, without gathering either. By latent, because the rows of
        # grad stay in the processor's cache and those of W_dec do not.
        products = pair_products(W_dec, selection.latents_by_latent, grad, selection.rows_by_latent)
        grad_values = torch.empty_like(values).index_copy_(0, selection.by_latent, products)
        if not ctx.needs_input_grad[1]:
            return grad_values, None, None, None
        return grad_values, _sum_by_latent(grad, values, selection).index_add_(0, also, grads[1]), None, None


class _DecodeActive(torch.autograd.Function):
    """``latents W_dec`` where only the selected latents are not zero; the gradient to the latents is dense."""

    @staticmethod
    def forward(ctx: Any, latents: Tensor, W_dec: Tensor, selection: Selection) -> Tensor:
        values = latents.flatten().index_select(0, selection.flat)
        ctx.save_for_backward(values, W_dec)
        ctx.selection = selection
        return _decode(values, W_dec, selection)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor | None, None]:
        grad = grads[0].contiguous()
        values, W_dec = ctx.saved_tensors
        of_decoder = _sum_by_latent(grad, values, ctx.selection) if ctx.needs_input_grad[1] else None
        return grad @ W_dec.t(), of_decoder, None


def nothing_of(tensor: Tensor) -> Tensor:
    """No latents: int64 [0], on the device of ``tensor``."""
    return tensor.new_empty(0, dtype=torch.int64)


def gather_pre_acts(x: Tensor, W_enc: Tensor, b_enc: Tensor, pre_acts: Tensor, selection: Selection,
                    also: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Selected pre-activations [n], differentiable in ``W_enc`` and ``b_enc``.

    Of the latents ``also`` [m] (by default none), the columns of ``W_enc`` as rows [m, d_in] and the biases [m] come
    with them, differentiable at the cost of these m.
    """
    also = nothing_of(x) if also is None else also
    found: tuple[Tensor, Tensor, Tensor] = _GatherPreActs.apply(  # type: ignore[no-untyped-call]
        x, W_enc, b_enc, pre_acts, selection, also)
    return found


def decode_pairs(values: Tensor, W_dec: Tensor, selection: Selection,
                 also: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Decoded values [batch, d_in] without ``b_dec``, differentiable in ``values`` [n] and ``W_dec``; and the rows of
    ``W_dec`` of the latents ``also``, as in `gather_pre_acts`: [m, d_in]."""
    also = nothing_of(values) if also is None else also
    found: tuple[Tensor, Tensor] = _DecodePairs.apply(  # type: ignore[no-untyped-call]
        values, W_dec, selection, also)
    return found


def decode_active(latents: Tensor, W_dec: Tensor) -> Tensor:
    """``latents W_dec`` [batch, d_in] without ``b_dec``, by sparse sums where few ``latents`` are active.

    The gradient to the latents is dense: one that passes through latents which are zero is not lost.
    """
    flat = active_pairs(latents)
    if flat is None:
        return product(latents, W_dec)
    decoded: Tensor = _DecodeActive.apply(  # type: ignore[no-untyped-call]
        latents, W_dec, select_pairs(flat, len(latents), latents.shape[1]))
    return decoded
