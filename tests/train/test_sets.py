"""Sets: SAEs trained together, in turns, by several processes, or alone have the same weights."""

import os
import shutil
from collections import Counter

import pytest
import torch

from shared import storage
from shared.errors import CorruptError, IdentityError
from shared.sealed_json import read_sealed, write_sealed
from tests.train import tiny_run
from tests.train.test_run import metrics, weights
from tests.warm import Warm
from train.architectures import ARCHITECTURES
from train.batches import Batches
from train.trainer import Trainer
from train.training_set import CHECKPOINTS, sets_in_progress, start_over, states_of

TRAIN = tiny_run.RECIPE["train"] | {"num_tokens": 64 * 60}


def table(name, **fields):
    sparsity = {"k": 3} if "k" in ARCHITECTURES[name].Config.model_fields else {"l0": 3.0}
    return {"architecture": name, "d_sae": 40, **sparsity, **fields}


def recipe(*tables, **train):
    return {"train": TRAIN | train, "sae": list(tables)}


EVERY = [table(name) for name in ARCHITECTURES]


@pytest.fixture(scope="module")
def together(tmp_path_factory):
    """An SAE of every architecture, trained in one set, by architecture."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    _, folders = tiny_run.train(tmp_path_factory.mktemp("together"), recipe(*EVERY))
    torch.set_num_threads(before)
    return dict(zip(ARCHITECTURES, folders, strict=True))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_an_sae_has_the_weights_and_figures_that_it_has_alone(together, tmp_path, name):
    _, [alone] = tiny_run.train(tmp_path, recipe(table(name)))
    assert weights([alone]) == weights([together[name]])
    assert metrics(alone) == metrics(together[name])


def test_on_several_threads_too(tmp_path):
    tables = [table(name, d_sae=1024) for name in ARCHITECTURES]  # so wide that torch divides the work
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        _, together = tiny_run.train(tmp_path / "together", recipe(*tables, num_tokens=64 * 12))
        for one, folder in zip(tables, together, strict=True):
            _, alone = tiny_run.train(tmp_path / "alone", recipe(one, num_tokens=64 * 12))
            assert weights(alone) == weights([folder])
    finally:
        torch.set_num_threads(before)


def test_what_does_not_fit_in_memory_at_once_takes_its_turn_and_ends_the_same(together, tmp_path):
    said = []
    _, folders = tiny_run.train(tmp_path, recipe(*EVERY, memory_gib=1e-6), say=said.append)
    assert weights(folders) == weights(together.values())
    assert sum(line.startswith("Turn ") for line in said) == len(EVERY)
    assert list((folders[0].parent / CHECKPOINTS).iterdir()) == []


@pytest.fixture
def steps(monkeypatch):
    """Counts the steps of each SAE, by the architecture that its name begins with."""
    done, original = Counter(), Trainer.step
    monkeypatch.setattr(Trainer, "step", lambda self, *rest: done.update([self.sae.name]) or original(self, *rest))
    return done


def test_a_set_in_progress_is_divided_where_its_saes_are_asked_for_apart(together, tmp_path, steps):
    names = list(ARCHITECTURES)[:3]
    tiny_run.stopped_at(43, tmp_path, recipe(*map(table, names)))
    steps.clear()
    _, [first] = tiny_run.train(tmp_path, recipe(table(names[0])))
    assert steps == {names[0]: 20}  # from the checkpoint at 40
    tiny_run.stopped_at(53, tmp_path, recipe(table(names[2])))
    layer = tmp_path / "fake" / "layer3"
    assert [len(found.saes) for found in sets_in_progress(layer)] == [1, 3]
    steps.clear()
    said = []
    _, folders = tiny_run.train(tmp_path, recipe(*map(table, names)), say=said.append)
    assert steps == {names[1]: 20, names[2]: 10}  # each from the newest checkpoint that has it
    assert [line for line in said if line.startswith("Turn")] == ["Turn 1 of 2: 1 SAE.", "Turn 2 of 2: 1 SAE."]
    assert weights([first, *folders[1:]]) == weights([together[name] for name in names])
    assert [metrics(folder) for folder in folders] == [metrics(together[name]) for name in names]
    assert list((layer / CHECKPOINTS).iterdir()) == []


def test_to_start_one_over_takes_nothing_from_the_others_of_its_set(together, tmp_path, steps):
    names = list(ARCHITECTURES)[:3]
    tiny_run.stopped_at(43, tmp_path, recipe(*map(table, names)))
    start_over(tmp_path / "fake" / "layer3", tiny_run.planned(recipe(table(names[1]))))
    steps.clear()
    _, folders = tiny_run.train(tmp_path, recipe(*map(table, names)))
    assert steps == {names[0]: 20, names[1]: 60, names[2]: 20}
    assert weights(folders) == weights([together[name] for name in names])
    assert [metrics(folder) for folder in folders] == [metrics(together[name]) for name in names]


def test_saes_that_were_not_begun_yet_join_those_that_were(together, tmp_path, steps):
    names = list(ARCHITECTURES)[:2]
    tiny_run.stopped_at(33, tmp_path, recipe(table(names[0])))
    steps.clear()
    _, folders = tiny_run.train(tmp_path, recipe(*map(table, names)))
    assert steps == {names[0]: 30, names[1]: 60}
    assert weights(folders) == weights([together[name] for name in names])


def test_the_saes_of_a_set_share_every_read(tmp_path, monkeypatch):
    loads = []
    original = Batches.__iter__
    monkeypatch.setattr(Batches, "__iter__", lambda self: loads.append(self.num_steps) or original(self))
    tiny_run.train(tmp_path, recipe(*[table("topk", seed=seed) for seed in range(5)]))
    assert loads == [60, 4]  # the training's batches and those of calibration, once


@pytest.fixture(scope="module")
def command(tmp_path_factory):
    """Runs `python -m train ...` in processes of their own."""
    warm = Warm("train", tmp_path_factory.mktemp("commands"), "torch._dynamo")  # which Adam imports
    yield warm
    warm.close()


def test_two_processes_train_the_saes_of_a_grid_between_them(command, cache_folder, tmp_path):
    words = ["run", "--cache", cache_folder, "--layer", "0 2", "--device", "cpu", "--threads", 1,
             "--set", "train.batch_size=64", "--set", "train.num_tokens=640", "--set", "sae.architecture=topk",
             "--set", "sae.k=[2, 3]", "--set", "sae.d_sae=32"]
    alone = command.run(*words, "--runs", tmp_path / "alone")
    assert alone.code == 0, alone.err
    started = []
    for rank in range(2):
        of_torchrun = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2}
        prelude = f"import os; os.environ.update({ {key: str(value) for key, value in of_torchrun.items()} })"
        pid = command.start(*words, "--runs", tmp_path / "both", prelude=prelude)
        started.append((pid, rank + 2))
    ended = [command.wait(pid, number) for pid, number in started]
    assert [end.code for end in ended] == [0, 0], [end.err for end in ended]
    trained = [{line for line in end.out.splitlines() if line.startswith(os.fspath(tmp_path))} for end in ended]
    assert [len(lines) for lines in trained] == [2, 2]
    assert not trained[0] & trained[1]
    assert ended[1].err.startswith("[1] Layer 2 of")
    files = sorted(path.relative_to(tmp_path / "alone") for path in (tmp_path / "alone").rglob("*.safetensors"))
    assert len(files) == 12  # weights and two files of sums of four SAEs
    for file in files:
        assert (tmp_path / "alone" / file).read_bytes() == (tmp_path / "both" / file).read_bytes()
    for run in (tmp_path / "both").rglob("run.json"):
        assert read_sealed(run)["kind"] == "from_scratch"


def test_one_that_collapsed_is_told_and_takes_nothing_from_the_others(tmp_path):
    said = []
    _, folders = tiny_run.train(tmp_path, recipe(table("batchtopk", lr=[3.0, 6e-3]), table("matryoshka", lr=3.0)),
                                say=said.append)
    warned = [line for line in said if "was asked for an L0 of 3 and has 0." in line]
    assert [line.split()[1] for line in warned] == [folders[0].name, folders[2].name]
    assert all((folder / "run.json").exists() for folder in folders)


def test_what_is_trained_says_so_and_on_how_much_and_what_is_begun(tmp_path):
    tables = table("topk"), table("batchtopk")
    tiny_run.train(tmp_path, recipe(tables[0]), units=[0])
    said = []
    cache, _ = tiny_run.train(tmp_path, recipe(tables[0]), say=said.append)
    [line] = [line for line in said if "is trained already" in line]
    assert f"is trained already, on 1 of the {cache.num_units} units that the cache has now; --fresh" in line
    tiny_run.stopped_at(13, tmp_path, recipe(tables[1]))
    planned = tiny_run.planned(recipe(*tables, table("gated")))
    assert list(states_of(tmp_path / "fake" / "layer3", planned).values()) == ["trained", "begun", ""]


def begun(tmp_path):
    """A layer's folder with a set in progress, and its set.json."""
    tiny_run.stopped_at(20, tmp_path, recipe(table("topk"), table("standard")))
    [path] = tmp_path.glob("fake/layer3/checkpoints/set-*/set.json")
    return path


@pytest.mark.parametrize("change", [{"format_version": 2}, {"new": 1}, {"train": {"new": 1}}])
def test_a_set_of_another_version_is_refused_and_the_remedy_is_told(tmp_path, change):
    path = begun(tmp_path)
    write_sealed(path, read_sealed(path) | change)
    told = rf"set\.json is of another version of SAE Granary.*remove .*{path.parent.name}"
    with pytest.raises(IdentityError, match=told):
        tiny_run.train(tmp_path, recipe(table("topk")))
    with pytest.raises(IdentityError, match=told):
        start_over(path.parents[2], tiny_run.planned(recipe(table("topk"))))


def test_a_damaged_set_is_refused_and_what_its_message_says_helps(tmp_path):
    path = begun(tmp_path)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(CorruptError, match=rf"set\.json is damaged.*begin them anew, remove .*{path.parent.name}"):
        tiny_run.train(tmp_path, recipe(table("topk")))
    shutil.rmtree(path.parent)
    tiny_run.train(tmp_path, recipe(table("topk")))


def test_killed_while_finished_checkpoints_are_removed_it_removes_the_rest_the_next_time(tmp_path):
    asked = recipe(table("topk"), num_tokens=64 * 30)
    removals = []

    def kill(operation, path):
        finished = list(tmp_path.glob("fake/layer3/*/run.json"))
        if operation == "rmtree" and finished and any(part.startswith("set-") for part in path.parts):
            removals.append(path.name)
            if len(removals) == 2:
                raise KeyboardInterrupt

    with storage.observe(kill), pytest.raises(KeyboardInterrupt):
        tiny_run.train(tmp_path, asked)
    assert len(list(tmp_path.glob("fake/layer3/checkpoints/set-*/step-*"))) == 1
    tiny_run.train(tmp_path, asked)
    assert list((tmp_path / "fake/layer3" / CHECKPOINTS).iterdir()) == []
