"""`python -m pipelines evaluate` with the language model: files, the table, and what it does without the model."""

import json
import shutil

import pytest

from shared.errors import IdentityError, RecipeError
from tests.pipelines.conftest import invoke

FILES = ("eval_loss.json", "eval_loss_conversations.safetensors")


@pytest.fixture
def layer_folder(demo, tmp_path):
    """A copy of the demo's SAEs, as before they were evaluated with or without the model."""
    folder = tmp_path / "runs" / demo.cache_path.name / "layer2"
    shutil.copytree(demo.layer_folder, folder, ignore=shutil.ignore_patterns("eval*"))
    return folder


def evaluate(demo, layer_folder, *arguments):
    return invoke("evaluate", "--layer", "2", "--cache", str(demo.cache_path), "--device", "cpu",
                  "--runs", str(layer_folder.parents[1]), *map(str, arguments))


def loss_files(layer_folder):
    return {path.relative_to(layer_folder): path.read_bytes() for name in FILES for path in layer_folder.rglob(name)}


def test_the_loss_lies_beside_every_sae_and_baseline_and_in_the_table_and_is_the_same_again(demo, layer_folder, llama):
    arguments = ("--model", llama, "--loss-tokens", 300, "--baselines")
    evaluate(demo, layer_folder, *arguments)
    first = loss_files(layer_folder)
    folders = {path.parent for path in layer_folder.rglob("eval.json")}
    assert {layer_folder / path.parent for path in first} == folders
    assert len(first) == 2 * len(folders) > 4
    evaluate(demo, layer_folder, *arguments)
    assert loss_files(layer_folder) == first
    table = (layer_folder / "table.md").read_text()
    for folder in folders:
        content = json.loads((folder / "eval_loss.json").read_text())
        assert content["num_tokens"] >= 300
        assert list(content["streams"]) == ["conversations"]
        assert f"{content['streams']['conversations']['all_without_first']['kl']:.4f}" in table


def test_the_demo_measured_it_too_and_shows_it(demo):
    page = demo.page.read_text()
    for folder in demo.folders:
        content = json.loads((folder / "eval_loss.json").read_text())
        assert f"{content['streams']['conversations']['all_without_first']['delta_ce']:.4f}" in page


def test_without_the_model_the_rest_is_written_and_one_line_says_what_to_type(demo, layer_folder):
    result = evaluate(demo, layer_folder)
    [line] = result.stderr.strip().splitlines()[-1:]
    assert line.startswith("Without the language model's metrics. ")
    assert line.endswith("--model path/to/tiny-llama")
    assert (layer_folder / "table.md").exists()
    assert not loss_files(layer_folder)


def test_without_a_model_that_was_asked_for_the_rest_is_written_before_the_error(demo, layer_folder):
    with pytest.raises(RecipeError, match="--model path/to/tiny-llama"):
        evaluate(demo, layer_folder, "--loss-tokens", 300)
    assert (layer_folder / "table.md").exists()


def test_another_models_weights_are_refused(demo, layer_folder, qwen2):
    with pytest.raises(IdentityError, match="weights"):
        evaluate(demo, layer_folder, "--model", qwen2)
    assert not loss_files(layer_folder)


def test_no_tokens_is_without_the_model_and_says_nothing(demo, layer_folder):
    result = evaluate(demo, layer_folder, "--loss-tokens", 0)
    assert "language model" not in result.stderr
    assert not loss_files(layer_folder)
