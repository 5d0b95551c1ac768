"""Activation functions over all latents of a batch, with the sums over them that losses and counts need: one pass."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from train.kernels.device import on_triton


@dataclass(frozen=True)
class Jump:
    """JumpReLU's constants (`train.architectures.jumprelu`)."""

    bandwidth: float
    """Width of the rectangle of the straight-through gradient."""
    tanh_scale: float | None
    """The factor inside the tanh penalty, whose gradients go through the rectangle to pre-activations too; or None."""


def relu_forward(z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """ReLU of ``z`` [batch, width]; the sum of all its values (a scalar), and how many of each column are over zero."""
    if on_triton(z):
        from train.kernels import triton_latents
        return triton_latents.relu_forward(z)
    latents = z.relu()
    return latents, latents.sum(), (latents > 0).sum(0)


def relu_backward(latents: Tensor, grad: Tensor, grad_total: Tensor) -> Tensor:
    """The gradient to ``z`` from those to ``latents`` [batch, width] and to their sum (a scalar)."""
    if on_triton(latents):
        from train.kernels import triton_latents
        return triton_latents.relu_backward(latents, grad, grad_total)
    return (grad + grad_total) * (latents > 0)


def jump_forward(z: Tensor, threshold: Tensor, silent: Tensor | None,
                 jump: Jump) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """JumpReLU and its sums.

    Args:
        z: pre-activations ``[batch, width]``.
        threshold: ``[width]`` float32.
        silent: ``[width]`` float32, 1 for latents that are to be pulled back over their threshold; or None.

    Returns:
        Latents ``[batch, width]``; the sum of tanh(scale * latents), or 0; the sum of silent * relu(threshold - z);
        how many of each column are active ``[width]``.
    """
    if on_triton(z):
        from train.kernels import triton_latents
        return triton_latents.jump_forward(z, threshold, silent, jump)
    active = z > threshold
    latents = z * active
    penalty = pull = threshold.new_zeros(())
    if jump.tanh_scale is not None:
        penalty = torch.tanh(jump.tanh_scale * latents.flatten()[_places(active)]).sum()
    if silent is not None and silent.any():
        pull = (torch.relu(threshold - z) @ silent).sum()
    return latents, penalty, pull, active.sum(0)


def jump_backward(z: Tensor, threshold: Tensor, silent: Tensor | None, jump: Jump, grad: Tensor, grad_penalty: Tensor,
                  grad_pull: Tensor, grad_l0: Tensor | None) -> tuple[Tensor, Tensor]:
    """Straight-through gradients to ``z`` [batch, width] and to ``threshold`` [width].

    Args:
        grad: to the latents ``[batch, width]``.
        grad_penalty: to the sum of the tanh, a scalar.
        grad_pull: to the pull, a scalar.
        grad_l0: to each row's number of active latents ``[batch]``, or None.
    """
    if on_triton(z):
        from train.kernels import triton_latents
        return triton_latents.jump_backward(z, threshold, silent, jump, grad, grad_penalty, grad_pull, grad_l0)
    active = z > threshold
    if jump.tanh_scale is not None:  # 1 - tanh^2 is 1 but for the few that are active
        weight = grad_penalty * jump.tanh_scale
        places = _places(active)
        tanh = torch.tanh(jump.tanh_scale * z.flatten()[places])
        grad = grad + weight
        grad.view(-1).index_add_(0, places, -weight * tanh.square())
    near = (z - threshold).abs_() < jump.bandwidth / 2
    through = (grad * (threshold / jump.bandwidth)).mul_(near)
    to_z = grad * active
    if jump.tanh_scale is not None:
        to_z += through
    to_threshold = -through.sum(0)
    if grad_l0 is not None:
        to_threshold = to_threshold - (grad_l0 @ near.to(grad_l0.dtype)) / jump.bandwidth
    if silent is not None and silent.any():
        pulled = grad_pull * silent * (z < threshold)
        to_z, to_threshold = to_z - pulled, to_threshold + pulled.sum(0)
    return to_z, to_threshold


def _places(mask: Tensor) -> Tensor:
    """Where ``mask`` is true, in the flattened tensor: int64 [n]."""
    if mask.device.type == "cpu":  # NumPy is faster
        return torch.from_numpy(np.flatnonzero(mask.numpy()))
    return mask.flatten().nonzero()[:, 0]
