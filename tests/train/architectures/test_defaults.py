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
