"""SAELens opens every architecture that we train, and encodes and decodes like us.

SAE_LENS_PYTHON names the interpreter of an environment that has sae-lens; `make test-system` makes one.
"""

import json
import os
import subprocess
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from tests.train import tiny_run
from train.architectures import ARCHITECTURES
from train.export import load_sae

pytestmark = pytest.mark.system

READER = Path(__file__).with_name("saelens_reader.py")


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    """One trained SAE of each architecture, raw rows, and what SAELens makes of them."""
    interpreter = os.environ.get("SAE_LENS_PYTHON")
    if not interpreter:
        pytest.skip("SAE_LENS_PYTHON is not set: no interpreter with sae-lens")
    folder = tmp_path_factory.mktemp("saelens")
    cache, folders = tiny_run.train(folder / "runs")
    x = torch.from_numpy(cache.layer(3)[cache.rows(layer=3, split="held_out")].astype("float32"))
    save_file({"x": x}, folder / "rows.safetensors")
    subprocess.run([interpreter, str(READER), str(folder / "rows.safetensors"), str(folder / "out.safetensors"),
                    *map(str, folders)], check=True, timeout=250, env={**os.environ, "HF_HUB_OFFLINE": "1"})
    return x, folders, safe_open(folder / "out.safetensors", "pt")


def test_every_architecture_is_among_them(opened):
    trained = {json.loads((folder / "cfg.json").read_text())["metadata"]["training_architecture"]
               for folder in opened[1]}
    assert trained == set(ARCHITECTURES)


def test_latents_and_reconstructions_are_ours(opened):
    x, folders, theirs = opened
    for folder in folders:
        sae = load_sae(folder)
        for name, ours in (("latents", sae.encode(x)), ("x_hat", sae(x))):
            other = theirs.get_tensor(f"{folder}/{name}")
            assert (other - ours).norm() <= 1e-5 * ours.norm(), (folder.name, name)


def test_the_metadata_survives(opened):
    _, folders, theirs = opened
    for folder in folders:
        found = json.loads(theirs.metadata()[str(folder)])
        assert found["hook_name"] == "blocks.3.hook_resid_post"
        assert found["model_name"] == "org/fake"
        assert found["prepend_bos"] is False
        assert found["ours"] == "f" * 32
        assert found["architecture"] in {"standard", "gated", "jumprelu", "topk"}
