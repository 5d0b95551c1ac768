"""Evaluation from the cache, against brute force in float64."""

import json

import numpy as np
import pytest
import torch
from rich.console import Console
from safetensors.numpy import load_file

from shared.tokens import CONTENT_CLASSES, Role
from tests.train import tiny_run
from train.evaluate import evaluate_saes
from train.export import load_sae
from train.metrics import ErrorSums, InputSums, subset_figures
from train.summary import print_summary


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory):
    cache, folders = tiny_run.train(tmp_path_factory.mktemp("runs"))
    return cache, folders, evaluate_saes(cache, 3, folders)


def brute_force(cache, folder, rows):
    x = torch.from_numpy(cache.layer(3)[rows].astype(np.float64))
    sae = load_sae(folder)
    latents = sae.encode(x.float())
    error = (x - sae.decode(latents).double()).square()
    sequence = torch.from_numpy(cache.sequence(rows))
    means = [error[sequence == s].mean() for s in sequence.unique()]
    return {"num_rows": len(rows), "mse": float(error.mean()), "mse_paper": float(torch.stack(means).mean()),
            "explained_variance": float(1 - error.sum() / (x - x.mean(0)).square().sum()),
            "l0": float((latents > 0).sum(1).double().mean())}


def test_every_figure_is_that_of_brute_force(evaluated):
    cache, folders, evaluations = evaluated
    held_out = cache.rows(layer=3, split="held_out")
    classes, roles = cache.token_class[held_out], cache.role[held_out]
    for folder, evaluation in zip(folders, evaluations, strict=True):
        assert evaluation["num_rows"] == len(held_out)
        for name, inside in {"all": np.ones(len(held_out), bool), "content": np.isin(classes, CONTENT_CLASSES),
                             "role:assistant": roles == Role.ASSISTANT}.items():
            for key, value in brute_force(cache, folder, held_out[inside]).items():
                assert evaluation["subsets"][name][key] == pytest.approx(value, rel=1e-5), (name, key)


def test_eval_json_is_what_was_returned_and_follows_from_the_sums(evaluated):
    _, folders, evaluations = evaluated
    for folder, evaluation in zip(folders, evaluations, strict=True):
        assert json.loads((folder / "eval.json").read_text()) == evaluation
        sums = load_file(folder / "eval_sums.safetensors")
        inputs = InputSums(sums["n"], sums["sum_x"], sums["sum_x2"])
        errors = ErrorSums(sums["squared_error"], sums["active"])
        paper = evaluation["subsets"]["all"]["mse_paper"]
        assert subset_figures(inputs, errors, sums["n"] > 0, paper) == evaluation["subsets"]["all"]


def test_too_few_held_out_rows_call_no_latent_dead(evaluated):
    for evaluation in evaluated[2]:
        latents = evaluation["latents"]
        assert latents["dead_held_out"] is None
        assert latents["dead_held_out_rows"] == evaluation["subsets"]["policy"]["num_rows"]
        assert latents["dead_train_window_tokens"] == 64 * 12
        histogram = latents["density_log10_histogram"]
        assert sum(histogram["counts"]) + histogram["never_fired"] == evaluation["d_sae"]


def test_without_held_out_rows_there_is_nothing_to_evaluate(evaluated):
    cache, folders, _ = evaluated
    cache.units = (0,)
    try:
        assert evaluate_saes(cache, 3, folders) == []
    finally:
        cache.units = (0, 1, 2, 3)


def test_the_summary_fits_a_terminal_and_names_every_sae(evaluated):
    console = Console(width=80, record=True)
    print_summary(evaluated[2], console)
    text = console.export_text()
    assert "…" not in text
    for evaluation in evaluated[2]:
        assert evaluation["sae"] in text
