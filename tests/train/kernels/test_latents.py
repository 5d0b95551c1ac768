"""Activation functions in bfloat16, as autocast has them where Triton cannot run; in float32 they are held to the
references of `tests.train.architectures.test_losses`."""

import pytest
import torch

from train.kernels.latents import (
    Jump,
    gated_backward,
    gated_forward,
    jump_backward,
    jump_forward,
    relu_backward,
    relu_forward,
)


@pytest.mark.parametrize("jump", [Jump(0.8, 4.0), Jump(0.8, None)])
def test_operands_in_bfloat16_give_the_sums_and_gradients_of_float32(jump):
    generator = torch.Generator().manual_seed(0)
    z, grad = (torch.randn(300, 40, generator=generator).bfloat16() for _ in range(2))
    threshold, grad_l0 = torch.rand(40, generator=generator), torch.randn(300, generator=generator)
    silent, (a, b) = (torch.arange(40) % 3 == 0).float(), torch.tensor([0.3, 0.7])
    found = {}
    for dtype in (torch.bfloat16, torch.float32):
        x, g = z.to(dtype), grad.to(dtype)
        rows = grad_l0 if jump.tanh_scale is None else None
        gate = x, threshold, 0.5 + silent, -threshold
        found[dtype] = [*relu_forward(x), relu_backward(x.relu(), g, a), *jump_forward(x, threshold, silent, jump),
                        *gated_forward(*gate), *gated_backward(*gate, g, x, b),
                        *jump_backward(x, threshold, silent, jump, g, a, b, rows)]
    for half, whole in zip(found[torch.bfloat16], found[torch.float32], strict=True):
        assert (half.float() - whole).norm() <= 8e-3 * whole.float().norm()  # bfloat16 has 8 bits
    assert found[torch.bfloat16][-1].dtype == torch.float32  # the thresholds' gradient
