"""What `train.optimizer` does to a parameter, in as few passes as it takes."""

import torch
from torch import Tensor

from train.kernels.device import on_triton

EPS = 1e-8
"""Added to the root of Adam's second moment, as in Kingma & Ba 2015."""

_CACHED = 1 << 18
"""Numbers of a matrix that are updated together on a CPU: with gradient and moments 4 MiB."""


def row_products(matrix: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
    """The scalar product of each row with its gradient: ``[rows]``; and the square of the whole gradient's norm.

    Args:
        matrix: ``[rows, d]`` float32.
        gradient: the same shape.
    """
    if on_triton(matrix):
        from train.kernels import triton_rows
        along, squares = triton_rows.row_products(matrix, gradient)
        return along, squares.sum()
    along = torch.cat([torch.linalg.vecdot(gradient[rows], matrix[rows]) for rows in _row_blocks(matrix)])
    return along, torch.linalg.vector_norm(gradient).square()


def adam_unit_rows(weights: Tensor, gradient: Tensor, along: Tensor, mean: Tensor, mean_square: Tensor, step: Tensor,
                   lr: float | Tensor, betas: tuple[float, float], divisor: Tensor | None) -> None:
    """Take the part along each row out of the gradient, update by Adam, and scale the rows back to unit norm.

    Args:
        weights: ``[rows, d]`` float32, changed in place as its moments are; ``gradient`` may be.
        along: ``[rows]``, from `row_products`.
        step: number of this update, from 1, a float32 scalar on the device.
        lr: learning rate; on CUDA also as a scalar on the device.
        divisor: what the gradient is divided by, a scalar on the device, or None.
    """
    if on_triton(weights):
        _adam_on_triton(weights, gradient, along, mean, mean_square, step, lr, betas, divisor)
        return
    for rows in _row_blocks(weights):
        block, grad = weights[rows], gradient[rows]
        grad.addcmul_(block, along[rows, None], value=-1)
        adam(block, grad, mean[rows], mean_square[rows], step, lr, betas, divisor)
        block.div_(torch.linalg.vector_norm(block, dim=1, keepdim=True).clamp_min_(1e-8))


def adam(weights: Tensor, gradient: Tensor, mean: Tensor, mean_square: Tensor, step: Tensor, lr: float | Tensor,
         betas: tuple[float, float], divisor: Tensor | None) -> None:
    """Update by Adam: what torch.optim.Adam(fused=True) does, which takes no rows of a parameter.

    The arguments are those of `adam_unit_rows`; ``weights`` may have any shape.
    """
    if weights.dim() == 2 and not weights.is_contiguous():  # along memory: torch would copy the gradient
        weights, gradient, mean, mean_square = weights.t(), gradient.t(), mean.t(), mean_square.t()
    if on_triton(weights) and weights.dim() == 2:
        _adam_on_triton(weights, gradient, None, mean, mean_square, step, lr, betas, divisor)
        return
    torch._fused_adam_([weights], [gradient], [mean], [mean_square], [], [step], lr=lr, beta1=betas[0], beta2=betas[1],
                       weight_decay=0.0, eps=EPS, amsgrad=False, maximize=False, grad_scale=divisor, found_inf=None)


def _adam_on_triton(weights: Tensor, gradient: Tensor, along: Tensor | None, mean: Tensor, mean_square: Tensor,
                    step: Tensor, lr: float | Tensor, betas: tuple[float, float], divisor: Tensor | None) -> None:
    from train.kernels import triton_rows
    one = torch.ones((), device=weights.device)
    triton_rows.adam(weights, gradient, along, mean, mean_square, step,
                     lr if isinstance(lr, Tensor) else one * lr, betas, one if divisor is None else divisor)


def _row_blocks(matrix: Tensor) -> list[slice]:
    """Rows of a matrix that are worked on together: all on a GPU, as many as stay in the cache of a CPU."""
    together = len(matrix) if matrix.is_cuda else max(1, _CACHED // matrix.shape[1])
    return [slice(start, start + together) for start in range(0, len(matrix), together)]
