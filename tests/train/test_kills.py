"""Killed at any operation of a run's files, the same command ends as if nothing had been.

Here inside one process, operation by operation; tests/crash/test_training_kills.py kills the real command.
"""

import json
import logging

import pytest

import train.run
from shared import storage
from tests.train import tiny_run

RECIPE = {
    "train": {"batch_size": 32, "num_tokens": 32 * 12, "log_steps": 3, "checkpoint_steps": 5, "window_blocks": 5,
              "calibration_batches": 2, "held_out_rows": 64, "held_out_steps": 6},
    "sae": [{"architecture": "batchtopk", "d_sae": 16, "k": 3, "dead_after_tokens": 64},
            {"architecture": "jumprelu", "d_sae": 16, "l0": 3.0}],
}


class Killed(BaseException):
    """SIGKILL, as far as one process can have it: no operation happens afterwards."""


@pytest.fixture(autouse=True)
def _the_last_checkpoint_stays(monkeypatch):
    """With it the optimiser's state can be compared."""
    monkeypatch.setattr(train.run, "remove_finished_sets", lambda *_: None)


def left(runs):
    """The bytes of what a run leaves: weights, the last checkpoint's tensors, figures without times."""
    found = {}
    for path in sorted(runs.rglob("*")):
        if path.suffix == ".safetensors" and ("step-" not in path.parent.name or "12" in path.parent.name):
            found[path.relative_to(runs)] = path.read_bytes()
        elif path.name == "metrics.jsonl":
            lines = [json.loads(line) for line in path.read_text().splitlines()]
            found[path.relative_to(runs)] = [
                {key: value for key, value in line.items() if key not in {"tokens_per_second", "stall_share"}}
                for line in lines]
    return found


def run(runs, observer=None):
    with storage.observe(observer or (lambda operation, path: None)):
        tiny_run.train(runs, RECIPE)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """What is left when nothing happens, and the operations on the way."""
    folder, seen = tmp_path_factory.mktemp("undisturbed"), []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train.run, "remove_finished_sets", lambda *_: None)
        storage.make_folder(folder)
        run(folder / "0", lambda operation, path: seen.append((operation, path.name)))
    found = left(folder / "0")
    assert len(found) == 5  # two SAEs, their figures, the last checkpoint
    return found, seen


def test_the_figures_that_a_checkpoint_counts_on_have_their_names_on_disk_before_it(undisturbed):
    _, seen = undisturbed
    first_checkpoint = next(number for number, (operation, name) in enumerate(seen)
                            if operation == "rename" and name.startswith("step-"))
    synced = {name for operation, name in seen[:first_checkpoint] if operation == "fsync_folder"}
    assert {sae.name for sae in tiny_run.planned(RECIPE)} <= synced


def test_killed_before_any_operation_it_ends_with_the_same_bits(undisturbed, tmp_path, monkeypatch):
    expected, seen = undisturbed
    assert {"mkdir", "create", "write", "fsync", "fsync_folder", "rename", "rmtree"} <= {name for name, _ in seen}
    storage.make_folder(tmp_path)  # as the undisturbed one: operations have the same numbers
    starts = set()
    describe = train.run.SetRun._describe
    monkeypatch.setattr(train.run.SetRun, "_describe", lambda self: starts.add(self.start) or describe(self))
    saved = [number for number, (operation, name) in enumerate(seen) if (operation, name[:4]) == ("mkdir", "tmp-")]
    chosen = {*range(saved[1] - len(RECIPE["sae"]), saved[2]), *range(0, len(seen), 6), len(seen) - 1}
    for number in sorted(chosen):  # all of the second save, and a sixth of the rest
        count, runs = 0, tmp_path / str(number)

        def kill(operation, path, number=number):
            nonlocal count
            count += 1
            if count > number:
                raise Killed(operation, path)

        with pytest.raises(Killed):
            run(runs, kill)
        run(runs)
        assert left(runs) == expected, seen[number]
    assert starts == {0, 5, 10, 12}, "the kills have to land before, between and after the checkpoints"


def test_a_damaged_newest_checkpoint_costs_the_steps_since_the_one_before(undisturbed, tmp_path, caplog, monkeypatch):
    def stop(self, x, variance, step):
        if step == 11:
            raise Killed
        original(self, x, variance, step)

    original = train.run.Trainer.step
    with monkeypatch.context() as patch:
        patch.setattr(train.run.Trainer, "step", stop)
        with pytest.raises(Killed):
            run(tmp_path)
    [newest] = tmp_path.rglob("step-000000010/state.safetensors")
    data = bytearray(newest.read_bytes())
    data[-9] ^= 4
    newest.write_bytes(data)
    said = []
    with caplog.at_level(logging.WARNING):
        tiny_run.train(tmp_path, RECIPE, say=said.append)
    assert "Going back to the one before" in caplog.text
    assert "Going on from step 5." in said
    assert left(tmp_path) == undisturbed[0]
