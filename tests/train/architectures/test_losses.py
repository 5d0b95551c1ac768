"""Losses and gradients are those of the formulas in the architectures' docstrings."""

import pytest
import torch

from tests.train.architectures.references import BATCH, CASES, D_IN, D_SAE, SILENT
from train.architectures import ARCHITECTURES
from train.architectures.activations import jump
from train.architectures.base import RunLength
from train.architectures.topk import TopKSAE
from train.config import TrainConfig
from train.kernels.latents import Jump
from train.trainer import Trainer


def build(name, num_steps=100, **fields):
    """An SAE with biases of its own, and a batch."""
    architecture = ARCHITECTURES[name]
    sae = architecture(architecture.Config(d_sae=D_SAE, **fields), D_IN, RunLength(num_steps, BATCH))
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter_name, parameter in sae.named_parameters():
            if parameter_name in {"b_enc", "b_dec", "b_mag", "r_mag"}:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return sae, torch.randn(BATCH, D_IN, generator=generator)


def test_there_is_a_reference_for_every_architecture():
    assert {architecture for architecture, _, _ in CASES.values()} == set(ARCHITECTURES)


@pytest.mark.parametrize("case", CASES)
def test_the_loss_and_every_gradient_are_those_of_the_float64_reference(case):
    name, reference, fields = CASES[case]
    sae, x = build(name, **fields)
    sae.tokens_since_fired[SILENT] = 10**9
    exact = {key: value.detach().double().requires_grad_() for key, value in sae.named_parameters()}
    expected, latents = reference(exact, x.double(), sae)
    expected.backward()
    sae.prepare(16)  # AuxK asks which latents are silent at steps 0, 16, ...
    loss = sae.loss(x, 16)
    loss.total.backward()
    assert loss.total.item() == pytest.approx(expected.item(), rel=1e-5)
    assert loss.l0.item() == pytest.approx((latents > 0).sum(1).double().mean().item())
    assert torch.equal(loss.counts, (latents > 0).sum(0))
    for key, parameter in sae.named_parameters():
        assert exact[key].grad.norm() > 0, key
        # Sums of float32 numbers over some hundred rows; the same choice of latents in both.
        assert (parameter.grad - exact[key].grad).norm() <= 1e-5 * exact[key].grad.norm(), key


def test_the_jump_has_the_gradients_of_the_docstring():
    threshold = torch.tensor([0.5, 0.5, 0.5, 0.5, 0.5], requires_grad=True)
    z = torch.tensor([[-0.6, -0.4, 0.4, 0.6, 1.6]], requires_grad=True)  # outside, inside below, inside above, outside
    inside = 0.5 / 2.0
    for scale, expected in ((4.0, [0, inside, inside, 1 + inside, 1]), (None, [0, 0, 0, 1, 1])):
        z.grad = threshold.grad = None
        latents, *_ = jump(z, threshold, None, Jump(bandwidth=2.0, tanh_scale=scale))
        assert latents.tolist() == [[0, 0, 0, pytest.approx(0.6), pytest.approx(1.6)]]
        latents.sum().backward()
        assert z.grad.tolist() == [expected]
        assert threshold.grad.tolist() == [0, -inside, -inside, -inside, 0]


@pytest.mark.parametrize(("num_steps", "tokens"), [(1000, 4_000), (50_000_000, 10_000_000), (1, 853)])
@pytest.mark.parametrize("name", ["topk", "batchtopk"])
def test_auxk_takes_a_latent_after_a_fiftieth_of_the_run_within_bounds(name, num_steps, tokens):
    sae, x = build(name, num_steps, k=3)
    assert isinstance(sae, TopKSAE)
    assert sae.dead_after == tokens
    sae.tokens_since_fired[:4] = tokens - 1
    assert sae.prepare(0) == 0
    assert sae.loss(x, 0).aux == 0
    sae.tokens_since_fired[:4] = tokens
    assert sae.prepare(0) == 4
    assert sae.loss(x, 0).aux > 0


def test_the_decoder_learns_three_times_as_fast():
    length, biases = RunLength(100, 128), {"gated": 1, "jumprelu": 10}
    for name in ARCHITECTURES:
        others = {"b_enc": biases.get(name, 4)} | ({"theta": 10} if name == "jumprelu" else {})
        config = ARCHITECTURES[name].Config
        assert ARCHITECTURES[name](config(d_sae=D_SAE), D_IN, length).lr_multiples() == pytest.approx(
            {"W_dec": 3} | others)
        given = ARCHITECTURES[name](config(d_sae=D_SAE, decoder_lr=2.0, bias_lr=0.5), D_IN, length)
        assert given.lr_multiples() == {**others, "W_dec": 2, "b_enc": 0.5}


@pytest.mark.parametrize(("d_sae", "l0", "share"), [(4608, 16, 256 / 4608), (4608, 32, 512 / 4608), (4608, 64, 1 / 8),
                                                    (64, 4, 1 / 4)])
def test_thresholds_start_where_a_few_times_as_many_latents_fire_as_were_asked_for(d_sae, l0, share):
    assert l0_at_start("jumprelu", d_sae, l0, 1000) / d_sae == pytest.approx(round(1000 * share) / 1000)


@pytest.mark.parametrize(("name", "times"), [("standard", 4), ("gated", 8)])
def test_biases_start_where_a_few_times_as_many_latents_fire_as_were_asked_for(name, times):
    assert l0_at_start(name, 2304, 16, 1000) / 2304 == pytest.approx(round(1000 * times * 16 / 2304) / 1000)


@pytest.mark.parametrize("name", ["standard", "gated", "jumprelu"])
def test_a_latent_that_is_to_fire_on_less_than_one_row_of_a_batch_fires_on_one(name):
    assert l0_at_start(name, 4096, 2, 32) == 4096 / 32


def l0_at_start(name, d_sae, l0, batch_size):
    """L0 of the first step, on rows that the start is made for."""
    sae = ARCHITECTURES[name](ARCHITECTURES[name].Config(d_sae=d_sae, l0=l0), D_IN, RunLength(100, batch_size))
    return sae.loss(torch.randn(batch_size, D_IN, generator=torch.Generator().manual_seed(0)), 0).l0.item()


@pytest.mark.parametrize("loss", ["step", "target_l0"])
def test_thresholds_of_other_losses_learn_three_times_as_fast(loss):
    config = ARCHITECTURES["jumprelu"].Config(d_sae=D_SAE, loss=loss)
    assert ARCHITECTURES["jumprelu"](config, D_IN, RunLength(100, 1024)).lr_multiples()["theta"] == 3


def test_the_auxiliary_loss_of_gated_does_not_move_the_decoder():
    sae, x = build("gated", l1_coefficient=0.0)
    with torch.no_grad():
        sae.b_mag.fill_(-1e3)  # nothing is active: what is left of the gradient is the auxiliary term's
    loss = sae.loss(x, 1)
    assert loss.aux > 0
    loss.total.backward()
    assert sae.W_dec.grad.abs().max() == 0
    assert sae.W_enc.grad.abs().max() > 0


def test_the_mean_of_the_prefix_losses_counts_each_prefix_once():
    sae, x = build("matryoshka", k=5, aux_coefficient=0, prefixes=(0.25, 0.5, 0.75))
    assert sae.group_sizes == [10, 10, 10, 10]
    with torch.no_grad():
        sae.W_dec[10:].zero_()  # later groups add nothing: every prefix is the first
    loss = sae.loss(x, 1)
    assert loss.total.item() == pytest.approx(loss.mse.item() * D_IN, rel=1e-5)


@pytest.mark.parametrize("loss", ["tanh", "target_l0"])
def test_thresholds_that_are_parameters_themselves_never_fall_below_zero(loss):
    config = ARCHITECTURES["jumprelu"].Config(d_sae=D_SAE, loss=loss, sparsity_coefficient=0.5, threshold_init=0.01)
    sae = ARCHITECTURES["jumprelu"](config, D_IN, RunLength(20, BATCH))
    trainer = Trainer("one", sae, 1e-2, TrainConfig(), torch.device("cpu"))
    for step in range(20):
        x = torch.randn(BATCH, D_IN, generator=torch.Generator().manual_seed(step))
        trainer.step(x, x.var(), step)
    assert (sae.threshold == 0).any()  # some were pushed that far
    assert (sae.threshold >= 0).all()
