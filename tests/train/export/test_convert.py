"""Our SAEs as folders of other tools, without those tools: they come back the same, and what cannot be is refused."""

import json

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file

from shared.errors import CorruptError, RecipeError
from tests.train import tiny_run
from train.__main__ import main
from train.export import load_sae
from train.export.convert import export_sae


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Raw held-out rows, and a finished SAE of each architecture by its name."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    recipe = {**tiny_run.RECIPE, "train": {**tiny_run.RECIPE["train"], "num_tokens": 64 * 40}}
    cache, folders = tiny_run.train(tmp_path_factory.mktemp("runs"), recipe)
    torch.set_num_threads(before)
    x = torch.from_numpy(cache.layer(3)[cache.rows(layer=3, split="held_out")].astype("float32"))
    return x, {folder.name.split("-")[0]: folder for folder in folders}


@pytest.mark.parametrize("architecture", ["standard", "gated", "topk", "batchtopk", "matryoshka", "jumprelu"])
def test_a_dictionary_comes_back_with_the_same_latents_and_reconstructions(trained, architecture, tmp_path):
    x, folders = trained
    export_sae(folders[architecture], "dictionary_learning", tmp_path / "out")
    before, after = load_sae(folders[architecture]), load_sae(tmp_path / "out")
    assert (before.encode(x) > 0).any()
    assert (after.encode(x) - before.encode(x)).norm() <= 1e-6 * before.encode(x).norm()  # float32's rounding
    assert (after(x) - before(x)).norm() <= 1e-6 * before(x).norm()
    trainer = json.loads((tmp_path / "out" / "config.json").read_text())["trainer"]
    assert (trainer["layer"], trainer["lm_name"]) == (3, "org/fake")
    assert ("k" in trainer) == (architecture in {"topk", "batchtopk", "matryoshka"})
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"ae.pt", "config.json"}


def test_the_tensors_of_a_dictionary_are_those_that_its_class_asks_for(trained, tmp_path):
    found = {}
    for architecture in ("matryoshka", "topk"):
        export_sae(trained[1][architecture], "dictionary_learning", tmp_path / architecture)
        found[architecture] = torch.load(tmp_path / architecture / "ae.pt", weights_only=True)
    assert found["matryoshka"].keys() == {"W_enc", "b_enc", "W_dec", "b_dec", "k", "threshold", "group_sizes"}
    assert found["matryoshka"]["group_sizes"].tolist() == [2, 2, 6, 12, 26]  # shares 1/32, 3/32, 7/32, 15/32, 1 of 48
    assert found["topk"].keys() == {"encoder.weight", "encoder.bias", "decoder.weight", "b_dec", "k", "threshold"}
    assert (int(found["topk"]["k"]), float(found["topk"]["threshold"])) == (3, -1.0)
    assert all(tensor.is_contiguous() for tensor in found["topk"].values())


def test_a_topk_becomes_a_sparse_coder_and_comes_back(trained, tmp_path):
    x, folders = trained
    export_sae(folders["topk"], "sparsify", tmp_path / "layers.3")
    before, after = load_sae(folders["topk"]), load_sae(tmp_path / "layers.3")
    assert torch.equal(after.encode(x), before.encode(x))
    assert torch.equal(after(x), before(x))
    assert load_file(tmp_path / "layers.3" / "sae.safetensors")["encoder.weight"].shape == (40, 24)


@pytest.mark.parametrize("architecture", ["standard", "gated", "batchtopk", "matryoshka", "jumprelu"])
def test_what_sparsify_cannot_represent_is_refused_with_what_can(trained, architecture, tmp_path):
    with pytest.raises(RecipeError, match=r"can represent topk alone\. Take --format dictionary_learning"):
        export_sae(trained[1][architecture], "sparsify", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_export_can_be_repeated_and_takes_no_folder_of_something_else(trained, tmp_path):
    folders = trained[1]
    for _ in range(2):
        export_sae(folders["topk"], "sparsify", tmp_path / "out")
        (tmp_path / "out" / ".sae.safetensors.partial").write_bytes(b"of one that was killed")
    with pytest.raises(RecipeError, match="holds something else"):
        export_sae(folders["topk"], "sparsify", folders["topk"])
    with pytest.raises(RecipeError, match="holds something else"):
        export_sae(folders["topk"], "dictionary_learning", tmp_path / "out")


def test_a_folder_without_a_finished_sae_and_a_damaged_one_are_refused(trained, tmp_path):
    export_sae(trained[1]["topk"], "sparsify", tmp_path / "out")
    with pytest.raises(RecipeError, match="holds no finished SAE"):
        export_sae(tmp_path / "out", "sparsify", tmp_path / "again")
    config = trained[1]["topk"] / "cfg.json"
    text = config.read_text()
    config.write_text(text.replace('"k": 3', '"k": 4'))
    with pytest.raises(CorruptError, match=r"cfg\.json is damaged"):
        export_sae(trained[1]["topk"], "sparsify", tmp_path / "again")
    config.write_text(text)


def test_the_command_says_where_it_wrote(trained, tmp_path):
    ended = CliRunner().invoke(main, ["export", str(trained[1]["standard"]), "--format", "dictionary_learning", "--out",
                                      str(tmp_path / "out")], catch_exceptions=False)
    assert (ended.exit_code, ended.output.strip()) == (0, str(tmp_path / "out"))
    assert load_sae(tmp_path / "out").architecture == "standard"
