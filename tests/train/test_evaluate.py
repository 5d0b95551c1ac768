"""Evaluation from the cache, against brute force in float64."""

import json

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from rich.console import Console
from safetensors.numpy import load_file

from shared.errors import CorruptError, StorageError
from shared.format.tokens import CONTENT_CLASSES, Role
from tests.train import tiny_run
from tests.train.fake_cache import FakeCache, planted
from train.__main__ import main
from train.commands import run as command
from train.config import plan_saes, read_train_config, sae_tables
from train.evaluate import evaluate_saes, not_evaluated
from train.export import load_sae
from train.metrics import ErrorSums, InputSums, subset_figures
from train.run import train_saes
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


def more_held_out(units):
    """A cache whose held-out rows lie in units 2 and 3."""
    rows, _ = planted(4096, d_in=24)
    return FakeCache(rows * 7 + 1, num_train_rows=2500, units=units)


@pytest.fixture
def trained(tmp_path):
    """One SAE, trained while some of the held-out rows were missing."""
    cache = more_held_out([0, 1, 2])
    recipe = {"train": {"batch_size": 64, "num_tokens": 640}, "sae": [{"d_sae": 32, "k": 3}]}
    config = read_train_config(recipe)
    saes = plan_saes(sae_tables(recipe, None), config, 3, cache.d_model)
    return cache, train_saes(cache, 3, config, saes, runs=tmp_path, device="cpu", say=lambda line: None)


def test_an_sae_is_evaluated_again_after_more_held_out_rows_came(trained):
    cache, folders = trained
    assert not_evaluated(cache, 3, folders) == folders
    [few] = evaluate_saes(cache, 3, folders)
    assert not_evaluated(cache, 3, folders) == []
    more = more_held_out([0, 1, 2, 3])
    assert not_evaluated(more, 3, folders) == folders
    [all_of_them] = evaluate_saes(more, 3, folders)
    assert (few["num_rows"], all_of_them["num_rows"]) == (3072 - 2500, 4096 - 2500)
    assert not_evaluated(more, 3, folders) == []


def test_the_command_repeats_the_evaluation_by_itself(trained, tmp_path, monkeypatch):
    sizes = []
    for units in [0, 1, 2], [0, 1, 2], [0, 1, 2, 3]:
        monkeypatch.setattr(command, "choose_cache", lambda name, layer, units=units: more_held_out(units))
        ended = CliRunner().invoke(main, ["run",
            "--runs", str(tmp_path), "--layer", "3", "--device", "cpu", "--set", "train.batch_size=64",
            "--set", "train.num_tokens=640", "--set", "sae.d_sae=32", "--set", "sae.k=3"])
        assert ended.exit_code == 0, ended.output
        [path] = tmp_path.rglob("eval.json")
        sizes.append((json.loads(path.read_text())["num_rows"], path.stat().st_mtime_ns))
    assert sizes[0] == sizes[1]  # nothing new, nothing done
    assert [rows for rows, _ in sizes] == [572, 572, 1596]


@pytest.mark.parametrize("name", ["sae_weights.safetensors", "cfg.json"])
def test_a_changed_or_missing_file_of_an_sae_is_not_evaluated(trained, name):
    cache, [folder] = trained
    path = folder / name
    data = path.read_bytes()
    path.chmod(0o644)
    for place in (len(data) // 2, len(data) - 2):
        path.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
        with pytest.raises(CorruptError, match=rf"{name} is damaged.*--fresh"):
            evaluate_saes(cache, 3, [folder])
    path.unlink()
    with pytest.raises(StorageError, match=rf"{name} is missing.*--fresh"):
        evaluate_saes(cache, 3, [folder])
    assert not (folder / "eval.json").exists()
    path.write_bytes(data)
    assert len(evaluate_saes(cache, 3, [folder])) == 1
