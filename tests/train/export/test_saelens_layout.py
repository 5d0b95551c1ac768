"""The folder that SAELens opens, without SAELens: layout, folding, and our own loader."""

import json
import math
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from shared.errors import CorruptError, StorageError
from tests.train.fake_cache import FakeCache
from train.architectures import ARCHITECTURES
from train.architectures.base import RunLength
from train.config import TrainConfig
from train.export import load_sae, write_sae
from train.export.saelens import sae_metadata
from train.statistics import InputStatistics
from train.trainer import Trainer

STATISTICS = InputStatistics(torch.linspace(-3, 5, 16), 0.25)


@pytest.fixture(params=sorted(ARCHITECTURES))
def exported(request, tmp_path):
    architecture = ARCHITECTURES[request.param]
    sae = architecture(architecture.Config(d_sae=40), 16, RunLength(50, 64))
    trainer = Trainer("a", sae, 1e-2, TrainConfig(), torch.device("cpu"))
    raw = torch.randn(64, 16, generator=torch.Generator().manual_seed(0)) * 4 + STATISTICS.centre
    for step in range(30):
        x = STATISTICS.apply(raw)
        trainer.step(x, x.var(), step)
    cache = FakeCache(np.zeros((128, 16), np.float32))
    metadata = sae_metadata(cache, 9, l0=3.0, num_dead=1, policy={"max_norm": 10.0}, name="a")
    write_sae(tmp_path / "sae", sae, STATISTICS, metadata)
    return sae, raw, tmp_path / "sae"


def test_the_sae_on_disk_takes_raw_activations(exported):
    sae, raw, folder = exported
    loaded = load_sae(folder)
    with torch.no_grad():
        latents = sae.encode(STATISTICS.apply(raw)) / STATISTICS.scale
        x_hat = sae(STATISTICS.apply(raw)) / STATISTICS.scale + STATISTICS.centre
    torch.testing.assert_close(loaded.encode(raw), latents, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(loaded(raw), x_hat, rtol=1e-5, atol=1e-4)
    assert (loaded.d_in, loaded.d_sae) == (16, 40)


def test_the_tensors_are_exactly_those_of_the_layout(exported):
    sae, _, folder = exported
    tensors = load_file(folder / "sae_weights.safetensors")
    shapes = {"W_enc": (16, 40), "b_enc": (40,), "W_dec": (40, 16), "b_dec": (16,)}
    if sae.name in ("jumprelu", "batchtopk", "matryoshka"):
        shapes["threshold"] = (40,)
    if sae.name == "gated":
        del shapes["b_enc"]
        shapes |= dict.fromkeys(("b_gate", "b_mag", "r_mag"), (40,))
    assert {name: tuple(tensor.shape) for name, tensor in tensors.items()} == shapes
    torch.testing.assert_close(tensors["W_dec"].norm(dim=1), torch.ones(40), rtol=1e-6, atol=1e-6)


def test_cfg_json_has_what_saelens_and_its_users_look_up(exported):
    sae, _, folder = exported
    config = json.loads((folder / "cfg.json").read_text())
    assert config["architecture"] == {"batchtopk": "jumprelu", "matryoshka": "jumprelu"}.get(sae.name, sae.name)
    assert (config["d_in"], config["d_sae"], config["dtype"]) == (16, 40, "float32")
    assert config["apply_b_dec_to_input"] is True
    assert config["normalize_activations"] == config["reshape_activations"] == "none"
    metadata = config["metadata"]
    assert metadata["sae_lens_version"].startswith("6.")
    assert metadata["hook_name"] == "blocks.9.hook_resid_post"
    assert metadata["hf_hook_name"] == "model.layers.9"
    assert metadata["training_architecture"] == sae.name
    assert metadata["prepend_bos"] is False
    assert metadata["model_name"] == "org/fake"
    assert metadata["sae_granary"]["token_policy"] == {"max_norm": 10.0}
    assert metadata["sae_granary"]["cache_id"] == "f" * 32


def test_what_is_no_sae_is_refused(exported, tmp_path):
    _, _, folder = exported
    with pytest.raises(StorageError, match="No SAE in"):
        load_sae(tmp_path / "nothing")
    weights = load_file(folder / "sae_weights.safetensors")
    for name, value in (("b_dec", math.nan), ("W_enc", math.inf), (list(weights)[-1], math.nan)):
        other = {key: tensor.clone() for key, tensor in weights.items()}
        other[name].view(-1)[0] = value
        save_file(other, tmp_path / "sae_weights.safetensors")
        shutil.copy(folder / "cfg.json", tmp_path)
        with pytest.raises(CorruptError, match="has values that are no finite numbers"):
            load_sae(tmp_path)
    config = json.loads((folder / "cfg.json").read_text())
    (folder / "cfg.json").write_text(json.dumps({**config, "d_sae": 41}))
    with pytest.raises(CorruptError, match=r"does not fit cfg\.json"):
        load_sae(folder)
