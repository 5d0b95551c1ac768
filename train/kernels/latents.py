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
    """ReLU of ``z`` [batch, width]; the sum of all its values (a scalar), and how many of each column are over zero:
    int64 [width]."""
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


def gated_forward(z: Tensor, b_gate: Tensor, scale: Tensor, b_mag: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The two paths of Gated (`train.architectures.gated`).

    Args:
        z: gates ``[batch, width]``.
        b_gate: ``[width]`` float32, which the gates contain.
        scale: ``[width]`` float32, exp(r_mag).
        b_mag: ``[width]`` float32.

    Returns:
        Latents and ReLU(z), ``[batch, width]``; the sum of all of ReLU(z); how many of each column of the latents are
        over zero, int64 ``[width]``.
    """
    if on_triton(z):
        from train.kernels import triton_latents
        return triton_latents.gated_forward(z, b_gate, scale, b_mag)
    opened = z.relu()
    latents = (torch.addcmul(b_mag, z - b_gate, scale).relu_() * (z > 0)).to(z.dtype)
    return latents, opened, opened.sum(), (latents > 0).sum(0)


def gated_backward(z: Tensor, b_gate: Tensor, scale: Tensor, b_mag: Tensor, grad: Tensor, grad_opened: Tensor,
                   grad_total: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients to the four arguments of `gated_forward`, from those to latents, ReLU(z) and its sum."""
    if on_triton(z):
        from train.kernels import triton_latents
        return triton_latents.gated_backward(z, b_gate, scale, b_mag, grad, grad_opened, grad_total)
    shifted, opened = z - b_gate, z > 0
    of_active = grad * (opened & (torch.addcmul(b_mag, shifted, scale) > 0))
    to_z = torch.addcmul((grad_opened + grad_total) * opened, of_active, scale).to(z.dtype)
    to_b_mag = of_active.sum(0, dtype=scale.dtype)
    return to_z, -scale * to_b_mag, (of_active * shifted).sum(0, dtype=scale.dtype), to_b_mag


def jump_forward(z: Tensor, threshold: Tensor, silent: Tensor | None,
                 jump: Jump) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """JumpReLU and its sums.

    Args:
        z: pre-activations ``[batch, width]``.
        threshold: ``[width]`` float32.
        silent: ``[width]`` float32, 1 for latents that are to be pulled back over their threshold; or None.

    Returns:
        Latents ``[batch, width]``; the sum of tanh(scale * latents), or 0; the sum of silent * relu(threshold - z);
        how many of each column are active, int64 ``[width]``.
    """
    if on_triton(z):
        from train.kernels import triton_latents
        return triton_latents.jump_forward(z, threshold, silent, jump)
    places, penalty, pull = _places(z > threshold), threshold.new_zeros(()), threshold.new_zeros(())
    values = z.flatten()[places]
    latents = torch.zeros_like(z)
    latents.view(-1)[places] = values
    if jump.tanh_scale is not None:
        penalty = torch.tanh(jump.tanh_scale * values).sum()
    if silent is not None:
        pulled = silent.nonzero()[:, 0]
        pull = (torch.relu(threshold[pulled] - z[:, pulled]) @ silent[pulled]).sum()
    return latents, penalty, pull, torch.bincount(places % z.shape[1], minlength=z.shape[1])


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
    # Few latents are active: what only they have is computed for them alone. No mask is multiplied with, which would
    # be converted to numbers first.
    places = _places(z > threshold)
    weight = torch.zeros_like(grad_penalty) if jump.tanh_scale is None else grad_penalty * jump.tanh_scale
    through = grad + weight
    of_active = through.flatten()[places]
    if jump.tanh_scale is not None:  # the slope of the tanh is 1 elsewhere
        of_active -= weight * torch.tanh(jump.tanh_scale * z.flatten()[places]).square()
        through.view(-1)[places] = of_active
    far = (z - threshold).abs_() >= jump.bandwidth / 2
    through.mul_(threshold / jump.bandwidth).masked_fill_(far, 0)
    to_threshold = -through.sum(0, dtype=threshold.dtype)
    if grad_l0 is not None:
        to_threshold -= (grad_l0 @ (~far).to(grad_l0.dtype)) / jump.bandwidth
    to_z = through if jump.tanh_scale is not None else through.zero_()
    to_z.view(-1).index_add_(0, places, of_active)
    if silent is not None:
        pulled = silent.nonzero()[:, 0]
        below = grad_pull * silent[pulled] * (z[:, pulled] < threshold[pulled])
        to_z.index_add_(1, pulled, -below.to(to_z.dtype))
        to_threshold.index_add_(0, pulled, below.sum(0))
    return to_z, to_threshold


def _places(mask: Tensor) -> Tensor:
    """Where ``mask`` is true, in the flattened tensor: int64 [n]."""
    if mask.device.type == "cpu":  # NumPy is faster
        return torch.from_numpy(np.flatnonzero(mask.numpy()))
    return mask.flatten().nonzero()[:, 0]
