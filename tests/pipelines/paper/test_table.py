"""``python -m pipelines table``: SAEs stand in the paper's cells, with its figures beside them."""

import csv
import json
import random
import shutil
from pathlib import Path

import pytest

from pipelines.paper import published
from pipelines.paper.rows import OWN, PAPER, find_folders, method_of, read_rows, training_of
from pipelines.paper.table import best_rows
from shared.errors import RecipeError
from shared.recipe import find_recipe, read_recipe
from tests import tiny
from tests.pipelines.conftest import invoke
from train.config import plan_saes, read_train_config, sae_tables
from train.evaluation.evaluate import evaluate_saes
from train.run import train_saes

FIGURES = """# a comment
model,layer,expansion,method,standard_log2_mse,standard_log2_mse_st,jumprelu_log2_mse,jumprelu_log2_mse_st
tiny-llama,2,2,BT(P),1.25,2.25,-3.5,-4.5
tiny-llama,2,2,BT(F),1.5,2.5,-5.5,-6.5
tiny-llama,2,4,FAST,1.75,2.75,-7.5,-8.5
"""


def train_and_evaluate(cache, runs, recipe):
    train = read_train_config(recipe)
    saes = plan_saes(sae_tables(recipe, None), train, 2, cache.d_model)
    folders = train_saes(cache, 2, train, saes, runs=runs, device="cpu", say=lambda line: None)
    evaluate_saes(cache, 2, folders)
    return folders


def papers_recipe(*overrides):
    """The paper's recipe with a few steps: what makes it the paper's but its length."""
    return read_recipe(find_recipe("paper"), ["train.num_tokens=1280", "sae.expansion=2", *overrides])


@pytest.fixture(scope="module")
def world(tmp_path_factory, llama):
    """Three caches, one of each method, with both of the paper's SAEs on each; and a BatchTopK SAE."""
    folder = tmp_path_factory.mktemp("paper")
    chats = tiny.write_jsonl(folder / "chats.jsonl", tiny.chats(150, seed=3))
    words = random.Random(0)
    texts = folder / "texts.jsonl"
    texts.write_text("".join(json.dumps({"text": " ".join(words.choices(tiny.WORDS, k=80))}) + "\n"
                             for _ in range(150)))
    caches = {name: tiny.make_cache(folder / "caches" / name, llama, data, num_tokens=100_000, block_length=64,
                                    order=order)
              for name, data, order in (("fast", chats, "fast"), ("bt-f", chats, "block"), ("bt-p", texts, "block"),
                                        ("masked", chats, "block-masked"))}
    runs = folder / "runs"
    folders = {name: train_and_evaluate(cache, runs, papers_recipe()) for name, cache in caches.items()}
    train_and_evaluate(caches["fast"], runs, {"train": {"batch_size": 128, "num_tokens": 1280},
                                              "sae": [{"architecture": "batchtopk", "d_sae": 64, "k": 3}]})
    return caches, runs, folders


@pytest.fixture
def figures(monkeypatch, tmp_path):
    """Published figures of the tiny model, in place of the paper's."""
    path = tmp_path / "figures.csv"
    path.write_text(FIGURES)
    monkeypatch.setattr(published, "FIGURES", path)


def rows_of(world):
    return read_rows(find_folders([world[1]])[0])


def test_every_sae_is_a_row_of_its_method_with_its_own_figures(world, figures):
    folders = world[2]
    rows = rows_of(world)
    assert {(row.cell.method, row.architecture) for row in rows} == {
        (method, architecture) for method in ("BT(P)", "BT(F)", "FAST", "BT(F), masked")
        for architecture in ("standard", "jumprelu")} | {("FAST", "batchtopk")}
    assert {(row.cell.model, row.cell.layer, row.cell.expansion) for row in rows} == {("tiny-llama", 2, 2.0)}
    [row] = [row for row in rows if (row.cell.method, row.architecture) == ("BT(F)", "standard")]
    subsets = json.loads((folders["bt-f"][0] / "eval.json").read_text())["subsets"]
    assert row.figures == {
        "log2_mse": subsets["all"]["log2_mse_paper"], "log2_mse_st": subsets["special"]["log2_mse_paper"],
        "log2_mse_st_without_first": subsets["special_without_first"]["log2_mse_paper"],
        "l0_content": subsets["content"]["l0"], "l0_all_without_first": subsets["all_without_first"]["l0"],
        "explained_variance_content": subsets["content"]["explained_variance"],
        "explained_variance_all_without_first": subsets["all_without_first"]["explained_variance"],
        "ce_recovered": None, "kl": None, "delta_ce": None}
    assert (row.published.log2_mse, row.published.log2_mse_st) == (1.5, 2.5)
    assert (row.measured_on, row.cache, row.num_tokens) == ("BT(F)", "bt-f", 1280)


def test_the_papers_training_is_told_from_others(world):
    # 1,280 tokens are not the paper's 40,960,000: everything else here is.
    assert {row.training for row in rows_of(world)} == {OWN}
    recipe = read_recipe(find_recipe("paper"))
    for sae in plan_saes(sae_tables(recipe, None), read_train_config(recipe), 2, 32):
        assert training_of({"recipe": sae.recipe}, 32) == PAPER
        other = {**sae.recipe, "sae": {**sae.recipe["sae"], "seed": 7, "d_sae": 640}}
        assert training_of({"recipe": other}, 32) == PAPER
        other = {**sae.recipe, "train": {**sae.recipe["train"], "lr": 1e-4}}
        assert training_of({"recipe": other}, 32) == OWN


def test_an_sae_of_blocks_judged_on_whole_conversations_counts_in_its_own_cell(world, figures):
    caches, runs, folders = world
    invoke("evaluate", "--layer", "2", "--cache", str(caches["fast"].path), "--runs", str(runs), "--device", "cpu",
           "--sae", str(folders["bt-p"][0]))
    rows = [row for row in rows_of(world) if (row.cell.method, row.architecture) == ("BT(P)", "standard")]
    assert [(row.cache, row.measured_on) for row in rows] == [("bt-p", "BT(P)"), ("fast", "FAST")]
    assert {row.sae for row in rows} == {folders["bt-p"][0].name}
    assert best_rows(rows) == rows[1:]
    assert rows[1].published.log2_mse == 1.25


def test_the_command_writes_the_papers_form_and_every_sae(world, figures, tmp_path):
    runs, folders = world[1:]
    cache_id = json.loads((folders["fast"][1] / "eval.json").read_text())["cache_id"]
    measured = {"ce_recovered_mean": 0.875, "kl": 0.25, "delta_ce": 0.125}
    loss = {"format_version": 1, "cache_id": cache_id, "streams": {"conversations": {"all_without_first": measured}}}
    (folders["fast"][1] / "eval_loss.json").write_text(json.dumps(loss))
    shown = invoke("table", str(runs), "--published", "--out", str(tmp_path / "out")).output
    markdown = (tmp_path / "out" / "paper_table.md").read_text()
    [line] = [line for line in markdown.splitlines() if line.startswith("| 2 | 2x | BT(F) |")]
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    [row] = [row for row in rows_of(world) if (row.cell.method, row.architecture) == ("BT(F)", "standard")]
    assert cells[3:8] == [f"{row.figures['log2_mse']:.2f}*†", "1.50", f"{row.figures['log2_mse_st']:.2f}*†", "2.50",
                          f"{row.figures['log2_mse_st_without_first']:.2f}*†"]
    assert "| 2 | 4x | FAST | – | 1.75 | – | 2.75 | – | – | -7.50 | – | -8.50 | – |" in markdown
    [batchtopk] = [line for line in markdown.splitlines() if line.startswith("| `batchtopk-64-")]
    assert "| 2 | 2x | FAST | own | 1,280 | fast (FAST) |" in batchtopk
    with (tmp_path / "out" / "paper_table.csv").open() as file:
        lines = list(csv.DictReader(file))
    [jumprelu] = [one for one in lines if one["method"] == "FAST" and one["architecture"] == "jumprelu" and one["sae"]]
    assert (jumprelu["ce_recovered"], jumprelu["kl"], jumprelu["delta_ce"]) == ("0.875", "0.25", "0.125")
    assert [one["published_log2_mse"] for one in lines if not one["sae"]] == ["1.75", "-7.5"]
    assert "The paper gives no L0" in markdown
    assert "tiny-llama: log2 MSE" in shown
    invoke("table", str(runs), "--published", "--out", str(tmp_path / "again"))
    for name in ("paper_table.md", "paper_table.csv"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "again" / name).read_bytes()


def test_of_several_saes_in_a_cell_the_median_stands(world, figures):
    caches, runs, _ = world
    train_and_evaluate(caches["fast"], runs.parent / "more", papers_recipe("sae.seed=[1, 2, 3]"))
    invoke("table", str(runs.parent / "more"), "--runs", str(runs.parent / "more"))
    values = sorted(row.figures["log2_mse"] for row in read_rows(find_folders([runs.parent / "more"])[0])
                    if row.architecture == "standard")
    assert f"| {values[1]:.2f}* (3) |" in (runs.parent / "more" / "paper_table.md").read_text()


@pytest.mark.parametrize(("kind", "subsets", "method"), [
    ("fast", [], "FAST"), ("block", ["role:user"], "BT(F)"), ("block", ["role:other"], "BT(P)"),
    ("block-masked", ["role:assistant"], "BT(F), masked"), ("block", [], "?"), (None, ["role:user"], "?")])
def test_methods_follow_from_order_and_roles(kind, subsets, method):
    assert method_of({"order": {"kind": kind}}, subsets) == method


def test_folders_without_figures_are_left_out_and_without_any_there_is_no_table(world, tmp_path):
    _, runs, folders = world
    copy = shutil.copytree(runs / "fast", tmp_path / "fast")
    old = copy / "layer2" / folders["fast"][0].name
    (old / "eval.json").unlink()
    evaluated, others = find_folders([copy])
    assert others == [old]
    assert old not in evaluated
    assert "1 SAE is left out for want of current figures" in invoke("table", str(copy), "--out", str(tmp_path)).output
    for folder in evaluated:
        (folder / "eval.json").write_text('{"format_version": 1}')
    with pytest.raises(RecipeError, match="No evaluated SAE under"):
        find_folders([copy])
    with pytest.raises(RecipeError, match="no folder 'nosuch'"):
        find_folders([Path("nosuch")])
