"""What every architecture must hold, over the whole of ARCHITECTURES. Losses and gradients: test_losses.py."""

import pytest
import torch

from tests.train.fake_cache import planted
from train.architectures import ARCHITECTURES
from train.architectures.base import RunLength
from train.config import TrainConfig
from train.export import load_sae, write_sae
from train.export.folding import fold
from train.statistics import InputStatistics
from train.tensor_files import read_tensors, write_tensors
from train.trainer import Trainer

BATCH = 128
CASES = {name: (name, {}) for name in ARCHITECTURES} | {
    "jumprelu-target_l0": ("jumprelu", {"loss": "target_l0"}), "jumprelu-step": ("jumprelu", {"loss": "step"})}


def build(case, d_in=16, num_steps=300, l0=3, **fields):
    name, of_case = CASES[case]
    architecture = ARCHITECTURES[name]
    sparsity = {"k" if "k" in architecture.Config.model_fields else "l0": l0}
    config = architecture.Config(**{"d_sae": 48, **sparsity, **of_case, **fields})
    return architecture(config, d_in, RunLength(num_steps, BATCH))


@pytest.fixture(params=sorted(CASES))
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
    assert sae.name == CASES[name][0]
    assert sae.W_enc.shape == (16, 48)
    assert sae.W_dec.shape == (48, 16)
    assert sae.encode(x).shape == (7, 48)
    assert sae(x).shape == (7, 16)


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


def test_decoder_rows_keep_unit_norm(name):
    sae, _ = trained(name)
    torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.ones(48), rtol=1e-6, atol=1e-6)


def test_a_frozen_decoder_stays_as_it_was_drawn_while_the_rest_learns(name):
    drawn = build(name, frozen_decoder=True)
    sae, _ = trained(name, frozen_decoder=True)
    assert torch.equal(sae.W_dec, drawn.W_dec)
    assert not torch.equal(sae.W_enc, drawn.W_enc)
    assert not torch.equal(trained(name)[0].W_dec, drawn.W_dec)


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


def test_what_is_saved_is_loaded_bit_for_bit(name, tmp_path):
    sae, x = trained(name)
    sae.calibrate([x])
    write_tensors(tmp_path / "state", dict(sae.state_dict()), {})
    again = build(name)
    for key, value in read_tensors(tmp_path / "state", "cpu").items():
        again.state_dict()[key].copy_(value)
    assert torch.equal(again.encode(x), sae.encode(x))
    assert torch.equal(again(x), sae(x))

    statistics = InputStatistics(torch.linspace(-3, 5, 16), 0.25)
    write_sae(tmp_path / "sae", sae, statistics, {})
    loaded = load_sae(tmp_path / "sae")
    for key, value in fold(sae, statistics).items():
        found = {"b_gate": loaded.b_enc, **dict(zip(("r_mag", "b_mag"), loaded.magnitude or (), strict=False))}
        assert torch.equal(found[key] if key in found else getattr(loaded, key), value), key


def test_the_seed_decides_the_start_and_another_seed_differs(name):
    assert torch.equal(build(name, seed=1).W_dec, build(name, seed=1).W_dec)
    assert not torch.equal(build(name, seed=1).W_dec, build(name, seed=2).W_dec)


def test_a_planted_dictionary_is_found_at_the_asked_l0_in_some_hundred_steps(name):
    rows, atoms = planted(BATCH * 80, d_in=24, num_atoms=32, active=2)
    x = torch.from_numpy(rows - rows.mean(0))
    x = x * torch.sqrt(24 / x.square().sum(1).mean())
    x, held_out = x.split([BATCH * 64, BATCH * 16])
    steps = 600
    sae = build(name, d_in=24, num_steps=steps, l0=2)
    trainer = Trainer(name, sae, 1e-2, TrainConfig(), torch.device("cpu"))
    controller = getattr(sae, "controller", None)
    coefficients = []
    for step in range(steps):
        batch = x[(step % 64) * BATCH : (step % 64 + 1) * BATCH]
        if step == steps - 120:
            trainer.figures(step)  # from here on it means the last fifth
        trainer.step(batch, batch.var(), step)
        coefficients.append(None if controller is None else float(controller.coefficient()))
    # "step" moves thresholds only by rows within its bandwidth of 0.001, and these few hundred steps hardly have any.
    assert trainer.figures(steps)["l0"] == pytest.approx(2, rel=0.3 if name == "jumprelu-step" else 0.1)
    assert len(set(coefficients[-121:])) == 1  # the one that step 480 begins with
    assert controller is None or coefficients[-1] != pytest.approx(coefficients[0], rel=0.01)
    sae.calibrate([x[: 16 * BATCH]])
    found = (torch.from_numpy(atoms) @ sae.W_dec.detach().t()).max(dim=1).values
    assert (found > 0.9).float().mean() > 0.8
    # 2,048 held-out rows: the sampling error of the mean is about 1 %.
    assert (sae.encode(held_out) > 0).sum(1).float().mean() == pytest.approx(2, rel=0.05)
