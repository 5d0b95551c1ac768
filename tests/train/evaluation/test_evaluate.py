"""Evaluation from the cache, against brute force in float64."""

import json

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from rich.console import Console
from safetensors import safe_open
from safetensors.numpy import load_file

from shared.errors import CorruptError, DataError, IdentityError, StorageError
from shared.format.tokens import CONTENT_CLASSES, Role
from tests.train import tiny_run
from tests.train.fake_cache import FakeCache, planted
from train.__main__ import main
from train.commands import run as command
from train.config import plan_saes, read_train_config, sae_tables
from train.evaluation.evaluate import Subject, evaluate, evaluate_saes, not_evaluated
from train.evaluation.metrics import ROW_FIGURES, ErrorSums, InputSums, subset_figures
from train.evaluation.summary import print_summary
from train.export import load_sae
from train.policy import TokenPolicy
from train.run import train_saes


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
            "normalised_error": float((error.sum(1) / x.square().sum(1)).mean()),
            "cosine": float(torch.nn.functional.cosine_similarity(x, sae.decode(latents).double()).mean()),
            "shrinkage": float(sae.decode(latents).double().square().sum() / (x * sae.decode(latents)).sum()),
            "l0": float((latents > 0).sum(1).double().mean()), "l1": float(latents.double().sum(1).mean())}


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
        errors = ErrorSums({name: sums[name] for name in ROW_FIGURES})
        there = evaluation["subsets"]["all"]
        figures = subset_figures(inputs, errors, sums["n"] > 0, there["mse_paper"])
        assert figures == {name: there[name] for name in figures}
        assert figures.keys() == there.keys() - {"num_conversations", "quantiles", "intervals"}


def test_figures_follow_from_the_sums_by_conversation(evaluated):
    cache, folders, evaluations = evaluated
    held_out = cache.rows(layer=3, split="held_out")
    for folder, evaluation in zip(folders, evaluations, strict=True):
        path = folder / "eval_conversations.safetensors"
        sums = load_file(path)
        with safe_open(path, "np") as file:
            subsets = json.loads(file.metadata()["subsets"])
        assert sums["conversation"].tolist() == np.unique(cache.conversation(held_out)).tolist()
        assert np.array_equal(sums["key"].view(np.uint64), cache.keys[sums["conversation"]])
        for number, name in enumerate(subsets):
            figures, of = evaluation["subsets"][name], {key: array[..., number].sum() for key, array in sums.items()
                                                        if key not in {"conversation", "key"}}
            assert figures["num_rows"] == of["n"]
            assert figures["num_conversations"] == (sums["n"][:, number] > 0).sum()
            assert figures["mse"] == pytest.approx(of["squared_error"] / of["n"] / cache.d_model, rel=1e-12)
            # The variance is once a difference of sums, once a sum of differences: the mean square is 3 times it.
            unexplained = of["squared_error"] / of["variance"]
            assert 1 - figures["explained_variance"] == pytest.approx(unexplained, rel=1e-11)
            assert figures["mse_paper"] == pytest.approx(of["sequence_means"] / of["sequences"], rel=1e-12)
            assert figures["l0"] == of["active"] / of["n"]
            for key, (low, high) in figures["intervals"].items():
                assert low <= figures[key] <= high or len(np.unique([low, high, figures[key]])) < 3, (name, key)


def test_classes_part_the_held_out_rows_and_recombine_to_all_of_them(evaluated):
    for evaluation in evaluated[2]:
        subsets = evaluation["subsets"]
        classes = [figures for name, figures in subsets.items() if name.startswith("class:")]
        assert sum(figures["num_rows"] for figures in classes) == subsets["all"]["num_rows"] == evaluation["num_rows"]
        for key in ("mse", "l0", "normalised_error", "cosine"):
            whole = sum(figures[key] * figures["num_rows"] for figures in classes) / evaluation["num_rows"]
            assert subsets["all"][key] == pytest.approx(whole, rel=1e-13)


def test_evaluating_again_writes_the_same_bytes(evaluated):
    cache, folders, _ = evaluated
    names = ("eval.json", "eval_sums.safetensors", "eval_conversations.safetensors")
    before = [(folder / name).read_bytes() for folder in folders for name in names]
    evaluate_saes(cache, 3, folders)
    assert [(folder / name).read_bytes() for folder in folders for name in names] == before
    text = before[0].decode()
    assert max(map(len, text.splitlines())) < 400  # lists of numbers on one line, and nothing else
    assert json.dumps(json.loads(text), indent=1).count("\n") > 2 * text.count("\n")


def test_a_planted_sae_scores_1_and_its_bias_alone_0(tmp_path):
    rng = np.random.default_rng(0)
    atoms = np.linalg.qr(rng.normal(size=(24, 24)))[0].astype(np.float32)  # orthonormal: projections are the codes
    codes = np.maximum(rng.normal(size=(2048, 24)) - 1, 0).astype(np.float32)
    cache = FakeCache(codes @ atoms * 8 + 3, num_train_rows=1024)
    exact = torch.from_numpy(cache.layer(3)[cache.rows(split="held_out")].astype(np.float32))
    W_dec, b_dec = torch.from_numpy(atoms), torch.full((24,), 3.0)

    def planted_sae(x, token_id):
        latents = ((x - b_dec) @ W_dec.t()).relu()
        return latents @ W_dec + b_dec, latents

    mean = exact.double().mean(0)
    subjects = [Subject(tmp_path / name, name, name, 24, reconstruct, TokenPolicy(), 30.0) for name, reconstruct in {
        "planted": planted_sae, "mean": lambda x, token_id: (mean.expand(len(x), -1), torch.zeros(len(x), 24)),
    }.items()]
    for subject in subjects:
        subject.folder.mkdir()
    found = {one["sae"]: one["subsets"]["all"] for one in evaluate(cache, 3, subjects)}
    # Rows are rounded to bfloat16, 1 part in 256, and float32 products to 1 in 10^7.
    assert found["planted"]["explained_variance"] == pytest.approx(1, abs=1e-4)
    assert found["mean"]["explained_variance"] == pytest.approx(0, abs=1e-12)
    assert found["mean"]["l0"] == 0


def test_an_evaluation_of_an_older_version_a_damaged_one_and_one_without_its_sums_are_none(trained):
    cache, [folder] = trained
    evaluate_saes(cache, 3, [folder])
    assert not_evaluated(cache, 3, [folder]) == []
    text = (folder / "eval.json").read_text()
    for other in (text.replace('"format_version": 2', '"format_version": 1'), text[:-9]):
        (folder / "eval.json").write_text(other)
        assert not_evaluated(cache, 3, [folder]) == [folder]
    (folder / "eval.json").write_text(text)
    for name in ("eval_sums.safetensors", "eval_conversations.safetensors"):
        data = (folder / name).read_bytes()
        (folder / name).unlink()
        assert not_evaluated(cache, 3, [folder]) == [folder]
        (folder / name).write_bytes(data)
    assert not_evaluated(cache, 3, [folder]) == []


@pytest.mark.parametrize(("change", "message"), [
    ({"cache_id": "e" * 32}, r"was trained on another cache \(cache_id ffffffffffff\).*--cache"),
    ({}, r"was trained on layer 3, not on layer 4.*--layer 3"),
])
def test_an_sae_of_another_cache_or_layer_is_refused_in_a_line(trained, change, message):
    cache, [folder] = trained
    vars(cache).update(change)
    with pytest.raises(IdentityError, match=message) as caught:
        evaluate_saes(cache, 3 if change else 4, [folder])
    assert "\n" not in caught.value.told()
    assert not (folder / "eval.json").exists()


def test_held_out_conversations_that_were_trained_on_are_refused(trained):
    cache, folders = trained
    cache.keys[70] = cache.keys[3]
    with pytest.raises(DataError, match=r"holds out 1 conversation that it trains on too \(the first .* 70\)"):
        evaluate_saes(cache, 3, folders)


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
    assert "policy:" not in text  # it is the same of all


def test_the_summary_says_the_policies_of_saes_that_only_these_tell_apart(evaluated):
    one = evaluated[2][0]
    other = {**one, "sae": f"{one['sae']}-other", "policy": TokenPolicy(keep_classes=("user",)).model_dump(mode="json")}
    console = Console(width=80, record=True)
    print_summary([one, other], console)
    lines = console.export_text().splitlines()
    assert any(line.startswith(one["sae"] + ": ") and "policy: drop class first; norm <= 10 x median" in line
               for line in lines)
    assert any(line.startswith(other["sae"] + ": ") and "policy: keep class user" in line for line in lines)


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
