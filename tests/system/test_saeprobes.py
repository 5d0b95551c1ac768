"""sae-probes (k-sparse probing) runs on our SAEs, offline, with our latents, and finds a latent that tells.

Its data sets come with the package. The model's activations do not, and it looks for them in a cache of its own: here
rows that an SAE was trained for, to which those with the label have one decoder row added.
"""

import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.train import tiny_run
from train.export import load_sae

pytestmark = pytest.mark.system

READER = Path(__file__).with_name("saeprobes_reader.py")
DATASET, MODEL, HOOK = "154_athlete_sport_football", "fake", "blocks.3.hook_resid_post"


@pytest.fixture(scope="module")
def interpreter():
    found = os.environ.get("SAE_LENS_PYTHON")
    if not found:
        pytest.skip("SAE_LENS_PYTHON is not set: no interpreter with sae-lens and sae-probes")
    return found


@pytest.fixture(scope="module")
def labels(interpreter, tmp_path_factory):
    """Those of every text of the data set."""
    path = tmp_path_factory.mktemp("labels") / "labels.npy"
    read(interpreter, "labels", DATASET, path)
    return np.load(path)


@pytest.fixture(scope="module")
def trained(interpreter, tmp_path_factory):
    return tiny_run.train(tmp_path_factory.mktemp("probes"))


def read(interpreter, *arguments):
    """What the reader prints last."""
    ended = subprocess.run([interpreter, str(READER), *map(str, arguments)], check=True, timeout=500, text=True,
                           stdout=subprocess.PIPE, env={**os.environ, "HF_HUB_OFFLINE": "1"})
    return ended.stdout.strip().rpartition("\n")[2]


@pytest.mark.parametrize("architecture", ["batchtopk", "topk"])
def test_it_reads_our_latents_and_finds_one_that_tells(architecture, interpreter, labels, trained, tmp_path):
    cache, folders = trained
    (folder,) = (folder for folder in folders if folder.name.startswith(f"{architecture}-"))
    sae = load_sae(folder)
    rows = cache.layer(3)[cache.rows(layer=3)].astype("float32")
    x = torch.from_numpy(rows[np.random.default_rng(0).integers(len(rows), size=len(labels))])
    density = (sae.encode(x) > 0).float().mean(0)
    rare = int(density.masked_fill(density == 0, 1).argmin())  # a latent that is alive, and seldom active without
    told = x + 5 * x.norm(dim=1).mean() * sae.W_dec[rare] * torch.from_numpy(labels)[:, None]
    place = tmp_path / f"model_activations_{MODEL}"
    place.mkdir()
    torch.save(told.float(), place / f"{DATASET}_{HOOK}.pt")

    printed = read(interpreter, "probe", DATASET, MODEL, HOOK, tmp_path, tmp_path / "latents.npz", folder)

    found = np.load(tmp_path / "latents.npz")
    ours = sae.encode(torch.from_numpy(found["rows"])).numpy()
    assert np.linalg.norm(found["latents"] - ours) <= 1e-5 * np.linalg.norm(ours)
    one, four = json.loads(printed)["results"]
    assert (one["k"], four["k"]) == (1, 4)
    assert one["test_auc"] > 0.99  # of one latent: by chance it would be 0.5
