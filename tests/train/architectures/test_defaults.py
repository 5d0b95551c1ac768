"""What architectures do where a recipe says nothing: the numbers of their docstrings."""

import pytest
import torch

from train.architectures import ARCHITECTURES
from train.architectures.base import RunLength


def build(name, d_in=96, d_sae=512, **fields):
    return ARCHITECTURES[name](ARCHITECTURES[name].Config(d_sae=d_sae, **fields), d_in, RunLength(100, 64))


@pytest.mark.parametrize(("loss", "bandwidth", "tanh_scale", "pull"),
                         [("tanh", 2.0, 4.0, 3e-6), ("step", 0.001, None, 0.0), ("target_l0", 0.05, None, 3e-6)])
def test_each_loss_of_jumprelu_has_its_bandwidth_and_its_pull_on_silent_latents(loss, bandwidth, tanh_scale, pull):
    sae = build("jumprelu", loss=loss)
    assert (sae.jump.bandwidth, sae.jump.tanh_scale) == (bandwidth, tanh_scale)
    assert sae.pre_act_coefficient == pull


@pytest.mark.parametrize("name", ["topk", "batchtopk", "matryoshka"])
def test_auxk_takes_half_as_many_silent_latents_as_an_input_has_dimensions(name):
    sae = build(name)
    assert sae.k_aux == 48
    assert sae.config.aux_coefficient == 0.25


def test_matryoshkas_dictionaries_are_the_papers():
    assert ARCHITECTURES["matryoshka"].Config().group_sizes(65_536) == [2048, 4096, 8192, 16_384, 34_816]


def test_the_magnitudes_of_gated_start_as_its_gates_do():
    sae, x = build("gated", l0=8), torch.randn(64, 96, generator=torch.Generator().manual_seed(0))
    sae.loss(x, 0)
    assert sae.b_enc.abs().min() > 0
    assert torch.equal(sae.b_mag, sae.b_enc)
    gates = sae.pre_acts(x).relu()
    torch.testing.assert_close(sae.encode(x), gates, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["topk", "batchtopk", "matryoshka"])
def test_a_tied_encoder_starts_at_the_size_that_reconstructs_the_first_batch_best(name):
    x = torch.randn(64, 96, generator=torch.Generator().manual_seed(0))
    sae, drawn = build(name, k=40), build(name, k=40).W_enc.detach()
    sae.loss(x, 0)
    factor = float((sae.W_enc.detach() / drawn).mean())
    torch.testing.assert_close(sae.W_enc.detach(), drawn * factor)

    def error(times):
        pre_acts = x @ (drawn * times)
        latents = torch.zeros_like(pre_acts)
        chosen = sae.choose(pre_acts)
        latents.view(-1)[chosen] = pre_acts.view(-1)[chosen].relu()
        return (x - latents @ sae.W_dec).square().sum()

    assert 0.2 < factor < 0.8
    assert error(factor) < min(error(0.98 * factor), error(1.02 * factor))


def test_a_tied_jumprelu_starts_at_the_size_that_reconstructs_the_first_batch_best():
    x = torch.randn(64, 96, generator=torch.Generator().manual_seed(0))
    sae, drawn = build("jumprelu", l0=8), build("jumprelu").W_enc.detach()
    sae.loss(x, 0)
    factor = float((sae.W_enc.detach() / drawn).mean())
    torch.testing.assert_close(sae.W_enc.detach(), drawn * factor)
    active = sae.encode(x) > 0
    assert float((active.sum(0) - 8).abs().max()) <= 1  # an eighth of the rows each, but for rounding

    def error(times):
        return (x - (x @ drawn * times * active) @ sae.W_dec).square().sum()

    assert 0.2 < factor < 0.8
    assert error(factor) < min(error(0.98 * factor), error(1.02 * factor))


@pytest.mark.parametrize("name", ["topk", "batchtopk", "matryoshka", "jumprelu"])
def test_an_encoder_that_is_given_or_independent_of_the_decoder_keeps_its_size(name):
    x = torch.randn(64, 96, generator=torch.Generator().manual_seed(0))
    given = build(name)
    given.start_from({"W_enc": given.W_enc.detach().clone()})
    saes = [given, build(name, init="kaiming"), build(name, encoder_scale=1.0)]
    if name == "jumprelu":
        saes.append(build(name, loss="step"))  # its thresholds would hardly move
    for sae in saes:
        before = sae.W_enc.detach().clone()
        sae.loss(x, 0)
        assert torch.equal(sae.W_enc.detach(), before)
