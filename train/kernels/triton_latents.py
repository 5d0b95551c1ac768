"""`train.kernels.latents` for CUDA: a program takes some columns of some rows; sums over rows are added up after it.

What goes into a sum is read once, and once written: [batch, width] in bfloat16 is larger than anything else in a step.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from train.kernels.latents import Jump

_ROWS, _TILE, _COLUMNS = 256, 16, 128


@triton.jit
def _relu_forward(z, latents, totals, counts, rows, width,
                  ROWS: tl.constexpr, TILE: tl.constexpr, COLUMNS: tl.constexpr):
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    total = tl.zeros([TILE, COLUMNS], tl.float32)
    count = tl.zeros([TILE, COLUMNS], tl.float32)
    for first in range(0, ROWS, TILE):
        row = tl.program_id(1) * ROWS + first + tl.arange(0, TILE)
        there = (row < rows)[:, None] & (column < width)[None, :]
        at = row.to(tl.int64)[:, None] * width + column[None, :]
        x = tl.maximum(tl.load(z + at, mask=there, other=0.0).to(tl.float32), 0.0)
        tl.store(latents + at, x, mask=there)
        total += x
        count += (x > 0).to(tl.float32)
    part = tl.program_id(1).to(tl.int64) * width + column
    tl.store(totals + part, tl.sum(total, 0), mask=column < width)
    tl.store(counts + part, tl.sum(count, 0), mask=column < width)


@triton.jit
def _relu_backward(latents, grad, grad_total, to_z, rows, width,
                   ROWS: tl.constexpr, TILE: tl.constexpr, COLUMNS: tl.constexpr):
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    of_total = tl.load(grad_total).to(tl.float32)
    for first in range(0, ROWS, TILE):
        row = tl.program_id(1) * ROWS + first + tl.arange(0, TILE)
        there = (row < rows)[:, None] & (column < width)[None, :]
        at = row.to(tl.int64)[:, None] * width + column[None, :]
        x = tl.load(latents + at, mask=there, other=0.0)
        g = tl.load(grad + at, mask=there, other=0.0).to(tl.float32)
        tl.store(to_z + at, tl.where(x > 0, g + of_total, 0.0), mask=there)


@triton.jit
def _gated_forward(z, b_gate, scale, b_mag, latents, opened, totals, counts, rows, width,
                   ROWS: tl.constexpr, TILE: tl.constexpr, COLUMNS: tl.constexpr):
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    inside = column < width
    shift = tl.load(b_gate + column, mask=inside, other=0.0)
    slope = tl.load(scale + column, mask=inside, other=0.0)
    bias = tl.load(b_mag + column, mask=inside, other=0.0)
    total = tl.zeros([TILE, COLUMNS], tl.float32)
    count = tl.zeros([TILE, COLUMNS], tl.float32)
    for first in range(0, ROWS, TILE):
        row = tl.program_id(1) * ROWS + first + tl.arange(0, TILE)
        there = (row < rows)[:, None] & inside[None, :]
        at = row.to(tl.int64)[:, None] * width + column[None, :]
        x = tl.load(z + at, mask=there, other=0.0).to(tl.float32)
        magnitude = (x - shift[None, :]) * slope[None, :] + bias[None, :]
        active = (x > 0) & (magnitude > 0) & there
        tl.store(latents + at, tl.where(active, magnitude, 0.0), mask=there)
        x = tl.maximum(x, 0.0)
        tl.store(opened + at, x, mask=there)
        total += x
        count += active.to(tl.float32)
    part = tl.program_id(1).to(tl.int64) * width + column
    tl.store(totals + part, tl.sum(total, 0), mask=inside)
    tl.store(counts + part, tl.sum(count, 0), mask=inside)


@triton.jit
def _gated_backward(z, b_gate, scale, b_mag, grad, grad_opened, grad_total, to_z, to_scale, to_b_mag, rows, width,
                    ROWS: tl.constexpr, TILE: tl.constexpr, COLUMNS: tl.constexpr):
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    inside = column < width
    shift = tl.load(b_gate + column, mask=inside, other=0.0)
    slope = tl.load(scale + column, mask=inside, other=0.0)
    bias = tl.load(b_mag + column, mask=inside, other=0.0)
    of_total = tl.load(grad_total).to(tl.float32)
    of_scale = tl.zeros([TILE, COLUMNS], tl.float32)
    of_bias = tl.zeros([TILE, COLUMNS], tl.float32)
    for first in range(0, ROWS, TILE):
        row = tl.program_id(1) * ROWS + first + tl.arange(0, TILE)
        there = (row < rows)[:, None] & inside[None, :]
        at = row.to(tl.int64)[:, None] * width + column[None, :]
        x = tl.load(z + at, mask=there, other=0.0).to(tl.float32)
        g = tl.load(grad + at, mask=there, other=0.0).to(tl.float32)
        of_opened = tl.load(grad_opened + at, mask=there, other=0.0).to(tl.float32) + of_total
        shifted = x - shift[None, :]
        g = tl.where((x > 0) & (shifted * slope[None, :] + bias[None, :] > 0), g, 0.0)
        tl.store(to_z + at, tl.where(x > 0, of_opened, 0.0) + g * slope[None, :], mask=there)
        of_scale += g * shifted
        of_bias += g
    part = tl.program_id(1).to(tl.int64) * width + column
    tl.store(to_scale + part, tl.sum(of_scale, 0), mask=inside)
    tl.store(to_b_mag + part, tl.sum(of_bias, 0), mask=inside)


@triton.jit
def _jump_forward(z, threshold, silent, latents, penalties, pulls, counts, scale, rows, width,
                  TANH: tl.constexpr, PULL: tl.constexpr, ROWS: tl.constexpr, TILE: tl.constexpr,
                  COLUMNS: tl.constexpr):
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    inside = column < width
    t = tl.load(threshold + column, mask=inside, other=0.0)
    penalty = tl.zeros([TILE, COLUMNS], tl.float32)
    pull = tl.zeros([TILE, COLUMNS], tl.float32)
    count = tl.zeros([TILE, COLUMNS], tl.float32)
    for first in range(0, ROWS, TILE):
        row = tl.program_id(1) * ROWS + first + tl.arange(0, TILE)
        there = (row < rows)[:, None] & inside[None, :]
        at = row.to(tl.int64)[:, None] * width + column[None, :]
        x = tl.load(z + at, mask=there, other=0.0).to(tl.float32)
        active = (x > t[None, :]) & there
        latent = tl.where(active, x, 0.0)
        tl.store(latents + at, latent, mask=there)
        count += active.to(tl.float32)
        if TANH:
            penalty += 2 * tl.sigmoid(2 * scale * latent) - 1
        if PULL:
            pull += tl.where(there, tl.maximum(t[None, :] - x, 0.0), 0.0)
    part = tl.program_id(1).to(tl.int64) * width + column
    tl.store(counts + part, tl.sum(count, 0), mask=inside)
    if TANH:
        tl.store(penalties + part, tl.sum(penalty, 0), mask=inside)
    if PULL:
        tl.store(pulls + part, tl.sum(pull, 0) * tl.load(silent + column, mask=inside, other=0.0), mask=inside)


@triton.jit
def _jump_backward(z, threshold, silent, grad, grad_penalty, grad_pull, grad_l0, to_z, to_threshold, scale, bandwidth,
                   rows, width, TANH: tl.constexpr, PULL: tl.constexpr, L0: tl.constexpr,
                   ROWS: tl.constexpr, TILE: tl.constexpr, COLUMNS: tl.constexpr):
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    inside = column < width
    t = tl.load(threshold + column, mask=inside, other=0.0)
    if TANH:
        of_penalty = tl.load(grad_penalty).to(tl.float32) * scale
    if PULL:
        of_pull = tl.load(grad_pull).to(tl.float32) * tl.load(silent + column, mask=inside, other=0.0)
    total = tl.zeros([TILE, COLUMNS], tl.float32)
    for first in range(0, ROWS, TILE):
        row = tl.program_id(1) * ROWS + first + tl.arange(0, TILE)
        there = (row < rows)[:, None] & inside[None, :]
        at = row.to(tl.int64)[:, None] * width + column[None, :]
        x = tl.load(z + at, mask=there, other=0.0).to(tl.float32)
        g = tl.load(grad + at, mask=there, other=0.0).to(tl.float32)
        active = x > t[None, :]
        near = (tl.abs(x - t[None, :]) < bandwidth / 2) & there
        if TANH:
            tanh = 2 * tl.sigmoid(2 * scale * tl.where(active, x, 0.0)) - 1
            g += of_penalty * (1 - tanh * tanh)
        through = tl.where(near, g * (t[None, :] / bandwidth), 0.0)
        out = tl.where(active, g, 0.0)
        if TANH:
            out += through
        total -= through
        if L0:
            of_l0 = tl.load(grad_l0 + row, mask=row < rows, other=0.0).to(tl.float32)
            total -= tl.where(near, of_l0[:, None] / bandwidth, 0.0)
        if PULL:
            pulled = tl.where((x < t[None, :]) & there, of_pull[None, :], 0.0)
            out -= pulled
            total += pulled
        tl.store(to_z + at, out, mask=there)
    tl.store(to_threshold + tl.program_id(1).to(tl.int64) * width + column, tl.sum(total, 0), mask=inside)


def _grid(z: Tensor) -> tuple[int, int]:
    return triton.cdiv(z.shape[1], _COLUMNS), triton.cdiv(len(z), _ROWS)


def _parts(number: int, z: Tensor) -> Tensor:
    """Sums over rows, a part for each program: [number, parts, width]."""
    return torch.empty(number, triton.cdiv(len(z), _ROWS), z.shape[1], dtype=torch.float32, device=z.device)


_TILES = {"ROWS": _ROWS, "TILE": _TILE, "COLUMNS": _COLUMNS, "num_warps": 4}


def relu_forward(z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """See `train.kernels.latents.relu_forward`."""
    z = z.contiguous()
    latents, parts = torch.empty_like(z), _parts(2, z)
    _relu_forward[_grid(z)](z, latents, parts[0], parts[1], *z.shape, **_TILES)
    return latents, parts[0].sum(), parts[1].sum(0).long()


def relu_backward(latents: Tensor, grad: Tensor, grad_total: Tensor) -> Tensor:
    """See `train.kernels.latents.relu_backward`."""
    to_z = torch.empty_like(latents)
    _relu_backward[_grid(latents)](latents, grad.contiguous(), grad_total, to_z, *latents.shape, **_TILES)
    return to_z


def gated_forward(z: Tensor, b_gate: Tensor, scale: Tensor, b_mag: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """See `train.kernels.latents.gated_forward`."""
    z = z.contiguous()
    latents, opened, parts = torch.empty_like(z), torch.empty_like(z), _parts(2, z)
    _gated_forward[_grid(z)](z, b_gate, scale, b_mag, latents, opened, parts[0], parts[1], *z.shape, **_TILES)
    return latents, opened, parts[0].sum(), parts[1].sum(0).long()


def gated_backward(z: Tensor, b_gate: Tensor, scale: Tensor, b_mag: Tensor, grad: Tensor, grad_opened: Tensor,
                   grad_total: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """See `train.kernels.latents.gated_backward`."""
    z = z.contiguous()
    to_z, parts = torch.empty_like(z), _parts(2, z)
    _gated_backward[_grid(z)](z, b_gate, scale, b_mag, grad.contiguous(), grad_opened.contiguous(), grad_total, to_z,
                              parts[0], parts[1], *z.shape, **_TILES)
    to_scale, to_b_mag = parts.sum(1).unbind()
    return to_z, -scale * to_b_mag, to_scale, to_b_mag


def jump_forward(z: Tensor, threshold: Tensor, silent: Tensor | None,
                 jump: Jump) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """See `train.kernels.latents.jump_forward`."""
    z = z.contiguous()
    latents, parts, zero = torch.empty_like(z), _parts(3, z), threshold.new_zeros(())
    tanh, pull = jump.tanh_scale is not None, silent is not None
    _jump_forward[_grid(z)](z, threshold, silent, latents, *parts.unbind(), jump.tanh_scale or 0.0, *z.shape,
                            TANH=tanh, PULL=pull, **_TILES)
    return latents, parts[0].sum() if tanh else zero, parts[1].sum() if pull else zero, parts[2].sum(0).long()


def jump_backward(z: Tensor, threshold: Tensor, silent: Tensor | None, jump: Jump, grad: Tensor, grad_penalty: Tensor,
                  grad_pull: Tensor, grad_l0: Tensor | None) -> tuple[Tensor, Tensor]:
    """See `train.kernels.latents.jump_backward`."""
    z = z.contiguous()
    to_z, parts = torch.empty_like(z), _parts(1, z)
    _jump_backward[_grid(z)](
        z, threshold, silent, grad.contiguous(), grad_penalty, grad_pull,
        None if grad_l0 is None else grad_l0.contiguous(), to_z, parts, jump.tanh_scale or 0.0, jump.bandwidth,
        *z.shape, TANH=jump.tanh_scale is not None, PULL=silent is not None, L0=grad_l0 is not None, **_TILES)
    return to_z, parts[0].sum(0)
