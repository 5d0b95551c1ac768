"""What only a CUDA device can show: `make gpu-check` runs these. The logic is shared with the CPU's tests."""

import itertools
import os

import numpy as np
import pytest
import torch

from harvest.config import HarvestConfig
from harvest.device import find_device
from harvest.forward import Forward, nonfinite_rows
from harvest.job import prepare
from harvest.model import ModelSource, load_model
from harvest.opening import open_plan
from harvest.run import harvest
from harvest.units import Piece
from tests import tiny
from train.architectures import ARCHITECTURES
from train.architectures.base import SAE, RunLength
from train.architectures.topk import TopKSAE
from train.batches import Batches
from train.config import TrainConfig
from train.determinism import be_deterministic, order_statistics_allowed
from train.kernels.bags import bag_sum, pair_products
from train.kernels.latents import (
    Jump,
    gated_backward,
    gated_forward,
    jump_backward,
    jump_forward,
    relu_backward,
    relu_forward,
)
from train.kernels.rows import adam, row_sums
from train.order import ORDERS
from train.trainer import Trainer

pytestmark = pytest.mark.gpu

DEVICE = os.environ.get("GRANARY_TEST_DEVICE", "cuda")
"""Set to "cpu" to try the tests themselves without a GPU."""


@pytest.fixture(scope="session")
def cuda_cache(tmp_path_factory, llama, chat_file):
    path = tmp_path_factory.mktemp("cuda") / "cache"
    settings = {"model": str(llama), "dataset": str(chat_file)} | tiny.SETTINGS | {"compute_dtype": "bfloat16"}
    job = prepare(HarvestConfig.model_validate(settings | {"num_tokens": 1_000_000}), find_device(DEVICE))
    open_plan(job, path)
    return harvest(job, path)


def test_bf16_rows_equal_those_of_each_conversation_alone_within_the_designs_bound(cuda_cache, llama):
    layer = cuda_cache.layers[-1]
    device = torch.device(DEVICE)
    cut = load_model(ModelSource("tiny", None, llama), layer, "bfloat16", "sdpa", device)
    forward = Forward(cut, [layer], device)
    relative = []
    for start, stop in itertools.pairwise(cuda_cache.sequence_offset[:20].tolist()):
        (alone,) = forward.run([Piece(start, start, stop)], cuda_cache.token_id[None, start:stop].astype(np.int64))
        alone.wait()
        reference = alone.rows[layer].float().numpy()
        ours = cuda_cache.layer(layer)[np.arange(start, stop)].astype(np.float32)
        relative.append(np.linalg.norm(ours - reference, axis=1) / np.linalg.norm(reference, axis=1))
    assert np.concatenate(relative).max() <= 2e-2
    assert np.concatenate(relative).mean() <= 3e-3


def test_norms_are_those_of_the_stored_rows(cuda_cache):
    layer = cuda_cache.layer(cuda_cache.layers[0])
    rows = cuda_cache.rows(layer=cuda_cache.layers[0])
    norms = np.linalg.norm(layer[rows].astype(np.float64), axis=1)
    np.testing.assert_allclose(layer.norm(rows), norms, rtol=1e-5)


def test_rows_that_are_not_finite_are_told_on_the_device_by_their_bits():
    every = torch.arange(1 << 16, dtype=torch.int32).to(torch.int16).view(torch.bfloat16)
    rows = torch.ones(1 << 16, 64, dtype=torch.bfloat16)
    rows[torch.arange(1 << 16), torch.arange(1 << 16) % 64] = every
    assert torch.equal(nonfinite_rows(rows.to(DEVICE)).cpu(), ~every.float().isfinite())


@pytest.mark.parametrize("shuffle", ORDERS)
def test_batches_on_the_device_are_those_of_the_cpu(cache, shuffle):
    same = {"batch_size": 64, "shuffle": shuffle, "window_blocks": 2, "num_steps": 60}
    here = Batches(cache, layer=2, **same)
    there = Batches(cache, layer=2, device=DEVICE, **same)
    count = 0
    for x, y in zip(here, there, strict=True):
        assert torch.equal(x.view(torch.int16), y.cpu().view(torch.int16))
        count += 1
    assert count > 10


def small_sae(name: str, length: RunLength, **fields: object) -> SAE:
    """An SAE of 640 latents on inputs of width 32; a TopK kind with few enough active to sum selected pairs on CUDA."""
    kind = ARCHITECTURES[name]
    sparsity = {"k": 3} if "k" in kind.Config.model_fields else {}
    sae = kind(kind.Config(d_sae=640, **sparsity, **fields), 32, length)
    assert not isinstance(sae, TopKSAE) or sae.sums_pairs(torch.empty(0, device="meta"))
    return sae


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_architecture_learns_and_resumes_exactly_on_the_device(name):
    generator = torch.Generator().manual_seed(0)
    dictionary = torch.nn.functional.normalize(torch.randn(64, 32, generator=generator), dim=1)
    codes = torch.rand(4096, 64, generator=generator) * (torch.rand(4096, 64, generator=generator) < 0.05)
    data = ((codes @ dictionary) * 6).to(DEVICE)

    def trainer() -> Trainer:
        return Trainer(name, small_sae(name, RunLength(60, 512)), 3e-3, TrainConfig(), torch.device(DEVICE))

    def run(one: Trainer, start: int, stop: int) -> None:
        for step in range(start, stop):
            x = data[(step % 8) * 512 :][:512]
            one.step(x, x.var(), step)

    whole = trainer()
    run(whole, 0, 20)
    early = whole.figures(19)["mse_scaled"]
    saved = {key: value.clone() for key, value in whole.state().items()}
    run(whole, 20, 60)
    assert whole.figures(59)["mse_scaled"] < early

    resumed = trainer()
    resumed.load_state(saved)
    run(resumed, 20, 60)
    resumed.figures(59)  # which empties what it read
    for key, value in whole.sae.state_dict().items():
        torch.testing.assert_close(resumed.sae.state_dict()[key], value, rtol=1e-3, atol=1e-5, equal_nan=True)


@pytest.mark.parametrize("width", [40, 300, 1024])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_sums_over_selected_rows_are_those_in_float64(width, dtype):
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.randn(rows, width, generator=generator).to(DEVICE, dtype) for rows in (130, 70))
    counts = torch.tensor([0, 5, 1, 0, 4000, 0, 17], device=DEVICE)
    offsets, pairs = counts.cumsum(0) - counts, int(counts.sum())
    a, b = (torch.randint(rows, (pairs,), generator=generator).to(DEVICE) for rows in (130, 70))
    values = torch.randn(pairs, generator=generator).to(DEVICE)
    if DEVICE == "cpu" and dtype == torch.bfloat16:
        pytest.skip("torch sums no bfloat16 on a CPU")
    bags = torch.repeat_interleave(torch.arange(len(counts), device=DEVICE), counts)
    expected = torch.zeros(len(counts), width, dtype=torch.float64, device=DEVICE)
    expected.index_add_(0, bags, left[a].double() * values.double()[:, None])
    found = bag_sum(left, a, offsets, values)
    assert (found - expected).norm() <= 1e-5 * expected.norm()
    assert torch.equal(found, bag_sum(left, a, offsets, values))
    expected = (left[a].double() * right[b].double()).sum(1)
    assert (pair_products(left, a, right, b) - expected).norm() <= 1e-5 * expected.norm()


@pytest.mark.parametrize("divisor", [None, 2.5])
@pytest.mark.parametrize("unit_rows", [True, False])
def test_the_optimisers_pass_over_rows_is_that_of_the_cpu(unit_rows, divisor):
    generator = torch.Generator().manual_seed(0)
    weights = torch.nn.functional.normalize(torch.randn(300, 72, generator=generator), dim=1)
    gradient, mean, mean_square = (torch.randn(300, 72, generator=generator) for _ in range(3))
    gradient[::3] = 0  # rows that no latent was selected for
    found = {}
    for device in ("cpu", DEVICE):
        w, g, m, v = (part.clone().to(device) for part in (weights, gradient, mean, mean_square.square()))
        for step in (1.0, 2.0):
            sums = row_sums(w, g, unit_rows=unit_rows)
            adam(w, g.clone(), sums, m, v, torch.tensor(step, device=device), 1e-2, (0.9, 0.999),
                 None if divisor is None else torch.tensor(divisor, device=device))
        along = torch.zeros(300) if sums.along is None else sums.along.cpu()
        found[device] = [*(part.cpu() for part in (w, m, v)), along, sums.squares.sum().cpu()]
    for ours, theirs in zip(found[DEVICE], found["cpu"], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=5e-6)  # lr 1e-2; m / sqrt(v) up to some hundred


@pytest.mark.parametrize("d_sae", [640, 1024])  # TopK kinds multiply all latents, and sum selected pairs
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_steps_gradients_on_the_device_are_those_of_the_cpu(name, d_sae):
    x = torch.randn(256, 32, generator=torch.Generator().manual_seed(0))
    kind, found = ARCHITECTURES[name], {}
    sparsity = {"k": 4} if "k" in kind.Config.model_fields else {"l0": 4.0}
    for device in ("cpu", DEVICE):
        sae = kind(kind.Config(d_sae=d_sae, **sparsity), 32, RunLength(60, 256)).to(device)
        sae.tokens_since_fired[:5] = 10**9  # AuxK and the pull on silent latents take part
        sae.prepare(0)
        sae.loss(x.to(device), 0).total.backward()
        found[device] = {key: value.grad.cpu() for key, value in sae.named_parameters()}
    for key, value in found["cpu"].items():
        assert (found[DEVICE][key] - value).norm() <= 1e-5 * value.norm(), key


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_recorded_step_is_the_step_as_it_is(name):
    generator = torch.Generator().manual_seed(0)
    data = [torch.randn(256, 32, generator=generator).to(DEVICE) for _ in range(8)]
    found = {}
    for recorded in (True, False):
        fields = {"dead_after_tokens": 1500} if name in {"topk", "batchtopk", "matryoshka"} else {}
        sae = small_sae(name, RunLength(60, 256), **fields)
        with torch.no_grad():
            sae.b_enc[:100] = -10.0  # so that AuxK begins after six steps
        trainer = Trainer(name, sae, 3e-3, TrainConfig(), torch.device(DEVICE))
        if not recorded:
            trainer._graphs = None
        kinds = set()
        for step in range(60):
            trainer.step(data[step % 8], data[step % 8].var(), step)
            kinds.add(sae.prepare(1))
        if recorded and trainer._graphs is not None:
            assert len(trainer._graphs._graphs) >= 1
            assert len(kinds) > 1 or not fields  # AuxK takes part in some steps, and not in others
        found[recorded] = trainer.state()
    for key, value in found[False].items():
        torch.testing.assert_close(found[True][key], value, rtol=1e-3, atol=1e-5, equal_nan=True, msg=key)


@pytest.mark.parametrize("name", ["topk", "batchtopk", "matryoshka"])
def test_to_leave_rows_of_a_gradient_unwritten_changes_nothing(name, monkeypatch):
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *shape, **options: (
        made.fill_(torch.nan) if (made := empty(*shape, **options)).is_floating_point() else made))
    generator = torch.Generator().manual_seed(0)
    data = [torch.randn(32, 32, generator=generator).to(DEVICE) for _ in range(20)]
    found = []
    for skips_zeros in (True, False):
        sae = small_sae(name, RunLength(20, 32), dead_after_tokens=128, init="kaiming")
        trainer = Trainer(name, sae, 3e-3, TrainConfig(), torch.device(DEVICE))
        trainer.sae.skips_zeros &= skips_zeros
        for step, x in enumerate(data):
            trainer.step(x, x.var(), step)
        found.append(trainer.state())
    for key, value in found[0].items():
        torch.testing.assert_close(found[1][key], value, rtol=1e-3, atol=1e-5, equal_nan=True, msg=key)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_one_pass_over_all_latents_is_that_of_the_cpu(dtype):
    generator = torch.Generator().manual_seed(0)
    z, grad = (torch.randn(700, 300, generator=generator).to(dtype).float() for _ in range(2))
    threshold, silent = torch.rand(300, generator=generator), (torch.rand(300, generator=generator) < 0.3).float()
    grad_l0, (a, b) = torch.randn(700, generator=generator), torch.tensor([0.3, 0.7])

    def passes(device: str, dtype: torch.dtype) -> list[torch.Tensor]:
        parts = (z.to(dtype), grad.to(dtype), threshold, silent, grad_l0, a, b)
        x, g, t, s, l0, p, q = (part.to(device) for part in parts)
        found = [*relu_forward(x), relu_backward(x.relu(), g, p)]
        gate = x, t, 0.5 + s, t - 0.5
        found += [*gated_forward(*gate), *gated_backward(*gate, g, x, p)]
        for jump, rows in ((Jump(0.8, 4.0), None), (Jump(0.8, None), l0)):
            for pulled in (None, s):
                found += jump_forward(x, t, pulled, jump)
                found += jump_backward(x, t, pulled, jump, g, p, q, rows)
        return [part.float().cpu() for part in found]

    for ours, theirs in zip(passes(DEVICE, dtype), passes("cpu", torch.float32), strict=True):
        assert (ours - theirs).norm() <= (1e-5 if dtype == torch.float32 else 4e-3) * theirs.norm()


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_no_step_waits_for_the_device_but_the_one_in_sixteen_that_lists_silent_latents(name):
    trainer = Trainer(name, small_sae(name, RunLength(60, 256)), 1e-3, TrainConfig(), torch.device(DEVICE))
    x = torch.randn(256, 32).to(DEVICE)
    variance = x.var()
    trainer.step(x, variance, 0)
    on_cuda = torch.device(DEVICE).type == "cuda"
    try:
        if on_cuda:
            torch.cuda.set_sync_debug_mode("error")
        for step in range(1, 16):
            trainer.step(x, variance, step)
    finally:
        if on_cuda:
            torch.cuda.set_sync_debug_mode("default")
    assert trainer.figures(15)["mse_scaled"] > 0


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_with_deterministic_algorithms_every_architecture_gives_the_same_bits_again_and_when_it_goes_on(name):
    """What --deterministic turns on (`train.determinism`); an operation that has no such kernel raises."""
    x = torch.randn(512, 32, generator=torch.Generator().manual_seed(0)).to(DEVICE)

    def begun() -> Trainer:
        return Trainer(name, small_sae(name, RunLength(40, 512)), 3e-3, TrainConfig(), torch.device(DEVICE))

    def trained(stopped_at: int | None = None) -> dict[str, torch.Tensor]:
        one = begun()
        for step in range(40):
            if step == stopped_at:  # a new process goes on, and records its steps anew
                state = {key: value.cpu() for key, value in one.state().items()}
                one = begun()
                one.load_state(state)
            one.step(x, x.var(), step)
        with order_statistics_allowed():
            one.sae.calibrate([x])
        return {key: value.clone() for key, value in one.state().items()}

    be_deterministic()
    try:
        first, again, gone_on = trained(), trained(), trained(stopped_at=20)
    finally:
        torch.use_deterministic_algorithms(False)
    for key, value in first.items():
        assert torch.equal(value.nan_to_num(), again[key].nan_to_num()), key
        assert torch.equal(value.nan_to_num(), gone_on[key].nan_to_num()), key
