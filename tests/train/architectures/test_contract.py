"""What every architecture must hold, over the whole of ARCHITECTURES."""

import pytest
import torch

from tests.train.fake_cache import planted
from train.architectures import ARCHITECTURES
from train.architectures.base import RunLength
from train.config import TrainConfig
from train.trainer import Trainer

BATCH = 128


def build(name, d_in=16, num_steps=300, **fields):
    architecture = ARCHITECTURES[name]
    sparsity = {"k": 3} if "k" in architecture.Config.model_fields else {"l0": 3.0}
    config = architecture.Config(**{"d_sae": 48, **sparsity, **fields})
    return architecture(config, d_in, RunLength(num_steps, BATCH))


@pytest.fixture(params=sorted(ARCHITECTURES))
def name(request):
    return request.param


def trained(name, steps=20, **fields):
    sae = build(name, **fields)
    trainer = Trainer(name, sae, 3e-3, TrainConfig(), torch.device("cpu"))
    x = torch.randn(BATCH, 16, generator=torch.Generator().manual_seed(1))
    for step in range(steps):
        trainer.step(x, x.var(), step)
    return sae, x


def test_shapes_and_names_are_those_of_the_design(name):
    sae = build(name)
    x = torch.randn(7, 16)
    assert sae.name == name
    assert sae.W_enc.shape == (16, 48)
    assert sae.W_dec.shape == (48, 16)
    assert sae.encode(x).shape == (7, 48)
    assert sae(x).shape == (7, 16)
    assert ARCHITECTURES[name].__doc__


def test_forward_is_decode_of_encode_and_latents_are_not_negative(name):
    sae, x = trained(name)
    latents = sae.encode(x)
    assert torch.equal(sae(x), sae.decode(latents))
    assert (latents >= 0).all()


def test_a_row_is_encoded_alike_whatever_its_neighbours(name):
    sae, x = trained(name)
    alone = torch.cat([sae.encode(x[i : i + 1]) for i in range(8)])
    changed = x.clone()
    changed[8:] *= 100
    torch.testing.assert_close(sae.encode(changed)[:8], alone, rtol=1e-5, atol=1e-5)


def test_every_parameter_gets_a_gradient(name):
    sae, x = trained(name)
    sae.loss(x, 20).total.backward()
    for parameter_name, parameter in sae.named_parameters():
        assert parameter.grad is not None, parameter_name
        assert parameter.grad.abs().sum() > 0, parameter_name


def test_decoder_rows_keep_unit_norm(name):
    sae, _ = trained(name)
    torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.ones(48), rtol=1e-6, atol=1e-6)


def test_the_state_loads_bit_for_bit_and_training_goes_on_the_same(name):
    x = torch.randn(BATCH, 16)
    trainers = [Trainer(name, build(name), 3e-3, TrainConfig(), torch.device("cpu")) for _ in range(2)]
    for step in range(20):
        trainers[0].step(x, x.var(), step)
    trainers[1].load_state({key: value.clone().contiguous() for key, value in trainers[0].state().items()})
    for step in range(20, 40):
        for trainer in trainers:
            trainer.step(x, x.var(), step)
    for key, value in trainers[0].state().items():
        assert torch.equal(value, trainers[1].state()[key]) or value.isnan().all(), key


def test_the_seed_decides_the_start_and_another_seed_differs(name):
    assert torch.equal(build(name, seed=1).W_dec, build(name, seed=1).W_dec)
    assert not torch.equal(build(name, seed=1).W_dec, build(name, seed=2).W_dec)


def test_a_planted_dictionary_is_found_in_some_hundred_steps(name):
    rows, atoms = planted(BATCH * 64, d_in=24, num_atoms=32, active=2)
    x = torch.from_numpy(rows - rows.mean(0))
    x = x * torch.sqrt(24 / x.square().sum(1).mean())
    steps = 600
    sae = build(name, d_in=24, num_steps=steps, **({"k": 2} if "topk" in name else {"l0": 2.5}))
    trainer = Trainer(name, sae, 1e-2, TrainConfig(), torch.device("cpu"))
    for step in range(steps):
        batch = x[(step % 64) * BATCH : (step % 64 + 1) * BATCH]
        trainer.step(batch, batch.var(), step)
    sae.calibrate([x[: 8 * BATCH]])
    found = (torch.from_numpy(atoms) @ sae.W_dec.detach().t()).max(dim=1).values
    assert (found > 0.9).float().mean() > 0.8
    l0 = (sae.encode(x) > 0).sum(1).float().mean()
    assert 1 < l0 < 4.5
