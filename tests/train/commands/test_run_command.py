"""``python -m train run`` as a user types it, over a cache in memory."""

import re

import pytest
import torch
from click.testing import CliRunner

from shared.errors import RecipeError, TryAgainError, UserError
from shared.sealed_json import read_sealed
from tests.train import tiny_run
from train import choose_cache
from train.__main__ import main
from train.commands import run as command
from train.locks import locked

TINY = ["--set", "train.batch_size=64", "--set", "train.num_tokens=1280", "--set", "sae.d_sae=32", "--set", "sae.k=3"]


@pytest.fixture
def invoke(monkeypatch, tmp_path):
    cache = tiny_run.cache()
    monkeypatch.setattr(command, "choose_cache", lambda name, *layers: cache)

    def call(*arguments, **fields):
        result = CliRunner().invoke(main, ["run", "--runs", str(tmp_path), "--device", "cpu", *arguments], **fields)
        if isinstance(result.exception, UserError):
            raise result.exception
        return result

    return call


def test_a_run_trains_evaluates_and_says_where_the_files_are(invoke, tmp_path):
    result = invoke("--layer", "3", *TINY)
    assert result.exit_code == 0, result.output
    (folder,) = (tmp_path / "fake" / "layer3").glob("batchtopk-*")
    assert (folder / "eval.json").is_file()
    assert str(folder) in result.output
    assert "explained variance (l0) by class" in result.output
    again = invoke("--layer", "3", *TINY)
    assert "is trained already; --fresh" in again.output
    both = invoke("--layer", "3", *TINY, "--set", "sae.k=[3, 4]", "--dry-run")
    assert ["trained" in line for line in both.output.splitlines() if "batchtopk-32-" in line] == [True, False]
    assert "content" in again.output


def test_a_dry_run_shows_saes_steps_memory_and_bytes_and_leaves_nothing(invoke, tmp_path):
    result = invoke("--layer", "3", *TINY, "--set", "sae.seed=[0, 1]", "--set", "sae.k=[3, 4]", "--dry-run")
    assert result.exit_code == 0, result.output
    for name in ("k3-s0", "k3-s1", "k4-s0", "k4-s1"):
        assert f"batchtopk-32-{name}-" in result.output
    assert "20 steps of 64 rows = 1,280 tokens, 0.38 passes over 3,412 rows" in result.output
    assert "all SAEs at once" in result.output
    assert "4 SAEs, about" in result.output
    assert list(tmp_path.iterdir()) == []
    turns = invoke("--layer", "3", *TINY, "--set", "sae.seed=[0, 1]", "--set", "train.memory_gib=1e-6", "--dry-run")
    assert "2 turns" in turns.output
    divided = invoke("--layer", "3", *TINY, "--set", "train.tensor_parallel=2", "--dry-run")
    assert "; for each of 2 processes" in divided.output


def test_a_dry_run_tells_of_sets_that_another_command_began(invoke, tmp_path):
    tiny_run.stopped_at(13, tmp_path)
    names = [sae.name for sae in tiny_run.planned(tiny_run.RECIPE)]
    asked = invoke("--layer", "3", *TINY, "--dry-run").output
    [line] = [line for line in asked.splitlines() if "begun by another command" in line]
    assert str(tmp_path / "fake" / "layer3" / "checkpoints" / "set-") in line
    assert all(name in line for name in names)
    assert re.search(r" 0\.\d MB in ", line)
    part = tmp_path / "part.toml"  # the checkpoint is still of use to one that is asked for
    part.write_text("[train]\n" + "".join(f"{key} = {value}\n" for key, value in tiny_run.RECIPE["train"].items())
                    + "[[sae]]\n" + "".join(f"{key} = {value!r}\n" for key, value in tiny_run.RECIPE["sae"][0].items()))
    some = invoke("--layer", "3", "--recipe", str(part), "--dry-run").output
    assert "1 begun together: they go on to 120 steps over the 3,412 rows of then" in some
    assert "another command" not in some


def test_deterministic_is_turned_on_and_recorded(invoke, tmp_path):
    try:
        assert invoke("--layer", "3", *TINY, "--deterministic").exit_code == 0
        assert torch.are_deterministic_algorithms_enabled()
    finally:
        torch.use_deterministic_algorithms(False)
    [run] = tmp_path.rglob("run.json")
    assert read_sealed(run)["deterministic"] is True


def test_fresh_asks_and_then_trains_again(invoke, tmp_path):
    invoke("--layer", "3", *TINY)
    (weights,) = tmp_path.rglob("sae_weights.safetensors")
    before = weights.stat().st_mtime_ns
    assert invoke("--layer", "3", *TINY, "--fresh", input="n\n").exit_code == 1
    assert weights.stat().st_mtime_ns == before
    assert invoke("--layer", "3", *TINY, "--fresh", input="y\n").exit_code == 0
    assert weights.stat().st_mtime_ns > before


def test_fresh_takes_nothing_from_a_process_that_trains(invoke, tmp_path):
    invoke("--layer", "3", *TINY)
    [run] = tmp_path.rglob("run.json")
    folder = run.parent
    with (locked(folder.parent / "checkpoints", [folder.name]),
          pytest.raises(TryAgainError, match="Another process trains")):
        invoke("--layer", "3", *TINY, "--fresh", "--yes")
    assert run.exists()


def test_what_diverges_keeps_neither_the_others_nor_the_next_group_from_being_evaluated(invoke, tmp_path):
    policies = 'train.policy=[{}, {keep_classes=["assistant"]}]'
    with pytest.raises(RecipeError, match=r"diverged.*\n.*diverged.*\nAll others are trained"):
        invoke("--layer", "3", *TINY, "--set", "train.log_steps=5", "--set", policies, "--set", "sae.lr=[1e30, 6e-3]")
    assert len(list(tmp_path.rglob("eval.json"))) == 2


def test_one_of_several_processes_tells_what_diverged_and_lets_the_others_go_on(invoke, tmp_path, monkeypatch):
    for name, value in (("RANK", "0"), ("LOCAL_RANK", "0"), ("WORLD_SIZE", "2")):
        monkeypatch.setenv(name, value)
    result = invoke("--layer", "3", *TINY, "--set", "train.log_steps=5", "--set", "sae.lr=[1e30, 6e-3]")
    assert result.exit_code == 0  # torchrun would stop them
    assert "[0] Error: batchtopk-32-k3-s0-" in result.output
    assert list(tmp_path.rglob("run.json")) == []


def test_widths_of_both_kinds_that_only_look_alike_are_no_mistake(invoke, tmp_path):
    recipe = tmp_path / "two.toml"
    recipe.write_text('[[sae]]\nd_sae = 32768\n[[sae]]\nexpansion = 8\n')
    assert invoke("--layer", "3", "--recipe", str(recipe), "--dry-run").exit_code == 0


@pytest.mark.parametrize(("arguments", "message"), [
    ([], "Which layer"),
    (["--layer", "three"], "--layer must be numbers from 0"),
    (["--layer", "3", "--expansion", "8 x"], "--expansion must be positive numbers"),
    (["--layer", "3", "--set", "train.lrr=1"], "Did you mean 'lr'"),
    (["--layer", "3", "--set", "lr=1"], "expected TABLE.KEY=VALUE"),
    (["--layer", "3", "--set", "train.tensor_parallel=2"], r"takes 2 processes.*here is 1\. .*torchrun"),
    (["--layer", "3", "--set", "train.tensor_parallel=0"], "greater than or equal to 1"),
    (["--layer", "3", *TINY, "--set", "train.tensor_parallel=3", "--dry-run"], "32 latents .* over 3 processes"),
    (["--layer", "3", "--recipe", "nothing"], "No recipe 'nothing'"),
])
def test_mistakes_end_in_one_clear_line(invoke, arguments, message):
    with pytest.raises(RecipeError, match=message):
        invoke(*arguments)


class _Cache:
    def __init__(self, path, layers):
        self.path, self.name, self.layers = path, path.name, layers


@pytest.fixture
def caches(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    held = {"a": (9, 15), "b": (9,), "c": (4,)}
    for name in held:
        (tmp_path / "caches" / name).mkdir(parents=True)
        (tmp_path / "caches" / name / "plan.json").write_text("{}")
    monkeypatch.setattr(choose_cache, "open_cache", lambda path: _Cache(path, held[path.name]))


@pytest.mark.usefixtures("caches")
def test_the_one_cache_with_the_layer_is_taken_else_they_are_listed():
    assert choose_cache.choose_cache(None, 15).name == "a"
    assert choose_cache.choose_cache("b", 9).name == "b"
    assert choose_cache.choose_cache("caches/c", 4).name == "c"
    with pytest.raises(RecipeError, match="Several caches hold layer 9: a, b"):
        choose_cache.choose_cache(None, 9)
    with pytest.raises(RecipeError, match=r"No cache under caches/ holds layer 7.*a \(layers 9, 15\)"):
        choose_cache.choose_cache(None, 7)
    with pytest.raises(RecipeError, match="harvest add-layers caches/b --layers 15"):
        choose_cache.choose_cache("b", 15)
    with pytest.raises(RecipeError, match=r"No cache 'd'.*Caches here: a, b, c"):
        choose_cache.choose_cache("d", 9)


def test_without_any_cache_the_message_says_how_to_make_one(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RecipeError, match="make harvest"):
        choose_cache.choose_cache(None, 9)
