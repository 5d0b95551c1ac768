"""Losses and gradients are those of the formulas in the architectures' docstrings, by plain autograd."""

import pytest
import torch

from train.architectures import ARCHITECTURES
from train.architectures.base import RunLength
from train.architectures.jumprelu import _Jump
from train.architectures.topk import TopKSAE

D_IN, D_SAE, BATCH = 16, 40, 200


def build(name, num_steps=100, **fields):
    """An SAE with biases of its own, and a batch."""
    architecture = ARCHITECTURES[name]
    sae = architecture(architecture.Config(d_sae=D_SAE, **fields), D_IN, RunLength(num_steps, BATCH))
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        sae.b_enc.copy_(torch.randn(D_SAE, generator=generator) * 0.2)
        sae.b_dec.copy_(torch.randn(D_IN, generator=generator) * 0.2)
    return sae, torch.randn(BATCH, D_IN, generator=generator)


def gradients(sae, total):
    return dict(zip(dict(sae.named_parameters()), torch.autograd.grad(total, list(sae.parameters())), strict=True))


def assert_same(sae, ours, formula):
    torch.testing.assert_close(ours, formula, rtol=1e-5, atol=1e-5)
    one, other = gradients(sae, ours), gradients(sae, formula)
    for name, value in other.items():
        assert value.abs().sum() > 0, name
        assert (one[name] - value).norm() <= 1e-5 * value.norm(), name


def test_standard_is_the_squared_error_and_an_l1_penalty():
    sae, x = build("standard", l1_coefficient=0.7, coefficient_warmup=0)
    loss = sae.loss(x, 1)
    latents = torch.relu(x @ sae.W_enc + sae.b_enc)
    error = (x - latents @ sae.W_dec - sae.b_dec).square().sum(1)
    assert_same(sae, loss.total, (error + 0.7 * latents.sum(1)).mean())
    assert loss.mse.item() == pytest.approx(error.mean().item() / D_IN, rel=1e-5)
    assert loss.l0.item() == pytest.approx((latents > 0).sum(1).float().mean().item())


def step(z, threshold, eps):
    """H(z - threshold) of the docstring: a step whose derivative is the rectangle's, a straight line of width eps."""
    line = ((z - threshold) / eps + 0.5).clamp(0, 1)
    return (z > threshold).float() + line - line.detach()


def test_jumprelu_is_the_squared_error_a_tanh_penalty_and_a_pull_on_silent_latents():
    sae, x = build("jumprelu", sparsity_coefficient=0.3, coefficient_warmup=0, threshold_init=0.4, bandwidth=1.5,
                   pre_act_coefficient=0.01)
    sae.tokens_since_fired[:7] = 10**9
    loss = sae.loss(x, 1)
    z = x @ sae.W_enc + sae.b_enc
    # The gate alone is differentiated through the rectangle, and there z counts as what the threshold is.
    gate = step(z, sae.threshold, 1.5)
    latents = z * (z > sae.threshold) + sae.threshold.detach() * (gate - gate.detach())
    error = (x - latents @ sae.W_dec - sae.b_dec).square().sum(1)
    pull = torch.relu(sae.threshold - z)[:, :7].sum(1)
    assert_same(sae, loss.total, (error + 0.3 * torch.tanh(4 * latents).sum(1) + 0.01 * pull).mean())
    assert (loss.fired == (z > sae.threshold).any(0)).all()


def test_the_jump_has_the_gradients_of_the_docstring():
    threshold = torch.tensor([0.5, 0.5, 0.5, 0.5, 0.5], requires_grad=True)
    z = torch.tensor([[-0.6, -0.4, 0.4, 0.6, 1.6]], requires_grad=True)  # outside, inside below, inside above, outside
    latents = _Jump.apply(z, threshold, 2.0)
    assert latents.tolist() == [[0, 0, 0, pytest.approx(0.6), pytest.approx(1.6)]]
    latents.sum().backward()
    inside = 0.5 / 2.0
    assert z.grad.tolist() == [[0, inside, inside, 1 + inside, 1]]
    assert threshold.grad.tolist() == [0, -inside, -inside, -inside, 0]


def test_topk_is_the_squared_error_and_auxk_by_dense_autograd():
    sae, x = build("topk", k=5, k_aux=3)
    sae.tokens_since_fired[10:30] = 10**9
    loss = sae.loss(x, 0)
    z = x @ sae.W_enc + sae.b_enc
    kept = torch.zeros_like(z).scatter(1, z.topk(5, dim=1).indices, 1.0)
    x_hat = torch.relu(z) * kept @ sae.W_dec + sae.b_dec
    e = (x - x_hat).detach()
    dead = torch.relu(z[:, 10:30])
    of_dead = torch.zeros_like(dead).scatter(1, dead.topk(3, dim=1).indices, 1.0)
    e_hat = dead * of_dead @ sae.W_dec[10:30]
    aux = (e - e_hat).square().sum() / (e - e.mean(0)).square().sum()
    assert_same(sae, loss.total, (x - x_hat).square().sum(1).mean() + D_IN * aux / 32)
    assert loss.aux.item() == pytest.approx(D_IN * aux.item() / 32, rel=1e-5)


@pytest.mark.parametrize(("num_steps", "tokens"), [(100, 2_000), (10_000_000, 10_000_000), (1, 20)])
@pytest.mark.parametrize("name", ["topk", "batchtopk"])
def test_auxk_takes_a_latent_after_a_tenth_of_the_run_or_ten_million_tokens(name, num_steps, tokens):
    sae, x = build(name, num_steps, k=3)
    assert isinstance(sae, TopKSAE)
    assert sae.dead_after == tokens
    sae.tokens_since_fired[:4] = tokens - 1
    assert sae.loss(x, 0).aux == 0
    sae.tokens_since_fired[:4] = tokens
    assert sae.loss(x, 0).aux > 0
