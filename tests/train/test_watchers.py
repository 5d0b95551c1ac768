"""Watchers get every line of metrics.jsonl, and can neither change nor stop a training."""

import json
import logging
import sys
from types import SimpleNamespace
from typing import get_args

import pytest

from shared.errors import RecipeError
from tests.train import tiny_run
from tests.train.test_run import weights
from train.config import TrainConfig
from train.watchers import WATCHERS
from train.watchers.base import WatchedRun
from train.watchers.tensorboard import TensorBoardWatcher
from train.watchers.trackio import TrackioWatcher
from train.watchers.wandb import WandbWatcher

RECIPE = {"train": tiny_run.RECIPE["train"] | {"num_tokens": 64 * 40, "watch": ["wandb"]},
          "sae": tiny_run.RECIPE["sae"][2:4]}


class Fake:
    """Notes what it is told."""

    opened: list["Fake"]
    fails_at = None

    def __init__(self, run):
        self.run, self.lines, self.closed = run, [], False
        Fake.opened.append(self)

    def log(self, step, figures):
        if step == self.fails_at:
            raise OSError("the network is gone")
        self.lines.append({"step": step, **figures})

    def close(self):
        self.closed = True


@pytest.fixture
def fake(monkeypatch):
    Fake.opened = []
    monkeypatch.setitem(WATCHERS, "wandb", Fake)
    return Fake


def lines_of(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_each_sae_has_a_watcher_that_gets_every_line_of_its_metrics(fake, tmp_path):
    _, folders = tiny_run.train(tmp_path, RECIPE)
    assert [watcher.run.name for watcher in fake.opened] == [folder.name for folder in folders]
    for watcher, folder in zip(fake.opened, folders, strict=True):
        assert watcher.lines == lines_of(folder)
        assert watcher.closed
        assert (watcher.run.group, watcher.run.folder, watcher.run.start_step) == ("fake/layer3", folder, 0)
        assert watcher.run.config["sae"]["architecture"] == folder.name.split("-")[0]
    assert len({watcher.run.run_id for watcher in fake.opened}) == 1


def test_where_one_cannot_be_opened_those_that_were_are_closed(fake, tmp_path, monkeypatch):
    opened = Fake.__init__

    def fails_once_two_are_open(self, run):
        if len(Fake.opened) == 2:
            raise OSError("no account")
        opened(self, run)

    monkeypatch.setattr(Fake, "__init__", fails_once_two_are_open)
    monkeypatch.setitem(WATCHERS, "trackio", Fake)
    with pytest.raises(RecipeError, match="'wandb' could not be opened: no account"):
        tiny_run.train(tmp_path, {**RECIPE, "train": RECIPE["train"] | {"watch": ["wandb", "trackio"]}})
    assert [watcher.closed for watcher in fake.opened] == [True, True]
    fake.opened = fake.opened[:1]  # of one SAE the second watcher fails
    with pytest.raises(RecipeError, match="'trackio' could not be opened: no account"):
        tiny_run.train(tmp_path, {**RECIPE, "train": RECIPE["train"] | {"watch": ["wandb", "trackio"]}})
    assert [watcher.closed for watcher in fake.opened] == [True, True]


def test_names_and_weights_are_the_same_with_and_without(fake, tmp_path):
    _, watched = tiny_run.train(tmp_path / "a", RECIPE)
    _, alone = tiny_run.train(tmp_path / "b", {**RECIPE, "train": RECIPE["train"] | {"watch": []}})
    assert weights(watched) == weights(alone)


def test_a_watcher_that_fails_is_left_out_and_training_goes_on(fake, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(Fake, "fails_at", 21)
    with caplog.at_level(logging.WARNING):
        _, folders = tiny_run.train(tmp_path, RECIPE)
    assert caplog.text.count("wandb failed at step 21 and is left out from here: the network is gone") == 2
    assert [line["step"] for line in fake.opened[0].lines] == [7, 14]
    assert [line["step"] for line in lines_of(folders[0])] == [7, 14, 21, 28, 35, 40]


def test_a_training_that_goes_on_opens_the_same_run_from_its_checkpoint(fake, tmp_path):
    tiny_run.stopped_at(33, tmp_path, RECIPE)
    tiny_run.train(tmp_path, RECIPE)
    assert [watcher.run.start_step for watcher in fake.opened] == [0, 0, 30, 30]
    assert all(watcher.closed for watcher in fake.opened)
    assert len({watcher.run.run_id for watcher in fake.opened}) == 1
    assert [line["step"] for line in fake.opened[2].lines] == [35, 40]


def test_every_watcher_can_be_asked_for_by_name():
    assert set(get_args(get_args(TrainConfig.model_fields["watch"].annotation)[0])) == set(WATCHERS)


class Recorder:
    """Stands for a package's run or writer: notes calls."""

    def __init__(self, *_, **settings):
        self.settings, self.calls = settings, []

    def __getattr__(self, name):
        return lambda *values, **named: self.calls.append((name, *values, named))


@pytest.mark.parametrize("start_step", [0, 30])
def test_what_each_adapter_asks_of_its_package(tmp_path, monkeypatch, start_step):
    run = WatchedRun("topk-40", "demo/layer9", tmp_path, "ab12", start_step, {"lr": 1e-3})
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", SimpleNamespace(SummaryWriter=Recorder))
    for name in ("wandb", "trackio"):
        monkeypatch.setitem(sys.modules, name, SimpleNamespace(init=Recorder))
    board, wandb, trackio = TensorBoardWatcher(run), WandbWatcher(run), TrackioWatcher(run)
    for watcher in (board, wandb, trackio):
        watcher.log(40, {"l0": 3.0})
        watcher.close()
    assert board._writer.settings["purge_step"] == (31 if start_step else None)
    assert board._writer.calls == [("add_scalar", "l0", 3.0, 40, {}), ("close", {})]
    for service in (wandb, trackio):
        assert service._run.calls == [("log", {"l0": 3.0}, {"step": 40}), ("finish", {})]
        assert service._run.settings["resume"] == "allow"
        assert service._run.settings["config"] == {"lr": 1e-3}
    assert wandb._run.settings["id"] == trackio._run.settings["name"] == "topk-40-ab12"
    assert wandb._run.settings["reinit"] == "create_new"
