"""Activation functions over all latents, with the sums that penalties and counts need, and hand-derived gradients.

What they compute is in `train.kernels.latents`: one pass forward and one back where autograd would take one for each
operation. In a step with thousands of latents those passes cost as much as its products.
"""

from typing import Any

import torch
from torch import Tensor

from train.kernels import latents as kernels
from train.kernels.latents import Jump


class _Rectify(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        latents, total, counts = kernels.relu_forward(z)
        ctx.save_for_backward(latents)
        ctx.mark_non_differentiable(counts)
        return latents, total, counts

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (latents,) = ctx.saved_tensors
        return kernels.relu_backward(latents, grads[0], grads[1])


class _Gated(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z: Tensor, *of_latents: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        latents, opened, total, counts = kernels.gated_forward(z, *of_latents)
        ctx.save_for_backward(z, *of_latents)
        ctx.mark_non_differentiable(counts)
        return latents, opened, total, counts

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return kernels.gated_backward(*ctx.saved_tensors, *grads[:3])


class _Jump(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z: Tensor, threshold: Tensor, silent: Tensor | None,
                constants: Jump) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None]:
        latents, penalty, pull, counts = kernels.jump_forward(z, threshold, silent, constants)
        row_l0 = (latents > 0).sum(1).to(threshold.dtype) if constants.tanh_scale is None else None
        ctx.save_for_backward(z, threshold, silent)
        ctx.constants = constants
        ctx.mark_non_differentiable(counts)
        return latents, penalty, pull, counts, row_l0

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None, None]:
        z, threshold, silent = ctx.saved_tensors
        of_latents, of_penalty, of_pull, _, of_l0 = grads
        to_z, to_threshold = kernels.jump_backward(z, threshold, silent, ctx.constants, of_latents, of_penalty, of_pull,
                                                   of_l0 if ctx.constants.tanh_scale is None else None)
        return to_z, to_threshold, None, None


def rectify(z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """ReLU of ``z`` [batch, width]; the sum of all its values (a scalar); and how many of each column are active."""
    latents, total, counts = _Rectify.apply(z)  # type: ignore[no-untyped-call]
    return latents, total, counts


def gated(z: Tensor, b_gate: Tensor, scale: Tensor, b_mag: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gated's latents and opened gates, both [batch, width], of gates ``z``; the sum of the opened gates; and how many
    of each column are active. See `train.kernels.latents.gated_forward`."""
    latents, opened, total, counts = _Gated.apply(z, b_gate, scale, b_mag)  # type: ignore[no-untyped-call]
    return latents, opened, total, counts


def jump(z: Tensor, threshold: Tensor, silent: Tensor | None,
         constants: Jump) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None]:
    """JumpReLU of ``z`` [batch, width] with the straight-through gradients of `train.architectures.jumprelu`.

    Args:
        threshold: ``[width]``.
        silent: ``[width]``, 1 for latents that are to be pulled back over their threshold; or None.

    Returns:
        Latents; the sum of tanh(scale * latents), or 0; the sum of silent * relu(threshold - z); how many of each
        column are active ``[width]``; and, where there is no tanh, each row's L0 ``[batch]``, differentiable.
    """
    found: tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None] = _Jump.apply(  # type: ignore[no-untyped-call]
        z, threshold, silent, constants)
    return found
