"""A whole run: what it leaves, and that a kill at any time changes nothing."""

import json
import logging
import os
import re
import signal
import weakref

import numpy as np
import pytest
import torch

from shared.errors import IdentityError, RecipeError, TryAgainError
from shared.progress import Progress
from shared.provenance import versions
from shared.sealed_json import read_sealed, write_sealed
from tests.train import tiny_run
from train import checkpoint, training_set
from train import run as training
from train.batches import Batches
from train.export import load_sae
from train.locks import locked
from train.policy import TokenPolicy, only_types, training_mask
from train.run import SetRun
from train.training_set import CHECKPOINTS

TIMES = {"tokens_per_second", "stall_share"}
"""What a resumed run's metrics.jsonl may differ in."""


def weights(folders):
    return {folder.name: (folder / "sae_weights.safetensors").read_bytes() for folder in folders}


def metrics(folder):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert all(0 <= line["stall_share"] <= 1 for line in lines)
    return [{key: value for key, value in line.items() if key not in TIMES} for line in lines]


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    _, folders = tiny_run.train(tmp_path_factory.mktemp("runs"))
    torch.set_num_threads(before)
    return folders


def test_a_run_leaves_what_the_design_says(reference):
    for folder in reference:
        assert {path.name for path in folder.iterdir()} == {
            "sae_weights.safetensors", "cfg.json", "metrics.jsonl", "run.json"}
        run = read_sealed(folder / "run.json")
        assert run["name"] == folder.name
        assert run["units"] == [0, 1, 2, 3]
        assert run["resolved"]["num_steps"] == 120
        assert [line["step"] for line in metrics(folder)] == [*range(7, 120, 7), 120]
    assert [path.name for path in (reference[0].parent / CHECKPOINTS).iterdir()] == []


def test_a_finished_sae_is_not_trained_again(reference, tmp_path):
    said = []
    before = weights(reference)
    _, folders = tiny_run.train(reference[0].parents[2], say=said.append)
    assert weights(folders) == before
    assert len(said) == len(reference)
    assert all("is trained already" in line for line in said)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_writes_a_checkpoint_and_the_exit_code_says_so(reference, tmp_path, number, monkeypatch):
    from train.trainer import Trainer

    original = Trainer.step

    def step(self, x, variance, count):
        if count == 33 and self.name.startswith("batchtopk"):
            os.kill(os.getpid(), number)
        original(self, x, variance, count)

    monkeypatch.setattr(Trainer, "step", step)
    with pytest.raises(SystemExit) as stopped:
        tiny_run.train(tmp_path)
    assert stopped.value.code == 128 + number
    assert list(tmp_path.rglob("step-000000034"))
    monkeypatch.undo()
    _, folders = tiny_run.train(tmp_path)
    assert weights(folders) == weights(reference)


def test_a_signal_while_the_last_step_is_saved_ends_it_before_the_next_turn(tmp_path, monkeypatch):
    recipe = {"train": tiny_run.RECIPE["train"] | {"memory_gib": 1e-6}, "sae": tiny_run.RECIPE["sae"][2:4]}
    _, whole = tiny_run.train(tmp_path / "whole", recipe)
    save, sent = checkpoint.save, []

    def signalled(folder, step, *rest):
        if step == 120 and not sent:
            sent.append(step)
            os.kill(os.getpid(), signal.SIGTERM)
        return save(folder, step, *rest)

    monkeypatch.setattr(checkpoint, "save", signalled)
    said = []
    with pytest.raises(SystemExit) as ended:
        tiny_run.train(tmp_path / "runs", recipe, say=said.append)
    assert ended.value.code == 143
    assert [line for line in said if line.startswith("Turn")] == ["Turn 1 of 2: 1 SAE."]
    assert said[-1] == "Stopped after the last step. The same command goes on from here."
    _, folders = tiny_run.train(tmp_path / "runs", recipe, say=said.append)
    assert "Going on from step 120." in said
    assert weights(folders) == weights(whole)


def test_the_progress_counts_tokens_and_shows_the_first_saes_last_figures(tmp_path, monkeypatch):
    shown, counts = {}, []

    class Seen(Progress):
        def advance(self, count, **figures):
            counts.append(count)
            shown.update(figures)

    monkeypatch.setattr(training, "Progress", Seen)
    topk, gated = tiny_run.RECIPE["sae"][3:5]
    saes = [{**topk, "d_sae": 400, "dead_after_tokens": 64}, gated]
    _, folders = tiny_run.train(tmp_path, {**tiny_run.RECIPE, "sae": saes})
    assert sum(counts) == 64 * 120
    last = json.loads((folders[0] / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["aux_loss"] > 0
    expected = {"loss": last["loss"] - last["aux_loss"], "l0": last["l0"], "ev": last["explained_variance"],
                "dead": last["dead_latents"] / 400, "stall": last["stall_share"]}
    assert shown == pytest.approx(expected, rel=1e-5)  # six digits stand in the file


def test_it_says_what_is_trained_on_and_how_well_batches_are_mixed(tmp_path):
    said = []
    tiny_run.train(tmp_path, {**tiny_run.RECIPE, "sae": tiny_run.RECIPE["sae"][:1]}, say=said.append)
    assert "3,412 training rows kept" in said[0]
    assert "120 steps of 64 rows = 7,680 tokens, 2.25 passes" in said[1]
    assert re.search(r"Shuffle windows, .* in memory: batches have [\d.]+ times the same-conversation pairs", said[2])


def test_units_committed_later_do_not_change_a_run_that_goes_on(tmp_path):
    recipe = {**tiny_run.RECIPE, "sae": tiny_run.RECIPE["sae"][:1]}
    _, expected = tiny_run.train(tmp_path / "a", recipe, units=[0, 1])
    tiny_run.stopped_at(50, tmp_path / "b", recipe, units=[0, 1])
    _, folders = tiny_run.train(tmp_path / "b", recipe, units=[0, 1, 2, 3])
    assert weights(folders) == weights(expected)
    assert read_sealed(folders[0] / "run.json")["units"] == [0, 1]


def test_the_same_name_from_another_recipe_or_cache_is_refused(tmp_path):
    recipe = {**tiny_run.RECIPE, "sae": tiny_run.RECIPE["sae"][3:4]}
    _, (folder,) = tiny_run.train(tmp_path, recipe)
    run = read_sealed(folder / "run.json")
    for change, message in ({"cache_id": "0" * 32}, "another cache"), ({"recipe": {}}, "another recipe"):
        write_sealed(folder / "run.json", {**run, **change})
        with pytest.raises(IdentityError, match=message):
            tiny_run.train(tmp_path, recipe)


def test_the_threshold_is_set_on_the_rows_that_the_recipe_names(tmp_path):
    train = tiny_run.RECIPE["train"] | {"calibration_types": ["content"]}
    cache, (folder,) = tiny_run.train(tmp_path, {"train": train, "sae": tiny_run.RECIPE["sae"][:1]})
    run = read_sealed(folder / "run.json")
    batches = Batches(cache, 3, 64, mask=only_types(cache, training_mask(cache, 3, TokenPolicy()), ("content",)),
                      num_steps=4, window_blocks=5)
    sae = load_sae(folder)
    l0 = np.mean([float((sae.encode(x.float()) > 0).sum(1).float().mean()) for x in batches])
    assert run["l0_train"] == pytest.approx(3.0, rel=0.02)  # k, up to ties and what one pair is worth
    assert l0 == pytest.approx(run["l0_train"], rel=0.02)  # folding scale and centre moves a few rows over


def test_two_processes_never_train_the_same_sae(tmp_path):
    with locked(tmp_path, ["a", "b"]):
        with pytest.raises(TryAgainError, match="Another process trains b"), locked(tmp_path, ["b", "c"]):
            pass
        with locked(tmp_path, ["c"]):  # others are free, and what was taken in vain is given back
            pass
    assert list(tmp_path.iterdir()) == []


def test_a_member_that_was_finished_meanwhile_is_not_trained_again_with_its_set(reference, tmp_path, monkeypatch):
    from train.trainer import Trainer

    recipe = {**tiny_run.RECIPE, "sae": tiny_run.RECIPE["sae"][:2]}
    tiny_run.stopped_at(50, tmp_path, recipe)
    _, [finished] = tiny_run.train(tmp_path, {**recipe, "sae": recipe["sae"][:1]})
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in finished.iterdir()}
    trained, original = [], Trainer.step
    monkeypatch.setattr(Trainer, "step", lambda self, x, variance, count: trained.append((self.name, count)) or
                        original(self, x, variance, count))
    _, folders = tiny_run.train(tmp_path, recipe)
    assert trained == [(folders[1].name, step) for step in range(50, 120)]  # the other, from the set's checkpoint
    assert {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in finished.iterdir()} == before
    assert weights(folders).items() <= weights(reference).items()
    assert [path.name for path in (tmp_path / "fake" / "layer3" / CHECKPOINTS).iterdir()] == []


def test_an_sae_that_diverges_does_not_stop_the_others_of_its_set(reference, tmp_path):
    recipe = {**tiny_run.RECIPE, "sae": [*tiny_run.RECIPE["sae"][:1], {**tiny_run.RECIPE["sae"][3], "lr": 1e30},
                                         *tiny_run.RECIPE["sae"][1:2]]}
    said = []
    with pytest.raises(RecipeError, match=r"diverged: its loss is not finite at step 7.*\nAll others are trained"):
        tiny_run.train(tmp_path, recipe, say=said.append)
    assert sum("diverged" in line for line in said) == 1
    folders = [path.parent for path in tmp_path.rglob("run.json")]
    assert len(folders) == 2
    assert weights(folders).items() <= weights(reference).items()
    assert list((folders[0].parent / CHECKPOINTS).iterdir()) == []


def test_a_run_that_goes_on_leaves_out_what_diverged_before(reference, tmp_path):
    recipe = {**tiny_run.RECIPE, "sae": [*tiny_run.RECIPE["sae"][:1], {**tiny_run.RECIPE["sae"][3], "lr": 1e30}]}
    tiny_run.stopped_at(50, tmp_path, recipe)
    with pytest.raises(RecipeError, match=r"topk.* diverged: its loss is not finite before step 50"):
        tiny_run.train(tmp_path, recipe)
    [folder] = [path.parent for path in tmp_path.rglob("run.json")]
    assert weights([folder]).items() <= weights(reference).items()


def test_lines_that_a_metrics_file_lost_are_told(reference, tmp_path, caplog):
    recipe = {**tiny_run.RECIPE, "sae": tiny_run.RECIPE["sae"][:1]}
    tiny_run.stopped_at(50, tmp_path, recipe)
    [path] = tmp_path.rglob("metrics.jsonl")
    path.write_bytes(path.read_bytes()[:40])
    with caplog.at_level(logging.WARNING):
        _, folders = tiny_run.train(tmp_path, recipe)
    assert "lost lines from before the checkpoint" in caplog.text
    assert [line["step"] for line in metrics(folders[0])] == [*range(56, 120, 7), 120]  # and not half of the first
    assert weights(folders).items() <= weights(reference).items()


def test_what_is_otherwise_than_when_a_run_began_is_told_and_kept(tmp_path, monkeypatch, caplog):
    recipe = {**tiny_run.RECIPE, "sae": tiny_run.RECIPE["sae"][:1]}
    now = versions()
    monkeypatch.setattr(training_set, "versions", lambda: {**now, "torch": "2.0.1"})
    tiny_run.stopped_at(50, tmp_path, recipe)
    caplog.clear()
    _, [folder] = tiny_run.train(tmp_path, recipe)
    header, *told = caplog.messages[0].splitlines()
    assert "begun otherwise" in header
    assert [line.split() for line in told] == [["begun", "now"], ["versions.torch", "2.0.1", now["torch"]]]
    record = read_sealed(folder / "run.json")
    assert (record["versions"], record["versions_at_start"]["torch"]) == (now, "2.0.1")


def test_a_turn_has_left_memory_when_the_next_begins(tmp_path, monkeypatch):
    trainers, alive = [], []
    original = SetRun.__init__

    def begin(self, *arguments):
        alive.append(sum(trainer() is not None for trainer in trainers))
        original(self, *arguments)
        trainers.extend(weakref.ref(trainer) for trainer in self.trainers)

    monkeypatch.setattr(SetRun, "__init__", begin)
    train = {**tiny_run.RECIPE["train"], "memory_gib": 1e-6}  # nothing fits: each by itself
    tiny_run.train(tmp_path, {"train": train, "sae": tiny_run.RECIPE["sae"][:3]})
    assert len(trainers) == 3
    assert alive == [0, 0, 0]
