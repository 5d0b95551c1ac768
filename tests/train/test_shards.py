"""What the processes of a team give each other, and that an SAE divided among them is the same SAE."""

import pytest
import torch

from tests.train.architectures.references import BATCH, CASES, D_IN, D_SAE, SILENT
from tests.train.team import run_team
from tests.train.test_sparsity import level_cases
from train.architectures import ARCHITECTURES
from train.architectures.base import RunLength, initial_weights
from train.architectures.batchtopk import BatchTopKSAE
from train.config import TrainConfig
from train.shards import ALONE, Shards
from train.sparsity import level_passed_by
from train.trainer import Trainer

STEPS = 40


def exchange(shards):
    """Every method once, with values that say which process they are of."""
    rank = shards.rank
    part = torch.full((2, 3), float(rank + 1), requires_grad=True)
    vector = torch.tensor([1.0, 2.0], requires_grad=True)
    summed = shards.sum(part.bfloat16())
    added = shards.sum(shards.once(vector))
    (summed.sum() * 5 + (added * torch.tensor([3.0, 7.0])).sum()).backward()
    whole = torch.arange(24.0).view(4, 6)
    wholes = {name: whole + number for number, name in enumerate(("rows", "columns", "all", "scalar"))}
    wholes["scalar"] = torch.tensor(3.5)
    dealt = {"rows": torch.zeros(2, 6), "columns": torch.zeros(3, 4).t(), "all": torch.zeros(4, 6),
             "scalar": torch.zeros(())}
    for name, dim in ("rows", 0), ("columns", 1), ("all", None), ("scalar", None):
        shards.deal(wholes if shards.is_first else {}, name, dealt[name], dim)
    return {
        "sum": (summed.dtype, summed.tolist(), part.grad.tolist()),
        "once": (added.tolist(), vector.grad.tolist()),
        "counts": (shards.total(rank + 5), shards.most(rank, -rank, 3)),
        "said": shards.first_says(lambda: {"from": rank, "none": None, "exact": 0.1 + 0.2}),
        "largest": sorted(shards.largest(torch.tensor([1.0, 7.0, 3.0]) + rank if rank else torch.tensor([5.0]), 2)
                          .tolist()),
        "nothing": shards.largest(torch.empty(0), 2).tolist(),
        "own": (shards.own(whole, 0).tolist(), shards.own(whole, 1).tolist(), shards.own(whole, None).shape),
        "dealt": {name: tensor.tolist() for name, tensor in dealt.items()},
        "whole": [shards.whole(dealt["rows"], 0).tolist(), shards.whole(dealt["columns"], 1).tolist(),
                  shards.whole(dealt["all"], None).tolist()],
    }


def test_two_processes_exchange_what_the_methods_say():
    first, second = run_team(2, exchange)
    whole = torch.arange(24.0).view(4, 6)
    for found in first, second:
        assert found["sum"] == (torch.float32, [[3.0] * 3] * 2, [[5.0] * 3] * 2)
        assert found["once"] == ([1.0, 2.0], [3.0, 7.0])
        assert found["counts"] == (11, [1, 0, 3])
        assert found["said"] == {"from": 0, "none": None, "exact": 0.1 + 0.2}
        assert found["largest"] == [4.0, 5.0, 8.0]
        assert found["nothing"] == []
    assert first["own"] == (whole[:2].tolist(), whole[:, :3].tolist(), (4, 6))
    assert second["own"] == (whole[2:].tolist(), whole[:, 3:].tolist(), (4, 6))
    for half, found in enumerate((first, second)):
        assert found["dealt"] == {"rows": whole[2 * half : 2 * half + 2].tolist(),
                                  "columns": (whole + 1)[:, 3 * half : 3 * half + 3].tolist(),
                                  "all": (whole + 2).tolist(), "scalar": 3.5}
    assert first["whole"] == [whole.tolist(), (whole + 1).tolist(), (whole + 2).tolist()]


class Third(Shards):
    """The second of three processes, as far as the start goes."""

    rank, size = 1, 3


@pytest.mark.parametrize("init", ["tied", "kaiming"])
def test_the_weights_at_the_start_are_those_of_one_process(init):
    """With more rows than are drawn at a time, and a width that does not divide them."""
    config = ARCHITECTURES["standard"].Config(d_sae=3 * 3001, init=init, seed=5)
    for part, whole in zip(initial_weights(config, 7, 3 * 3001, Third()), initial_weights(config, 7, 3 * 3001),
                           strict=True):
        assert torch.equal(part, whole[3001:6002])
    generator = torch.Generator().manual_seed(5)
    if init == "tied":
        drawn = torch.randn(3 * 3001, 7, generator=generator)
        assert torch.equal(initial_weights(config, 7, 3 * 3001)[2], drawn.norm(dim=1))


def divided_is_all_that_has_latents(name):
    sae = ARCHITECTURES[name](ARCHITECTURES[name].Config(d_sae=23), 7, RunLength(10, 5))
    return {key: list(value.shape).index(23) for key, value in sae.state_dict().items() if 23 in value.shape}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_everything_that_has_latents_is_divided_along_them(name):
    assert divided_is_all_that_has_latents(name) == ARCHITECTURES[name].per_latent


def build(case, shards=ALONE):
    """An SAE of a case with biases of its own, silent latents and a batch; or one process's part of that SAE."""
    name, _, fields = CASES[case]
    sae = ARCHITECTURES[name](ARCHITECTURES[name].Config(d_sae=D_SAE, **fields), D_IN, RunLength(100, BATCH), shards)
    generator = torch.Generator().manual_seed(3)
    drawn = {key: torch.randn(D_IN if key == "b_dec" else D_SAE, generator=generator) * 0.2
             for key in ("b_enc", "b_dec", "b_mag", "r_mag")}
    sae.start_from(drawn)
    sae.tokens_since_fired.copy_(shards.own(torch.zeros(D_SAE).index_fill_(0, torch.arange(D_SAE)[SILENT], 1e9), 0))
    return sae, torch.randn(BATCH, D_IN, generator=generator)


def losses(shards):
    """Loss, L0 and gradients of every case, with the gradients' norm, latents and reconstructions, all put together."""
    found = {}
    for case in CASES:
        sae, x = build(case, shards)
        for dense in (False, True) if hasattr(sae, "sparse_on_cpu") else (False,):
            sae.sparse_on_cpu = not dense
            sae.zero_grad()
            sae.prepare(16)
            loss = sae.loss(x, 16)
            loss.total.backward()
            whole = {key: shards.whole(parameter.grad, sae.per_latent.get(key))
                     for key, parameter in sae.named_parameters()}
            whole["counts"] = shards.whole(loss.counts, 0).float()
            with torch.no_grad():
                whole["latents"] = shards.whole(sae.encode(x), 1)
                whole["x_hat"] = sae(x)
            figures = [loss.total, loss.mse, loss.sparsity, loss.aux, loss.l0]
            found[case, dense] = ([figure.item() for figure in figures], whole) if shards.is_first else None
    return found


@pytest.mark.parametrize("size", [2, 4])
def test_a_divided_sae_has_the_loss_the_latents_and_the_gradients_of_the_whole(size):
    """With 4 processes the first and the last have no silent latent, and some rows no active one."""
    expected, found = losses(ALONE), run_team(size, losses)[0]
    for key, (figures, whole) in expected.items():
        # Sums of float32 numbers in another order; the same choice of latents.
        assert found[key][0] == pytest.approx(figures, rel=2e-6, abs=1e-9), key
        for name, tensor in whole.items():
            there = found[key][1][name]
            if tensor.dtype == torch.bool:
                assert torch.equal(there, tensor), (key, name)
            else:
                assert (there - tensor).norm() <= 2e-6 * tensor.norm(), (key, name)


def half_dense(shards):
    """Loss, b_dec's gradient and its part of W_dec's, where the first half of the latents is active on most rows and
    the second on hardly any."""
    found = []
    for name in ("standard", "gated"):
        config = ARCHITECTURES[name].Config(d_sae=96, l1_coefficient=0.7, coefficient_warmup=0)
        sae = ARCHITECTURES[name](config, D_IN, RunLength(100, BATCH), shards)
        b_enc = torch.cat([torch.full((48,), 1.0), torch.full((48,), -1.7)])
        sae.start_from({"b_enc": b_enc, "b_mag": b_enc, "b_dec": torch.ones(D_IN)})
        loss = sae.loss(torch.randn(BATCH, D_IN, generator=torch.Generator().manual_seed(3)), 1)
        loss.total.backward()
        shares = loss.counts.float().mean() / BATCH
        found.append((loss.total.item(), sae.b_dec.grad, sae.W_dec.grad, float(shares)))
    return found


def test_processes_of_which_one_sums_pairs_and_the_other_all_latents_have_the_same_loss():
    first, second = run_team(2, half_dense)
    for whole, *parts in zip(half_dense(ALONE), first, second, strict=True):
        assert parts[1][3] < 1 / 16 < parts[0][3]
        for total, of_b_dec, _, _ in parts:
            assert total == pytest.approx(whole[0], rel=2e-6)
            assert (of_b_dec - whole[1]).norm() <= 2e-6 * whole[1].norm()
        of_W_dec = torch.cat([part[2] for part in parts])
        assert (of_W_dec - whole[2]).norm() <= 2e-6 * whole[2].norm()


def trained(shards, case, fields):
    """Figures of every fourth step, and the last state, of a short training."""
    name, _, _ = CASES[case]
    sparsity = {"k": 4} if "k" in ARCHITECTURES[name].Config.model_fields else {"l0": 4.0}
    config = ARCHITECTURES[name].Config(d_sae=D_SAE, **sparsity, **fields)
    sae = ARCHITECTURES[name](config, D_IN, RunLength(STEPS, 64), shards)
    trainer = Trainer(name, sae, 3e-3, TrainConfig(), torch.device("cpu"))
    generator, figures = torch.Generator().manual_seed(0), []
    for step in range(STEPS):
        x = torch.randn(64, D_IN, generator=generator)
        trainer.step(x, x.var(), step)
        if step % 4 == 3:
            figures.append(trainer.figures(step))
    sae.calibrate([x])
    return figures, trainer.state()


TRAINED = {
    "standard": {"seed": 1}, "gated": {}, "jumprelu-tanh": {}, "jumprelu-step": {"loss": "step"},
    "jumprelu-target_l0": {"loss": "target_l0"}, "topk": {"dead_after_tokens": 200, "k_aux": 3, "init": "kaiming"},
    "batchtopk": {"dead_after_tokens": 200, "k_aux": 3}, "matryoshka": {},
}


def trainings(shards):
    return [trained(shards, case, fields) for case, fields in TRAINED.items()]


def test_one_and_two_processes_train_alike():
    """Losses to 1e-6, and so all but the last bits of the state: while no activation lies within a last bit of its
    threshold, after which any two orders of summation part (Standard with seed 0 did so once)."""
    second, other = run_team(2, trainings)
    assert [figures for figures, _ in other] == [figures for figures, _ in second]  # as are b_dec and coefficients
    for case, (figures, state), (team_figures, team_state) in zip(TRAINED, trainings(ALONE), second, strict=True):
        for line, team_line in zip(figures, team_figures, strict=True):
            assert team_line["dead_latents"] == line["dead_latents"], case
            assert team_line["l0"] == line["l0"], case
            assert team_line["loss"] == pytest.approx(line["loss"], rel=1e-6), case
        assert team_state.keys() == state.keys()
        for key, tensor in state.items():
            assert team_state[key].shape == tensor.shape, (case, key)
            here, there = (of.double().nan_to_num() for of in (tensor, team_state[key]))
            # Adam divides by the root of moments that may be as small as their rounding.
            assert (there - here).norm() <= 1e-5 * here.norm(), (case, key)


def chosen(shards, pre_acts, k):
    """What BatchTopK keeps, on a CPU and in the form for GPUs, as row * d_sae + latent; and the thresholds."""
    rows, d_sae = pre_acts.shape
    sae = BatchTopKSAE(BatchTopKSAE.Config(k=k, d_sae=d_sae), 3, RunLength(10, rows), shards)
    own = shards.own(pre_acts, 1).contiguous()
    found = []
    for choose in sae._choose_on_cpu, sae._choose_on_cpu, sae._choose_on_cuda:
        flat, threshold = choose(own.flatten(), k * rows)
        pairs = flat // sae.width * d_sae + shards.rank * sae.width + flat % sae.width
        found.append((pairs.tolist(), threshold.item()))
    return found


def test_batchtopk_chooses_the_largest_of_all_processes():
    generator = torch.Generator().manual_seed(0)
    for pre_acts in torch.randn(16, 12, generator=generator), torch.randn(16, 12, generator=generator).abs().sort(
            dim=1).values:  # all of the largest with one of the processes
        expected = torch.topk(pre_acts.flatten(), 16 * 2)
        for first, second in zip(*run_team(2, chosen, pre_acts, 2), strict=True):
            assert sorted(first[0] + second[0]) == expected.indices.sort().values.tolist()
            assert first[1] == second[1] == expected.values.min().item()


def levels(shards):
    return [level_passed_by(per_row, batches, lambda x: shards.own(x, 1).flatten(), shards).item()
            for per_row, batches in level_cases()]


def test_the_level_that_thresholds_are_set_to_is_that_of_all_processes():
    expected = [level_passed_by(per_row, batches, torch.flatten).item() for per_row, batches in level_cases()]
    assert run_team(2, levels) == [expected, expected]
