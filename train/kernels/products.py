"""Products with a weight matrix, and their gradients."""

from typing import Any

import torch
from torch import Tensor


class _HalfProduct(torch.autograd.Function):
    """``x W + b`` with operands in the precision of autocast and the weights' gradients in float32.

    Autograd would have the product write them in bfloat16, and convert them in another pass.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, W: Tensor, b: Tensor | None) -> Tensor:
        half = torch.get_autocast_dtype(W.device.type)
        ctx.by_columns = not W.is_contiguous()
        ctx.of_x = x.dtype
        x, W = x.to(half), W.to(half)
        ctx.save_for_backward(x, W)
        ctx.biased = b is not None
        return x @ W if b is None else torch.addmm(b.to(half), x, W)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, W = ctx.saved_tensors
        grad = grads[0].to(x.dtype)
        of_x = of_W = of_b = None
        if ctx.needs_input_grad[0]:
            of_x = (grad @ W.t()).to(ctx.of_x)
        if ctx.needs_input_grad[1]:  # in the memory layout of W
            of_W = (torch.mm(grad.t(), x, out_dtype=torch.float32).t() if ctx.by_columns
                    else torch.mm(x.t(), grad, out_dtype=torch.float32))
        if ctx.biased and ctx.needs_input_grad[2]:
            of_b = grad.sum(0, dtype=torch.float32)
        return of_x, of_W, of_b


def product(x: Tensor, W: Tensor, b: Tensor | None = None) -> Tensor:
    """``x W + b``: [batch, n], [n, m], [m] -> [batch, m], in the precision of autocast where that is on.

    ``W`` lies in memory by rows or by columns, and its gradient will too.
    """
    if W.is_cuda and torch.is_autocast_enabled("cuda"):
        found: Tensor = _HalfProduct.apply(x, W, b)  # type: ignore[no-untyped-call]
        return found
    return x @ W if b is None else torch.addmm(b, x, W)
