"""Learning rates, and the update that keeps rows at unit norm."""

from itertools import pairwise

import pytest
import torch
from torch import nn

from train.optimizer import Adam, default_beta2, default_lr, lr_factor


def test_the_rate_rises_holds_and_falls_to_just_above_zero():
    factors = [lr_factor(step, 100, 0.1, 0.5) for step in range(100)]
    assert factors[0] == pytest.approx(0.1)
    assert factors[9] == factors[49] == 1.0
    assert factors[-1] == pytest.approx(0.02)
    assert all(a >= b for a, b in pairwise(factors[50:]))


def test_a_constant_rate_has_no_shares():
    assert {lr_factor(step, 50, 0.0, 0.0) for step in range(50)} == {1.0}


def test_the_cosine_is_that_of_fast_in_three_parts():
    def factor(step):
        return lr_factor(step, 320_000, 0.05, 0.2, "cosine")

    assert factor(0) == pytest.approx(1 / 16_000)
    assert factor(15_999) == 1.0
    assert factor(16_000 + 120_000) == pytest.approx(0.55)  # the middle of the cosine from 1 to a tenth
    assert factor(16_000 + 80_000) == pytest.approx(0.1 + 0.9 * 0.75)
    assert factor(256_000) == pytest.approx(0.1)
    assert factor(256_000 + 32_000) == pytest.approx(0.05)
    assert factor(319_999) == pytest.approx(0.1 / 64_000)
    assert lr_factor(0, 10, 0.0, 0.0, "cosine") == 1.0


@pytest.mark.parametrize(("num_steps", "steps"), [(10, 100), (1000, 100), (4000, 400), (10_000, 1000), (320_000, 1000)])
def test_adam_looks_back_over_a_tenth_of_the_run_within_bounds(num_steps, steps):
    assert default_beta2(num_steps) == pytest.approx(1 - 1 / steps, abs=1e-12)


def test_the_default_rate_falls_with_width_and_tokens():
    assert default_lr(4608, 1_000_000, 1024) == pytest.approx(3e-3)
    assert default_lr(4 * 4608, 1_000_000, 1024) == pytest.approx(1.5e-3)
    assert 3e-4 < default_lr(4608, 500_000_000, 8192) < 4.5e-4
    assert default_lr(16, 1000, 2048) == 6e-3


def test_small_batches_take_the_root_of_their_share_of_the_rate():
    assert default_lr(4608, 1_000_000, 256) == pytest.approx(1.5e-3)
    assert default_lr(16, 1000, 64) == pytest.approx(1.5e-3)


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


@pytest.mark.parametrize("max_norm", [None, 0.5, 1e9])
def test_unit_rows_and_clipping_are_those_of_separate_passes(max_norm, monkeypatch):
    monkeypatch.setattr("train.kernels.rows._CACHED", 3 * 7)  # three rows at a time, of ten
    generator = torch.Generator().manual_seed(0)
    start = nn.functional.normalize(torch.randn(10, 7, generator=generator), dim=1)
    gradients = [(torch.randn(10, 7, generator=generator), torch.randn(4, generator=generator)) for _ in range(3)]
    weights, bias = nn.Parameter(start.clone()), nn.Parameter(torch.zeros(4))
    adam = Adam([("weights", weights), ("bias", bias)], 1e-2, (0.9, 0.999), {"bias": 2.0}, unit_rows=["weights"])
    for one, two in gradients:
        weights.grad, bias.grad = one.clone(), two.clone()
        adam.step(0.5, max_norm)
    assert weights.grad is None

    reference, other = nn.Parameter(start.clone()), nn.Parameter(torch.zeros(4))
    plain = torch.optim.Adam([{"params": [reference], "lr": 0.5e-2}, {"params": [other], "lr": 1e-2}])
    for one, two in gradients:
        row = reference.detach()
        reference.grad, other.grad = one - (one * row).sum(1, keepdim=True) * row, two.clone()
        if max_norm is not None:
            torch.nn.utils.clip_grad_norm_([reference, other], max_norm)
        plain.step()
        with torch.no_grad():
            reference.div_(reference.norm(dim=1, keepdim=True))
    torch.testing.assert_close(weights, reference, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(bias, other, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(weights.norm(dim=1), torch.ones(10), rtol=1e-6, atol=0)
