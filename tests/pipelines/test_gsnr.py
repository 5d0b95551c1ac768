"""``python -m pipelines gsnr``: checkpoints by streams, on files that any two runs write alike."""

import csv
import json
import shutil

import pytest

from pipelines.gsnr import layer_of, training_cache
from shared.errors import DataError, RecipeError
from shared.sealed_json import read_sealed
from tests import tiny
from tests.pipelines.conftest import hostile_chats, invoke

OPTIONS = ("--device", "cpu", "--split", "train", "--batch-size", "32", "--tokens", "320")


@pytest.fixture(scope="module")
def blocks(tmp_path_factory, demo, llama):
    """The demo's chats in blocks."""
    folder = tmp_path_factory.mktemp("blocks")
    data = tiny.write_jsonl(folder / "chats.jsonl", hostile_chats(150))
    return tiny.make_cache(folder / "in-blocks", llama, data, num_tokens=8000, order="block", block_length=64)


@pytest.fixture(scope="module")
def measured(demo, blocks, tmp_path_factory):
    """Both of the demo's SAEs on both caches, with what was printed."""
    out = tmp_path_factory.mktemp("gsnr")
    shown = run(demo, blocks, out)
    return json.loads((out / "gsnr.json").read_text()), out, shown


def run(demo, blocks, out):
    saes = [word for folder in demo.folders for word in ("--sae", str(folder))]
    return invoke("gsnr", *saes, "--cache", str(demo.cache_path), "--cache", str(blocks.path), *OPTIONS, "--out",
                  str(out)).output


def test_every_checkpoint_meets_every_stream(demo, blocks, measured):
    content, _, shown = measured
    names = [folder.name for folder in demo.folders]
    assert [(one["sae"], one["subset"], one["cache"]) for one in content["results"]] == [
        (name, subset, cache) for name in names for subset in ("all", "all_without_first")
        for cache in ("small", "in-blocks")]
    assert {one["num_batches"] for one in content["results"]} == {10}
    assert {one["cache"]: one["order"]["kind"] for one in content["streams"]} == {"small": "fast", "in-blocks": "block"}
    assert len({one["num_conversations"] for one in content["streams"]}) == 1
    for one in content["results"]:
        assert one["groups"].keys() >= {"W_enc", "b_enc", "W_dec", "b_dec", "all"}
        for figures in one["groups"].values():
            low, high = figures["intervals"]["pooled"]
            assert low < figures["pooled"] < high
    assert all(name in shown for name in names)


def test_the_tables_are_those_figures(measured):
    content, out, _ = measured
    with (out / "gsnr.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == sum(len(one["groups"]) for one in content["results"])
    one = content["results"][0]
    line = next(line for line in lines if line["group"] == "W_dec")
    figures = one["groups"]["W_dec"]
    assert [float(line[name]) for name in ("median", "mean", "pooled", "pooled_halves", "pooled_low")] == [
        *(figures[name] for name in ("median", "mean", "pooled", "pooled_halves")), figures["intervals"]["pooled"][0]]
    markdown = (out / "gsnr.md").read_text()
    assert f"{figures['pooled']:.2e} ({figures['intervals']['pooled'][0]:.1e} to" in markdown
    assert "all rows but position 0" in markdown


def test_the_same_command_writes_the_same_bytes(demo, blocks, measured, tmp_path):
    run(demo, blocks, tmp_path)
    for name in ("gsnr.json", "gsnr.md", "gsnr.csv"):
        assert (tmp_path / name).read_bytes() == (measured[1] / name).read_bytes()


def test_without_a_cache_the_one_that_it_was_trained_on_is_taken(demo, tmp_path, monkeypatch):
    (tmp_path / "caches").mkdir()
    (tmp_path / "caches" / "small").symlink_to(demo.cache_path)
    monkeypatch.chdir(tmp_path)
    invoke("gsnr", "--sae", str(demo.folders[0]), *OPTIONS, "--subset", "policy")
    content = json.loads((tmp_path / "runs" / "gsnr" / "gsnr.json").read_text())
    assert [(one["cache"], one["subset"]) for one in content["results"]] == [("small", "policy")]


def test_a_stream_that_is_not_of_the_training_still_needs_the_cache_of_the_training(demo, blocks, tmp_path):
    record = read_sealed(demo.folders[0] / "run.json")
    assert training_cache(record, [blocks, demo.cache()]).cache_id == record["cache_id"]
    with pytest.raises(RecipeError, match=r"'small'.*--cache PATH"):
        training_cache(record, [blocks])


def test_too_few_rows_and_another_layer_are_told(demo, tmp_path):
    with pytest.raises(DataError, match=r"are 3 batches of 100, expected at least 8.*--batch-size"):
        invoke("gsnr", "--sae", str(demo.folders[0]), "--cache", str(demo.cache_path), "--device", "cpu", "--split",
               "train", "--batch-size", "100", "--tokens", "320", "--out", str(tmp_path))
    with pytest.raises(RecipeError, match="layer 2, not on layer 0"):
        layer_of(demo.folders, 0)
    with pytest.raises(RecipeError, match=r"holds no finished SAE of ours \(there is no run.json\)"):
        layer_of([tmp_path], None)
    assert not list(tmp_path.iterdir())


def test_a_damaged_sae_is_not_measured(demo, tmp_path):
    folder = shutil.copytree(demo.folders[0], tmp_path / "sae")
    with (folder / "sae_weights.safetensors").open("r+b") as file:
        file.seek(500)
        file.write(b"x")
    with pytest.raises(Exception, match="is damaged"):
        invoke("gsnr", "--sae", str(folder), "--cache", str(demo.cache_path), *OPTIONS, "--out", str(tmp_path))
