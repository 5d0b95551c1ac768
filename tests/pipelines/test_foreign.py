"""SAEs that were made elsewhere are judged on the same held-out rows as ours, from a folder or a hub's repository."""

import json
import shutil

import pytest
import torch

from pipelines.foreign_source import find_sae
from shared.digests import file_digest
from shared.errors import RecipeError
from shared.sealed_json import read_sealed
from tests.harvest import hub_cache
from tests.pipelines.conftest import invoke
from tests.train.export import layouts
from train.export import load_sae
from train.export.convert import export_sae
from train.policy import TokenPolicy, median_norm


@pytest.fixture
def runs(demo, tmp_path):
    """A copy of the demo's runs."""
    return shutil.copytree(demo.runs, tmp_path / "runs")


@pytest.fixture
def foreign(demo, tmp_path):
    """The demo's BatchTopK SAE as a folder of dictionary_learning."""
    [folder] = [path for path in demo.folders if path.name.startswith("batchtopk")]
    export_sae(folder, "dictionary_learning", tmp_path / "trainer_0")
    return folder, tmp_path / "trainer_0"


def evaluate(demo, runs, *sources):
    result = invoke("evaluate", "--layer", "2", "--cache", str(demo.cache_path), "--runs", str(runs), "--device", "cpu",
                    *(word for source in sources for word in ("--sae", str(source))))
    return result, runs / demo.cache_path.name / "layer2"


def test_our_own_sae_in_another_layout_gets_the_figures_that_it_has(demo, runs, foreign):
    ours, folder = foreign
    result, layer = evaluate(demo, runs, folder)
    [found] = layer.glob("foreign-trainer_0-*")
    theirs, own = (json.loads((path / "eval.json").read_text()) for path in (found, ours))
    assert theirs["sae"] == found.name
    assert theirs["subsets"].keys() == own["subsets"].keys()
    for name, figures in own["subsets"].items():
        found_here = theirs["subsets"][name]
        # The same weights, laid out otherwise: float32 sums in another order, so a row may fall into the next bin of
        # the histograms behind quantiles.
        for key in figures.keys() - {"intervals", "quantiles"}:
            expected = None if figures[key] is None else pytest.approx(figures[key], rel=1e-4, abs=1e-6)
            assert found_here[key] == expected
        assert found_here["intervals"] == {key: pytest.approx(ends, rel=1e-4, abs=1e-6)
                                           for key, ends in figures["intervals"].items()}
        assert found_here["quantiles"] == {key: pytest.approx(values, rel=0.06, abs=1e-6)
                                           for key, values in figures["quantiles"].items()}
    assert theirs["latents"]["dead_train"] is None
    assert "not known" in result.output
    assert "Warning" not in result.output
    table = (layer / "table.md").read_text()
    assert found.name in table
    assert ours.name in table


def test_source_policy_and_digests_are_recorded(demo, runs, foreign):
    _, layer = evaluate(demo, runs, foreign[1])
    [found] = layer.glob("foreign-*")
    record = read_sealed(found / "foreign.json")
    assert (record["source"], record["layout"], record["commit"]) == (str(foreign[1]), "dictionary_learning", None)
    assert record["files"] == {name: file_digest(foreign[1] / name) for name in ("config.json", "ae.pt")}
    assert record["policy"] == TokenPolicy().model_dump(mode="json")
    assert record["resolved"]["median_norm"] == median_norm(demo.cache(), 2)
    evaluation = json.loads((found / "eval.json").read_text())
    assert (evaluation["source"], evaluation["files"]) == (record["source"], record["files"])
    assert not (found / "run.json").exists()


def test_the_same_sae_again_is_the_same_folder_and_stays_in_the_table_of_ours(demo, runs, foreign):
    for sources in ([foreign[1]], [foreign[1]], []):
        _, layer = evaluate(demo, runs, *sources)
        [found] = layer.glob("foreign-*")
        assert found.name in (layer / "table.md").read_text()


def random_sae(folder, d_in, **metadata):
    weights = {"W_enc": torch.randn(d_in, 20) / d_in, "b_enc": torch.zeros(20), "W_dec": torch.randn(20, d_in),
               "b_dec": torch.zeros(d_in)}
    return layouts.write_saelens(folder, weights, architecture="standard", d_in=d_in, d_sae=20, metadata=metadata)


@pytest.mark.parametrize(("metadata", "says"), [
    ({"model_name": "gpt2"}, "made for the model gpt2"),
    ({"hook_name": "blocks.1.hook_resid_post"}, "output of layer 1, this is layer 2"),
    ({"hook_name": "blocks.2.hook_mlp_out"}, "hook point blocks.2.hook_mlp_out"),
    ({"hook_name": "blocks.3.hook_resid_pre", "model_name": "someone/tiny-llama"}, None)])
def test_an_sae_that_was_made_for_something_else_is_judged_with_a_warning(demo, runs, tmp_path, metadata, says):
    result, layer = evaluate(demo, runs, random_sae(tmp_path / "sae", 32, **metadata))
    assert len([*layer.glob("foreign-sae-*/eval.json")]) == 1
    assert ("Warning" in result.output) == (says is not None)
    assert says is None or says in result.output


def test_an_sae_of_another_width_is_refused(demo, runs, tmp_path):
    with pytest.raises(RecipeError, match=r"takes activations of width 31, and those of .* are 32 wide"):
        evaluate(demo, runs, random_sae(tmp_path / "sae", 31))


def test_a_repository_of_the_hub_is_a_source_with_its_commit(demo, runs, foreign, tmp_path, monkeypatch):
    hub = hub_cache.use(monkeypatch, tmp_path)
    shutil.copytree(foreign[1], tmp_path / "repository" / "layer2")
    hub_cache.add_snapshot(hub, "org/saes", tmp_path / "repository")
    _, layer = evaluate(demo, runs, "org/saes/layer2")
    [found] = layer.glob("foreign-org-saes-layer2-*")
    assert read_sealed(found / "foreign.json")["commit"] == hub_cache.COMMIT
    folder, commit = find_sae("org/saes/layer2")
    assert (load_sae(folder).d_in, commit) == (32, hub_cache.COMMIT)


@pytest.mark.parametrize("given", ["../saes", "/no/folder", "saes", "org/saes/../../etc", "./org/saes"])
def test_what_is_neither_a_folder_nor_a_repository_asks_no_hub(given):
    with pytest.raises(RecipeError, match="there is no such folder"):
        find_sae(given)
