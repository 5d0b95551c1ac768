"""The sparse step has the gradients of dense autograd."""

import pytest
import torch

from train.architectures import ARCHITECTURES, sparse
from train.architectures.base import RunLength
from train.architectures.batchtopk import BatchTopKSAE


def gradients(name, sparse, x, dead):
    architecture = ARCHITECTURES[name]
    sae = architecture(architecture.Config(d_sae=96, k=5, k_aux=4), 24, RunLength(1000, len(x)))
    sae.sparse_on_cpu = sparse
    with torch.no_grad():
        sae.b_enc.copy_(torch.linspace(-0.2, 0.2, 96))
        sae.b_dec.copy_(torch.linspace(-0.1, 0.1, 24))
        sae.tokens_since_fired[:dead] = 10**9
    sae.prepare(0)
    loss = sae.loss(x, 0)
    loss.total.backward()
    return loss, {key: value.grad for key, value in sae.named_parameters()}


@pytest.mark.parametrize("name", ["topk", "batchtopk", "matryoshka"])
@pytest.mark.parametrize("dead", [0, 3, 40])
def test_sparse_gradients_equal_dense_autograd(name, dead):
    x = torch.randn(200, 24, generator=torch.Generator().manual_seed(2))
    loss, sparse = gradients(name, True, x, dead)
    reference, dense = gradients(name, False, x, dead)
    torch.testing.assert_close(loss.total, reference.total, rtol=1e-5, atol=0)
    assert (loss.aux > 0) == (dead > 0)
    assert torch.equal(loss.counts, reference.counts)
    torch.testing.assert_close(loss.l0, reference.l0)
    for key, value in dense.items():
        assert (sparse[key] - value).norm() <= 1e-5 * value.norm(), key


@pytest.mark.parametrize("name", ["topk", "batchtopk", "matryoshka"])
def test_under_autocast_torchs_own_sums_have_nearly_the_same_gradients(name, monkeypatch):
    """As on a GPU where Triton cannot run: products are in bfloat16 there (8 bits), sums over rows are not."""
    monkeypatch.setattr(BatchTopKSAE, "_choose_on_cpu", BatchTopKSAE._choose_on_cuda)  # NumPy has no bfloat16
    x = torch.randn(200, 24, generator=torch.Generator().manual_seed(2))
    _, exact = gradients(name, True, x, 40)
    with torch.autocast("cpu", dtype=torch.bfloat16, cache_enabled=False):  # our products for CUDA keep nothing either
        _, found = gradients(name, True, x, 40)
    for key, value in exact.items():
        assert found[key].dtype == torch.float32
        assert (found[key] - value).norm() <= 0.1 * value.norm(), key


def test_a_row_with_no_positive_pre_activation_decodes_to_the_bias():
    x = torch.randn(50, 24)
    sae = ARCHITECTURES["topk"](ARCHITECTURES["topk"].Config(d_sae=96, k=5), 24, RunLength(10, 50))
    with torch.no_grad():
        sae.b_enc.fill_(-1e6)
    loss = sae.loss(x, 0)
    assert loss.l0 == 0
    torch.testing.assert_close(loss.mse, x.square().mean())


@pytest.mark.parametrize(("name", "fields"), [
    ("standard", {"l1_coefficient": 0.7, "coefficient_warmup": 0}),
    ("gated", {"l1_coefficient": 0.7, "coefficient_warmup": 0}),
    ("jumprelu", {"sparsity_coefficient": 0.3, "coefficient_warmup": 0, "threshold_init": 2.0, "bandwidth": 3.0}),
])
@pytest.mark.parametrize("bias", [-2.0, -1e6])
def test_few_active_latents_have_the_gradients_of_dense_products(name, fields, bias, monkeypatch):
    x = torch.randn(200, 24, generator=torch.Generator().manual_seed(2))
    found = {}
    for share in (0.0, 1 / 16):
        monkeypatch.setattr(sparse, "_SPARSE_SHARE", share)
        sae = ARCHITECTURES[name](ARCHITECTURES[name].Config(d_sae=96, **fields), 24, RunLength(1000, len(x)))
        with torch.no_grad():
            sae.b_enc.fill_(bias if name != "jumprelu" or bias < -10 else 0.0)
            sae.b_dec.copy_(torch.linspace(-0.1, 0.1, 24))
        loss = sae.loss(x, 1)
        assert (0 < loss.l0 < 96 / 16) == (bias > -10)
        loss.total.backward()
        found[share] = loss, {key: value.grad for key, value in sae.named_parameters()}
    (dense, expected), (loss, ours) = found.values()
    torch.testing.assert_close(loss.total, dense.total, rtol=1e-5, atol=0)
    torch.testing.assert_close(loss.l0, dense.l0)
    assert torch.equal(loss.counts, dense.counts)
    for key, value in expected.items():
        assert (value.norm() > 0) == (bias > -10 or key == "b_dec"), key
        assert (ours[key] - value).norm() <= 1e-5 * value.norm(), key


def test_the_sparse_form_is_left_where_many_latents_are_active():
    latents = torch.zeros(8, 64)
    latents[:, 3] = 1.0
    assert sparse.active_pairs(latents).tolist() == [64 * row + 3 for row in range(8)]
    latents[:, :5] = 1.0
    assert sparse.active_pairs(latents) is None
