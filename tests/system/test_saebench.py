"""SAEBench's core figures beside ours, of the same SAEs on the same rows: what is equal, and by what formula not.

docs/formats.md explains the differences. SAE_LENS_PYTHON names an interpreter with sae-lens and sae-bench.
"""

import json
import os
import subprocess
from pathlib import Path

import pytest
import torch
from safetensors.numpy import load_file
from safetensors.torch import save_file

from tests.train import tiny_run
from train.evaluation.evaluate import evaluate_saes

pytestmark = pytest.mark.system

READER = Path(__file__).with_name("saebench_reader.py")
BATCHES = 4


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """For a BatchTopK and a Standard SAE: our figures of all held-out rows, their |x|^2 and |mean|^2, SAEBench's."""
    interpreter = os.environ.get("SAE_LENS_PYTHON")
    if not interpreter:
        pytest.skip("SAE_LENS_PYTHON is not set: no interpreter with sae-lens and sae-bench")
    folder = tmp_path_factory.mktemp("saebench")
    recipe = {**tiny_run.RECIPE, "sae": [tiny_run.RECIPE["sae"][0], tiny_run.RECIPE["sae"][2]]}
    cache, saes = tiny_run.train(folder / "runs", recipe)
    x = torch.from_numpy(cache.layer(3)[cache.rows(layer=3, split="held_out")].astype("float32"))
    save_file({"x": x}, folder / "rows.safetensors")
    found = []
    for sae, evaluation in zip(saes, evaluate_saes(cache, 3, saes), strict=True):
        ended = subprocess.run([interpreter, str(READER), str(folder / "rows.safetensors"), str(folder / "out.json"),
                                str(sae), str(BATCHES)], timeout=280, env={**os.environ, "HF_HUB_OFFLINE": "1"},
                               capture_output=True, text=True)
        if ended.returncode == 3:
            pytest.skip(f"sae-bench is not installed beside sae-lens: {ended.stderr.strip()}")
        assert ended.returncode == 0, ended.stderr
        sums = load_file(sae / "eval_sums.safetensors")
        squares = float(sums["sum_x2"].sum()) / len(x)
        mean_squared = float((sums["sum_x"].sum(axis=0) ** 2).sum()) / len(x) ** 2
        theirs = json.loads((folder / "out.json").read_text())
        found.append((evaluation["subsets"]["all"], squares, mean_squared, theirs))
    return x, found


def test_l0_is_the_same(both):
    for ours, _, _, theirs in both[1]:
        assert theirs["l0"] == pytest.approx(ours["l0"], rel=1e-6)


def test_their_mse_is_ours_summed_over_dimensions_and_divided_once_more_by_the_tokens_of_a_batch(both):
    x, found = both
    for ours, _, _, theirs in found:
        assert theirs["mse"] * (len(x) / BATCHES) == pytest.approx(ours["mse"] * x.shape[1], rel=1e-5)


def test_their_explained_variance_subtracts_another_mean(both):
    """The mean of x^2 over rows, batches and dimensions, squared, where ours has the squared norm of the mean row."""
    x, found = both
    for ours, squares, mean_squared, theirs in found:
        error = ours["mse"] * x.shape[1]
        assert ours["explained_variance"] == pytest.approx(1 - error / (squares - mean_squared), rel=1e-6)
        their_variance = squares - (squares / x.shape[1]) ** 2
        assert theirs["explained_variance"] == pytest.approx(1 - error / their_variance, rel=1e-4)
        assert abs(theirs["explained_variance"] - ours["explained_variance"]) > 0.01
