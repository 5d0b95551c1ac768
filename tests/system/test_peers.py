"""dictionary_learning and sparsify open what we export, and we open what they and SAELens save: the same numbers.

SAE_LENS_PYTHON names the interpreter of an environment that has them; `make test-system` makes one.
"""

import json
import os
import subprocess
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from tests.train import tiny_run
from train.architectures import ARCHITECTURES
from train.export import load_sae
from train.export.convert import export_sae
from train.export.exported import MadeFor

pytestmark = pytest.mark.system

HERE = Path(__file__).parent

# Sums of float32 in another order; no latent lies within rounding of its threshold here.
TOLERANCE = 1e-5


def run_peer(script, *arguments):
    interpreter = os.environ.get("SAE_LENS_PYTHON")
    if not interpreter:
        pytest.skip("SAE_LENS_PYTHON is not set: no interpreter with the peers")
    subprocess.run([interpreter, str(HERE / script), *map(str, arguments)], check=True, timeout=280,
                   env={**os.environ, "HF_HUB_OFFLINE": "1"})


def assert_same(ours, theirs, where):
    assert (theirs - ours).norm() <= TOLERANCE * theirs.norm(), where


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """Raw rows, exports by architecture and format with the SAE they come from, and what the peers make of them."""
    folder = tmp_path_factory.mktemp("exported")
    cache, runs = tiny_run.train(folder / "runs")
    x = torch.from_numpy(cache.layer(3)[cache.rows(layer=3, split="held_out")].astype("float32"))
    save_file({"x": x}, folder / "rows.safetensors")
    places = {}
    for run in runs:
        architecture = run.name.split("-")[0]
        for form in ["dictionary_learning", *(["sparsify"] if architecture == "topk" else [])]:
            places[architecture, form] = (run, folder / f"{form}-{architecture}")
            export_sae(run, form, folder / f"{form}-{architecture}")
    run_peer("peers_reader.py", folder / "rows.safetensors", folder / "out.safetensors",
             *(place for _, place in places.values()))
    return x, places, safe_open(folder / "out.safetensors", "pt")


def test_the_peers_have_our_latents_and_reconstructions(exported):
    x, places, theirs = exported
    assert {architecture for architecture, _ in places} == set(ARCHITECTURES)
    for (architecture, form), (run, place) in places.items():
        sae = load_sae(run)
        latents = sae.encode(x)
        assert (latents > 0).any()
        assert_same(latents, theirs.get_tensor(f"{place}/latents"), (architecture, form))
        assert_same(sae(x), theirs.get_tensor(f"{place}/x_hat"), (architecture, form))


def test_each_architecture_becomes_the_class_that_computes_as_it_does(exported):
    _, places, theirs = exported
    found = {kind: json.loads(theirs.metadata()[str(place)]) for kind, (_, place) in places.items()}
    assert found == {
        ("standard", "dictionary_learning"): ["AutoEncoder", "org/fake"],
        ("gated", "dictionary_learning"): ["GatedAutoEncoder", "org/fake"],
        ("topk", "dictionary_learning"): ["AutoEncoderTopK", "org/fake"],
        ("topk", "sparsify"): ["SparseCoder", ""],
        ("batchtopk", "dictionary_learning"): ["BatchTopKSAE", "org/fake"],
        ("matryoshka", "dictionary_learning"): ["MatryoshkaBatchTopKSAE", "org/fake"],
        ("jumprelu", "dictionary_learning"): ["JumpReluAutoEncoder", "org/fake"],
    }


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Raw rows, the folder that the peers saved SAEs in, and what they make of the rows."""
    folder = tmp_path_factory.mktemp("saved")
    x = torch.randn(300, 24, generator=torch.Generator().manual_seed(1)) * 2 + torch.linspace(-3, 4, 24)
    save_file({"x": x}, folder / "rows.safetensors")
    (folder / "saes").mkdir()
    run_peer("peers_writer.py", folder / "rows.safetensors", folder / "out.safetensors", folder / "saes")
    return x, folder / "saes", load_file(folder / "out.safetensors")


def test_we_have_the_peers_latents_and_reconstructions(saved):
    x, folder, theirs = saved
    names = {name.rpartition("/")[0] for name in theirs}
    assert len(names) == 7 + 9 + 1
    for name in names:
        sae = load_sae(folder / name)
        latents = theirs[f"{name}/latents"]
        assert 0 < float((latents > 0).float().mean()) < 0.9
        assert_same(sae.encode(x), latents, name)
        assert_same(sae(x), theirs[f"{name}/x_hat"], name)


def test_we_read_what_they_were_made_for(saved):
    made_for = {name: load_sae(saved[1] / name).made_for
                for name in ("saelens-topk", "dictionary_learning-TopK", "sparsify/layers.3")}
    assert made_for == {"saelens-topk": MadeFor("fake", 3, "blocks.3.hook_resid_post"),
                        "dictionary_learning-TopK": MadeFor("org/fake", 3, "resid_post_layer_3"),
                        "sparsify/layers.3": MadeFor(None, 3, "layers.3")}
