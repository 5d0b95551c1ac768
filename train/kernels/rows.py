"""What `train.optimizer` does to a parameter, in as few passes as it takes."""

from typing import NamedTuple

import torch
from torch import Tensor

from train.kernels.device import on_triton

EPS = 1e-8
"""Added to the root of Adam's second moment, as in Kingma & Ba 2015."""

_CACHED = 1 << 18
"""Numbers of a matrix that are updated together on a CPU: with gradient and moments 4 MiB."""


class RowSums(NamedTuple):
    """What is known of a parameter's gradient before the update."""

    along: Tensor | None
    """[rows]: the scalar product of each row with its gradient, for rows that keep unit norm."""
    squares: Tensor
    """The squared norm of the gradient: by Triton that of each row, [rows], so that rows without a gradient are not
    read again; else of the whole, a scalar."""


def row_sums(weights: Tensor, gradient: Tensor, *, unit_rows: bool, written: Tensor | None = None) -> RowSums:
    """See `RowSums`.

    Args:
        weights: float32 of any shape, with ``unit_rows`` ``[rows, d]``.
        written: for Triton's kernels, bool ``[rows]`` along memory: the gradient of other rows is zero, whatever it
            holds, and is read neither here nor by `adam`.
    """
    weights, gradient = _along_memory(weights, gradient)
    if on_triton(weights) and weights.dim() == 2:
        from train.kernels import triton_rows
        return RowSums(*triton_rows.row_sums(weights, gradient, written, unit_rows=unit_rows))
    assert written is None
    along = None
    if unit_rows:
        along = torch.cat([torch.linalg.vecdot(gradient[rows], weights[rows]) for rows in _row_blocks(weights)])
    return RowSums(along, torch.linalg.vector_norm(gradient).square())


def adam(weights: Tensor, gradient: Tensor, sums: RowSums | None, mean: Tensor, mean_square: Tensor, step: Tensor,
         lr: float | Tensor, betas: tuple[float, float], divisor: Tensor | None) -> None:
    """Update by Adam: what torch.optim.Adam(fused=True) does, which takes no rows of a parameter.

    With ``sums.along`` the part along each row is taken out of the gradient before, and the rows scaled back to unit
    norm after it.

    Args:
        weights: float32 of any shape, with ``sums.along`` ``[rows, d]``; changed in place as its moments are;
            ``gradient`` may be.
        sums: of `row_sums`, or None where nothing needs them.
        step: number of this update, from 1, a float32 scalar on the device.
        lr: learning rate; on CUDA also as a scalar on the device.
        divisor: what the gradient is divided by, a scalar on the device, or None.
    """
    along, squares = (None, None) if sums is None else sums
    weights, gradient, mean, mean_square = _along_memory(weights, gradient, mean, mean_square)
    if on_triton(weights) and weights.dim() == 2:
        from train.kernels import triton_rows
        one = torch.ones((), device=weights.device)
        triton_rows.adam(weights, gradient, along, squares, mean, mean_square, step,
                         lr if isinstance(lr, Tensor) else one * lr, betas, one if divisor is None else divisor)
        return
    if along is None:
        _fused_adam(weights, gradient, mean, mean_square, step, lr, betas, divisor)
        return
    for rows in _row_blocks(weights):
        block, grad = weights[rows], gradient[rows]
        grad.addcmul_(block, along[rows, None], value=-1)
        _fused_adam(block, grad, mean[rows], mean_square[rows], step, lr, betas, divisor)
        block.div_(torch.linalg.vector_norm(block, dim=1, keepdim=True).clamp_min_(1e-8))


def _fused_adam(weights: Tensor, gradient: Tensor, mean: Tensor, mean_square: Tensor, step: Tensor, lr: float | Tensor,
                betas: tuple[float, float], divisor: Tensor | None) -> None:
    torch._fused_adam_([weights], [gradient], [mean], [mean_square], [], [step], lr=lr, beta1=betas[0], beta2=betas[1],
                       weight_decay=0.0, eps=EPS, amsgrad=False, maximize=False, grad_scale=divisor, found_inf=None)


def _along_memory(weights: Tensor, *others: Tensor) -> tuple[Tensor, ...]:
    """Matrices that lie by columns, as their transposes: torch would copy the gradient, and Triton's rows are rows in
    memory."""
    if weights.dim() == 2 and not weights.is_contiguous():
        return weights.t(), *(other.t() for other in others)
    return weights, *others


def _row_blocks(matrix: Tensor) -> list[slice]:
    """Rows of a matrix that are worked on together: all on a GPU, as many as stay in the cache of a CPU."""
    together = len(matrix) if matrix.is_cuda else max(1, _CACHED // matrix.shape[1])
    return [slice(start, start + together) for start in range(0, len(matrix), together)]
