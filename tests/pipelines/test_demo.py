"""From a recipe to a page, on a tiny random Llama."""

import json
import shutil

import pytest

from pipelines.recipe import read_whole_recipe
from shared.errors import DataError, RecipeError
from tests.pipelines.conftest import Demo, files_of, invoke


def test_a_recipe_becomes_a_cache_saes_and_a_page(demo):
    assert demo.cache().layers == (0, 2)
    names = sorted(folder.name.split("-")[0] for folder in demo.folders)
    assert names == ["batchtopk", "standard"]
    for folder in demo.folders:
        for name in ("sae_weights.safetensors", "cfg.json", "metrics.jsonl", "eval.json", "run.json"):
            assert (folder / name).is_file(), name
    assert demo.page.stat().st_size < 2_000_000
    assert (demo.page.parent / "explained_variance_l0.png").read_bytes().startswith(b"\x89PNG")


def test_the_end_says_where_everything_is_and_what_to_type_next(demo):
    for expected in (str(demo.page), str(demo.cache_path), *map(str, demo.folders), "make train LAYER=0 CACHE=",
                     "open_cache"):
        assert expected in demo.output


def test_the_notebook_lines_at_the_end_run(demo):
    lines = demo.output.split("started here:\n")[1].splitlines()
    scope: dict[str, object] = {}
    exec("\n".join(line.removeprefix("    ") for line in lines), scope)
    assert scope["latents"].shape[1] == 128


def test_the_same_command_again_does_nothing_twice(demo):
    before = {path: path.stat().st_mtime_ns for path in [*demo.layer_folder.rglob("*.safetensors"),
                                                         *demo.layer_folder.rglob("*.json*"),
                                                         *demo.cache_path.rglob("*/c/*")]}
    page = demo.page.read_bytes()
    output = invoke(*demo.arguments).output
    assert output.count("is trained already") == 2
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert demo.page.read_bytes() == page


def test_what_is_missing_is_done_again_and_comes_out_equal(demo, tmp_path):
    shutil.copytree(demo.runs, tmp_path / "runs")
    copy = Demo(demo.recipe, demo.cache_path, tmp_path / "runs", "")
    page = copy.page.read_bytes()
    evaluation = (copy.folders[0] / "eval.json").read_bytes()
    (copy.folders[0] / "eval.json").unlink()
    copy.page.unlink()
    invoke(*copy.arguments)
    assert (copy.folders[0] / "eval.json").read_bytes() == evaluation
    # The page names its own folders and command.
    assert copy.page.read_bytes().replace(str(copy.runs).encode(), str(demo.runs).encode()) == page


def test_fresh_removes_what_the_recipe_left_and_nothing_else(demo, tmp_path):
    shutil.copytree(demo.runs, tmp_path / "runs")
    shutil.copytree(demo.cache_path, tmp_path / "caches" / "small")
    copy = Demo(demo.recipe, tmp_path / "caches" / "small", tmp_path / "runs", "")
    other = copy.layer_folder / "other-sae" / "cfg.json"
    other.parent.mkdir()
    other.write_text("{}")
    weights = {path.name: (path / "sae_weights.safetensors").read_bytes() for path in copy.folders}
    stale = [copy.page.parent / "stale", copy.cache_path / "stale"]
    for path in stale:
        path.write_text("")
    invoke(*copy.arguments, "--fresh", "--yes")
    assert other.exists()
    assert not any(path.exists() for path in stale)
    assert {path.name: (path / "sae_weights.safetensors").read_bytes() for path in copy.folders} == weights


@pytest.mark.parametrize(
    ("override", "message"),
    [
        pytest.param("sae.expansoin=4", r"\[\[sae\]\] number 1: unknown key 'expansoin'", id="sae"),
        pytest.param("train.batchsize=4", r"\[train\]: unknown key 'batchsize'. Did you mean 'batch_size'", id="train"),
        pytest.param("harvest.layer=4", r"\[harvest\]: unknown key 'layer'. Did you mean 'layers'", id="harvest"),
        pytest.param("train.layer=1", r"\[train\].layer is 1, but \[harvest\].layers are \[0, 2\]", id="layer"),
    ],
)
def test_every_table_is_checked_before_anything_starts(demo, override, message):
    with pytest.raises(RecipeError, match=message):
        read_whole_recipe(str(demo.recipe), [override])


def test_chats_of_which_none_is_held_out_are_refused_before_the_model_runs(demo, tmp_path):
    data = tmp_path / "few.jsonl"
    data.write_text('{"messages": [{"role": "user", "content": "hello"}]}\n' * 3)
    with pytest.raises(DataError, match=r"None of the 3 conversations of few.jsonl is held out"):
        invoke("demo", "--recipe", str(demo.recipe), "--set", f"harvest.dataset={data}", "--runs", str(tmp_path),
               "--cache", str(tmp_path / "cache"), "--device", "cpu")
    assert not list(tmp_path.glob("cache/commits/*"))


def test_evaluating_twice_gives_equal_files(demo, tmp_path):
    shutil.copytree(demo.layer_folder, tmp_path / "runs" / "small" / "layer2")
    arguments = ["evaluate", "--cache", str(demo.cache_path), "--layer", "2", "--runs", str(tmp_path / "runs"),
                 "--device", "cpu"]
    invoke(*arguments)
    first = files_of(tmp_path / "runs")
    output = invoke(*arguments).output
    assert files_of(tmp_path / "runs") == first
    for folder in demo.folders:  # and equal to what training left
        assert (tmp_path / "runs" / "small" / "layer2" / folder.name / "eval.json").read_bytes() == (
            folder / "eval.json").read_bytes()
    table = (tmp_path / "runs" / "small" / "layer2" / "table.md").read_text()
    content = json.loads((demo.folders[0] / "eval.json").read_text())["subsets"]["content"]
    assert f"{content['explained_variance']:.3f}" in table
    assert "table.md" in output


def test_baselines_stand_in_the_table_beside_the_saes_from_then_on(demo, tmp_path):
    layer_folder = shutil.copytree(demo.layer_folder, tmp_path / "runs" / "small" / "layer2")
    arguments = ["evaluate", "--cache", str(demo.cache_path), "--layer", "2", "--runs", str(tmp_path / "runs"),
                 "--device", "cpu"]
    output = invoke(*arguments, "--baselines").output
    names = sorted(path.name for path in (layer_folder / "baselines").iterdir())
    kinds = {name.rsplit("-", 1)[0] for name in names}
    assert {"identity", "pca-k4", "random-128-k4-s0", "token_mean"} <= kinds
    assert len(kinds) == 6  # and two for the L0 that the other SAE came out with
    table = (layer_folder / "table.md").read_text()
    assert all(f"`{name}`" in table for name in names)
    assert " to " in table  # intervals
    assert "PCA" in output
    invoke(*arguments)
    assert (layer_folder / "table.md").read_text() == table


def test_evaluating_a_layer_without_saes_says_what_to_type(demo):
    with pytest.raises(RecipeError, match=r"No finished SAE in .*layer0. Train some: make train LAYER=0"):
        invoke("evaluate", "--cache", str(demo.cache_path), "--layer", "0", "--runs", str(demo.runs))
