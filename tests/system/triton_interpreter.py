"""Triton's kernels against torch's operations, run by Triton's interpreter on a CPU: for `test_triton`.

Run with TRITON_INTERPRET=1, and triton and this project on PYTHONPATH. Says how many comparisons held.
"""

import sys
from typing import Any

import torch
from torch.testing import assert_close

from train.architectures import ARCHITECTURES
from train.architectures.base import RunLength
from train.config import TrainConfig
from train.kernels import bags, latents, rows, triton_bags, triton_latents, triton_rows
from train.kernels.latents import Jump
from train.trainer import Trainer

generator = torch.Generator().manual_seed(0)


def normal(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=generator)


def filled_with_nan(*shape: int, **options: Any) -> torch.Tensor:
    """torch.empty, of which nothing may be read that was not written."""
    made = unfilled(*shape, **options)
    return made.fill_(torch.nan) if made.is_floating_point() else made


unfilled, torch.empty = torch.empty, filled_with_nan


def compare_bags() -> int:
    counts = torch.tensor([0, 5, 1, 0, 150, 0, 64])  # empty ones, some with a rest, some without
    offsets, pairs = counts.cumsum(0) - counts, int(counts.sum())
    for d in (40, 300, 1030):
        left, right, values = normal(13, d), normal(9, d), normal(pairs)
        a, b = (torch.randint(size, (pairs,), generator=generator) for size in (13, 9))
        expected = bags.bag_sum(left, a, offsets, values)
        assert_close(triton_bags.bag_sum(left, a, offsets, values), expected, rtol=1e-4, atol=1e-4)
        written = torch.tensor([False, True, True, True, True, False, True])
        found = triton_bags.bag_sum(left, a, offsets, values, written)
        assert_close(found[written], expected[written], rtol=1e-4, atol=1e-4)
        assert found[~written].isnan().all()
        assert_close(triton_bags.pair_products(left, a, right, b), bags.pair_products(left, a, right, b),
                     rtol=1e-4, atol=1e-4)
    return 9


def compare_rows() -> int:
    done = 0
    plain, none = (0.9, 0.999), (0.0, 0.0)
    for d in (40, 300):
        weights, gradient = torch.nn.functional.normalize(normal(11, d), dim=1), normal(11, d)
        gradient[2:5] = 0  # rows of latents that were not selected
        for step, divisor, unit, betas in ((1.0, 1.0, True, plain), (7.0, 2.5, True, plain), (1.0, 2.5, False, plain),
                                           (7.0, 1.0, False, plain), (2.0, 1.0, False, none)):
            along, squares = triton_rows.row_sums(weights, gradient, unit_rows=unit)
            expected = rows.row_sums(weights, gradient, unit_rows=unit)
            assert_close(along, expected.along)
            assert_close(squares, gradient.square().sum(1))
            assert_close(squares.sum(), expected.squares)
            parts = [weights, gradient, 0.1 * normal(11, d), normal(11, d).square()]
            shared = torch.tensor(step), torch.tensor(1e-2), betas, torch.tensor(divisor)
            for known in (squares,) if unit else (squares, None):
                ours, theirs = ([part.clone() for part in parts] for _ in range(2))
                triton_rows.adam(*ours[:2], along, known, *ours[2:], *shared)
                rows.adam(*theirs[:2], expected, *theirs[2:], *shared)
                for at in (0, 2, 3):
                    assert_close(ours[at], theirs[at], rtol=1e-5, atol=5e-6)
                done += 1
    # Rows of zeros are not read: neither what they would be multiplied with nor, the second time, they themselves.
    weights[2:5], unread = torch.nan, gradient.clone()
    along, squares = triton_rows.row_sums(weights, gradient, unit_rows=True)
    assert_close(along[2:5], torch.zeros(3))
    unread[2:5] = torch.nan
    written = gradient[:, 0] != 0
    assert_close(triton_rows.row_sums(weights, unread, written, unit_rows=True), (along, squares))
    moments = torch.zeros_like(gradient), torch.ones_like(gradient)
    triton_rows.adam(gradient.clone(), unread, None, squares, *moments, torch.tensor(1.0), torch.tensor(1e-2), plain,
                     torch.tensor(1.0))
    assert all(moment.isfinite().all() for moment in moments)
    return done + 3


def compare_latents() -> int:
    done = 0
    for batch, width in ((300, 130), (20, 40)):
        z, grad, grad_l0, total = normal(batch, width), normal(batch, width), normal(batch), torch.tensor(0.3)
        found = [*triton_latents.relu_forward(z), triton_latents.relu_backward(z.relu(), grad, total)]
        expected = [*latents.relu_forward(z), latents.relu_backward(z.relu(), grad, total)]
        threshold, silent = (torch.rand(width, generator=generator) for _ in range(2))
        gate = z, threshold, 0.5 + silent, threshold - silent
        of_gate = *gate, grad, normal(batch, width), total
        found += [*triton_latents.gated_forward(*gate), *triton_latents.gated_backward(*of_gate)]
        expected += [*latents.gated_forward(*gate), *latents.gated_backward(*of_gate)]
        for jump, of_l0 in ((Jump(0.8, 4.0), None), (Jump(0.8, None), grad_l0), (Jump(0.8, None), None)):
            for pulled in (None, (silent < 0.3).float()):
                forward = (z, threshold, pulled, jump)
                backward = (*forward, grad, total, torch.tensor(0.7), of_l0)
                found += [*triton_latents.jump_forward(*forward), *triton_latents.jump_backward(*backward)]
                expected += [*latents.jump_forward(*forward), *latents.jump_backward(*backward)]
        for ours, theirs in zip(found, expected, strict=True):
            assert_close(ours, theirs, rtol=1e-4, atol=1e-4)  # and of the same kind of number
            done += 1
    return done


def compare_trainings() -> int:
    """TopK kinds, which leave rows of gradients unwritten: all kernels of a step together, AuxK among them.

    With a tied start a few latents barely pass zero, and Adam divides their gradients, rounding errors, by themselves.
    """
    data = [normal(8, 20) for _ in range(4)]
    names = ("topk", "batchtopk", "matryoshka")
    for name in names:
        found = []
        for on_triton in (True, False):
            for module in (bags, latents, rows, sys.modules["train.trainer"]):
                module.on_triton = lambda *_, answer=on_triton: answer
            kind = ARCHITECTURES[name]
            sae = kind(kind.Config(d_sae=80, k=2, init="kaiming"), 20, RunLength(4, 8))
            sae.tokens_since_fired[:9] = 10**9
            trainer = Trainer(name, sae, 1e-3, TrainConfig(), torch.device("cpu"))
            for step, x in enumerate(data):
                trainer.step(x, x.var(), step)
                assert not sae.W_enc.isnan().any()
                assert not sae.W_dec.isnan().any()
            assert trainer.figures(3)["aux_loss"] > 0
            assert sae.skips_zeros is on_triton
            found.append(trainer.state())
        for key, value in found[1].items():
            assert_close(found[0][key], value, rtol=1e-3, atol=1e-5, equal_nan=True, msg=f"{name}: {key}")
    return len(names)


done = compare_bags() + compare_rows() + compare_latents() + compare_trainings()
print(f"{done} comparisons hold")
