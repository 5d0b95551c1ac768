"""Learning rates."""

from itertools import pairwise

import pytest
import torch
from torch import nn

from train.optimizer import Adam, default_lr, lr_factor


def test_the_rate_rises_holds_and_falls_to_just_above_zero():
    factors = [lr_factor(step, 100, 0.1, 0.5) for step in range(100)]
    assert factors[0] == pytest.approx(0.1)
    assert factors[9] == factors[49] == 1.0
    assert factors[-1] == pytest.approx(0.02)
    assert all(a >= b for a, b in pairwise(factors[50:]))


def test_a_constant_rate_has_no_shares():
    assert {lr_factor(step, 50, 0.0, 0.0) for step in range(50)} == {1.0}


def test_the_default_rate_falls_with_width_and_tokens():
    assert default_lr(4608, 1_000_000) == pytest.approx(3e-3)
    assert default_lr(4 * 4608, 1_000_000) == pytest.approx(1.5e-3)
    assert 3e-4 < default_lr(4608, 500_000_000) < 4.5e-4
    assert default_lr(16, 1000) == 6e-3


def test_a_transposed_parameter_is_updated_like_a_plain_one():
    value, grad = torch.randn(5, 7), torch.randn(5, 7)
    plain, transposed = nn.Parameter(value.clone()), nn.Parameter(value.t().contiguous().t())
    assert not transposed.is_contiguous()
    for parameter in (plain, transposed):
        adam = Adam([("w", parameter)], 1e-2, (0.9, 0.999), {})
        for _ in range(3):
            parameter.grad = grad.clone() if parameter is plain else grad.t().contiguous().t()
            adam.step(1.0)
    assert torch.equal(plain, transposed)
