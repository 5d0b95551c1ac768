"""The sparse step has the gradients of dense autograd."""

import pytest
import torch

from train.architectures import ARCHITECTURES
from train.architectures.base import RunLength


def gradients(name, sparse, x, dead):
    architecture = ARCHITECTURES[name]
    sae = architecture(architecture.Config(d_sae=96, k=5, k_aux=4), 24, RunLength(1000, len(x)))
    sae.sparse_on_cpu = sparse
    with torch.no_grad():
        sae.b_enc.copy_(torch.linspace(-0.2, 0.2, 96))
        sae.b_dec.copy_(torch.linspace(-0.1, 0.1, 24))
        sae.tokens_since_fired[:dead] = 10**9
    loss = sae.loss(x, 0)
    loss.total.backward()
    return loss, {key: value.grad for key, value in sae.named_parameters()}


@pytest.mark.parametrize("name", ["topk", "batchtopk"])
@pytest.mark.parametrize("dead", [0, 3, 40])
def test_sparse_gradients_equal_dense_autograd(name, dead):
    x = torch.randn(200, 24, generator=torch.Generator().manual_seed(2))
    loss, sparse = gradients(name, True, x, dead)
    reference, dense = gradients(name, False, x, dead)
    torch.testing.assert_close(loss.total, reference.total, rtol=1e-5, atol=0)
    assert (loss.aux > 0) == (dead > 0)
    assert torch.equal(loss.fired, reference.fired)
    torch.testing.assert_close(loss.l0, reference.l0)
    for key, value in dense.items():
        assert (sparse[key] - value).norm() <= 1e-5 * value.norm(), key


def test_a_row_with_no_positive_pre_activation_decodes_to_the_bias():
    x = torch.randn(50, 24)
    sae = ARCHITECTURES["topk"](ARCHITECTURES["topk"].Config(d_sae=96, k=5), 24, RunLength(10, 50))
    with torch.no_grad():
        sae.b_enc.fill_(-1e6)
    loss = sae.loss(x, 0)
    assert loss.l0 == 0
    torch.testing.assert_close(loss.mse, x.square().mean())
