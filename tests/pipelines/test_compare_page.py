"""The command on SAEs that were really trained, of two caches: its page, its CSV files, and what it says."""

import contextlib
import csv
import json
import shutil
from html.parser import HTMLParser

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from pipelines.comparison.comparison import compare
from pipelines.comparison.page import signed
from pipelines.comparison.recipes import commands_of
from pipelines.titles import METRICS
from shared.errors import DataError, IdentityError, RecipeError
from shared.reading.cache import open_cache
from shared.recipe import read_recipe
from tests import tiny
from tests.pipelines.conftest import files_of, invoke
from tests.pipelines.planted import Rows, plant_loss
from train.config import plan_saes, read_train_config, sae_tables
from train.evaluation.evaluate import evaluate_saes
from train.evaluation.files import conversation_keys
from train.run import train_saes

RECIPE = {"train": {"batch_size": 128, "num_tokens": 6400, "log_steps": 5, "held_out_steps": 20},
          "sae": [{"architecture": "batchtopk", "expansion": 4, "k": 4, "seed": [0, 1]}]}


class Tables(HTMLParser):
    """Cells of the page's tables by set, subset and metric: (exact, text) of each."""

    def __init__(self, text):
        super().__init__()
        self.differences, self.figures, self.heads, self.tags, self.sources = {}, {}, [], set(), []
        self._rows, self._set, self._row = None, None, None
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        named = dict(attrs)
        self.tags.add(tag)
        self.sources += [named[name] for name in ("src", "href") if name in named]
        if tag == "table":
            self._rows = {"differences": self.differences}.get(named.get("class"), self.figures
                                                               if named.get("id") == "figure-table" else None)
            self._set = named.get("data-set")
        if tag == "tr" and self._rows is not None and "data-metric" in named:
            self._row = self._rows.setdefault((self._set, named["data-subset"], named["data-metric"]), [])
        if tag == "td" and self._row is not None:
            self._row.append([named.get("title"), ""])

    def handle_data(self, data):
        if self._row:
            self._row[-1][1] += data.strip()

    def handle_endtag(self, tag):
        if tag == "tr":
            self._row = None


@pytest.fixture(scope="module")
def arms(tmp_path_factory, llama):
    """Caches "fast" and "block" of the same chats, two seeds of one SAE on each, and a second recipe on the first."""
    folder = tmp_path_factory.mktemp("arms")
    data = tiny.write_jsonl(folder / "chats.jsonl", tiny.chats(150, seed=5))
    for name, settings in (("fast", {}), ("block", {"order": "block", "block_length": 128})):
        cache = tiny.make_cache(folder / "caches" / name, llama, data, layers=[2], num_tokens=1_000_000, **settings)
        extra = [{"architecture": "standard", "expansion": 4, "l0": 4}] if name == "fast" else []
        config = read_train_config(RECIPE)
        saes = plan_saes(sae_tables({**RECIPE, "sae": RECIPE["sae"] + extra}, None), config, 2, cache.d_model)
        evaluate_saes(cache, 2, train_saes(cache, 2, config, saes, runs=folder / "runs", device="cpu",
                                           say=lambda line: None))
    return folder


@pytest.fixture
def here(arms, monkeypatch):
    """The same, as the working folder, so that its caches lie under caches/."""
    monkeypatch.chdir(arms)
    return arms


@pytest.fixture(scope="module")
def compared(arms):
    """The folder that comparing the SAEs of the first cache leaves."""
    with contextlib.chdir(arms):
        invoke("compare", "runs/fast/layer2", "--out", "out")
    return arms / "out"


def rows_of(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_every_number_of_the_page_is_that_of_the_csv_files(compared):
    page = Tables((compared / "index.html").read_text())
    differences = {(row["set"], row["subset"], row["metric"]): row for row in rows_of(compared / "differences.csv")}
    assert len(page.differences) >= 15
    for key, (against, value, difference, seeds, verdict) in page.differences.items():
        row, form = differences[key], METRICS[key[2]].form
        assert (against[0], value[0], difference[0]) == (row["against_value"], row["value"], row["difference"])
        assert against[1] == format(float(row["against_value"]), form)
        assert value[1] == format(float(row["value"]), form)
        ends = " to ".join(signed(float(row[end]), key[2]) for end in ("low", "high"))
        assert difference[1] == signed(float(row["difference"]), key[2]) + ends
        assert seeds == [row["seed_sd"], "–"]  # one set has a single seed
        assert verdict[1].split(";")[0] == row["verdict"]
        assert ("; L0 " in verdict[1]) is (row["l0_matched"] == "no" and key[2] != "l0")
    figures = {(row["set"], row["subset"], row["metric"]): row for row in rows_of(compared / "figures.csv")}
    assert len(page.figures) >= 15
    sets = list(dict.fromkeys(row["set"] for row in figures.values()))
    for (_, subset, metric), cells in page.figures.items():
        assert len(cells) == len(sets)
        for name, (exact, text) in zip(sets, cells, strict=True):
            row, form = figures[name, subset, metric], METRICS[metric].form
            assert exact == row["value"]
            low, high = (format(float(row[end]), form) for end in ("low", "high"))
            spread = f"; seeds ± {float(row['seed_sd']):{form}}" if row["seed_sd"] else ""
            assert text == f"{float(exact):{form}}{low} to {high}{spread}"


def test_the_figures_of_saes_are_those_of_their_eval_json_and_the_plots_rows_are_figures(arms, compared):
    saes = rows_of(compared / "saes.csv")
    assert {row["seed"] for row in saes} == {"0", "1"}
    for row in saes:
        evaluation = json.loads((arms / row["folder"] / "eval.json").read_text())
        assert row["value"] == repr(evaluation["subsets"][row["subset"]][row["metric"]])
        assert int(row["num_rows"]) == evaluation["subsets"][row["subset"]]["num_rows"]
    figures = rows_of(compared / "figures.csv")
    for name in ("by_position.csv", "by_class.csv"):
        rows = rows_of(compared / name)
        assert rows
        assert all(row in figures for row in rows)
    known = {(row["set"], row["subset"], row["metric"]): row for row in figures}
    for row in rows_of(compared / "frontier.csv"):
        if not row["sae"]:
            figure, l0 = known[row["set"], row["subset"], row["metric"]], known[row["set"], row["subset"], "l0"]
            assert (row["value"], row["low"], row["high"]) == (figure["value"], figure["low"], figure["high"])
            assert (row["l0"], row["l0_low"], row["l0_high"]) == (l0["value"], l0["low"], l0["high"])


def test_the_interval_of_a_single_sae_is_that_of_its_eval_json(arms, compared):
    folder = next(arms.glob("runs/fast/layer2/standard-*"))
    subsets = json.loads((folder / "eval.json").read_text())["subsets"]
    checked = 0
    for row in rows_of(compared / "figures.csv"):
        if row["set"].startswith("Standard") and row["metric"] in subsets[row["subset"]]["intervals"]:
            ends = subsets[row["subset"]]["intervals"][row["metric"]]
            assert [float(row["low"]), float(row["high"])] == pytest.approx(ends, rel=1e-12)
            checked += 1
    assert checked > 40


def test_the_same_command_again_writes_the_same_bytes(here, compared):
    first = files_of(compared)
    shutil.rmtree(compared)
    invoke("compare", "runs/fast/layer2", "--out", "out")
    assert files_of(compared) == first
    assert sorted(map(str, first)) == ["by_class.csv", "by_position.csv", "density.csv", "differences.csv",
                                       "figures.csv", "frontier.csv", "index.html", "saes.csv", "training.csv"]


def test_the_page_needs_nothing_else_and_names_every_command(compared):
    text = (compared / "index.html").read_text()
    page = Tables(text)
    assert not page.tags & {"script", "link", "iframe", "object", "embed", "base", "form", "video", "audio"}
    images = [source for source in page.sources if not source.startswith("#")]
    assert len(images) == 6
    assert all(source.startswith("data:image/svg+xml;base64,") for source in images)
    assert "python -m pipelines compare runs/fast/layer2 --out out" in text
    assert "python -m train run --recipe recipe.toml --cache fast" in text


def test_the_recipe_on_the_page_makes_the_same_saes(here, tmp_path):
    comparison = compare([here / "runs/fast/layer2"])
    for one in comparison.sets:
        (recipe, _), = commands_of(one)
        (tmp_path / "recipe.toml").write_text(recipe)
        again = read_recipe(tmp_path / "recipe.toml", [])
        plans = plan_saes(sae_tables(again, None), read_train_config(again), 2, one.members[0].d_in)
        assert [plan.name for plan in plans] == [member.run.name for member in one.members]


def test_caches_of_two_orders_are_paired_by_conversation_and_it_is_said(here, tmp_path):
    output = invoke("compare", "runs/fast/layer2", "runs/block/layer2", "--out", str(tmp_path / "out")).output
    assert "less BatchTopK 4x, k 4, cache fast" in output
    assert "SAEs of 2 caches of the same model are compared: caches/block, caches/fast." in output
    assert "Not measured on the same tokens" in output
    assert f"page     {tmp_path / 'out' / 'index.html'}" in output
    rows = [row for row in rows_of(tmp_path / "out" / "differences.csv") if "block" in row["set"]]
    assert {row["against"] for row in rows} == {"BatchTopK 4x, k 4, cache fast"}
    assert all(row["seed_sd"] for row in rows)


def test_baselines_can_be_compared_with(here, tmp_path):
    shutil.copytree(here / "runs", tmp_path / "runs")
    layer = tmp_path / "runs" / "fast" / "layer2"
    invoke("evaluate", "--cache", "fast", "--layer", "2", "--runs", str(tmp_path / "runs"), "--device", "cpu",
           "--baselines")
    baselines = sorted(map(str, (layer / "baselines").iterdir()))
    invoke("compare", str(next(layer.glob("standard-*"))), *baselines, "--out", str(tmp_path / "out"))
    rows = {(row["set"], row["subset"], row["metric"]): row for row in rows_of(tmp_path / "out" / "differences.csv")}
    assert rows["identity", "content", "explained_variance"]["value"] == "1.0"
    assert ("identity", "content", "l0") not in rows
    assert rows["identity", "content", "explained_variance"]["l0_matched"] == ""
    assert "PCA, k 4" in {name for name, *_ in rows}


def test_losses_stand_in_tables_plots_and_terminal(here, tmp_path):
    folders = [shutil.copytree(folder, tmp_path / folder.name)
               for folder in sorted(here.glob("runs/fast/layer2/*-s0-*"))]
    keys = load_file(folders[0] / "eval_conversations.safetensors")["key"].view(np.uint64)
    rows = Rows(np.repeat(np.arange(len(keys)), 10), keys, None, None)
    for number, folder in enumerate(folders):
        plant_loss(rows, 0.1 + 0.05 * number, number).write(folder)
    output = invoke("compare", *map(str, folders), "--out", str(tmp_path / "out")).output
    assert "KL" in output
    text = (tmp_path / "out" / "index.html").read_text()
    assert "KL, CE added, CE recovered" in text
    assert len([key for key in Tables(text).differences if key[2] in {"kl", "delta_ce", "ce_recovered_mean"}]) == 6
    frontier = {row["subset"] for row in rows_of(tmp_path / "out" / "frontier.csv")}
    assert {"conversations:all_without_first", "conversations:assistant_without_first", "content"} <= frontier


def test_conversations_that_training_saw_are_refused(here, tmp_path):
    folders = sorted(here.glob("runs/fast/layer2/*-s0-*"))
    subsets = compare(folders).sets[0].members[0].sums.subsets
    copies = [shutil.copytree(folder, tmp_path / folder.name) for folder in folders]
    trained_on = conversation_keys(open_cache("caches/fast"))[0]
    for copy in copies:
        arrays = load_file(copy / "eval_conversations.safetensors")
        arrays["key"][0] = trained_on.view(np.int64)
        save_file(arrays, copy / "eval_conversations.safetensors", {"subsets": json.dumps(subsets)})
    with pytest.raises(DataError, match=r"was trained on 1 of the \d+ conversations that are compared on: caches/fast"):
        compare(copies)


def test_a_cache_of_another_model_and_one_of_none_of_the_saes_are_refused(here, tmp_path, qwen2):
    cache = tiny.make_cache(tmp_path / "other", qwen2, here / "chats.jsonl", layers=[2], num_tokens=1_000_000)
    with pytest.raises(RecipeError, match=r"--cache '\S+other' is of none of the SAEs"):
        compare([here / "runs/fast/layer2"], caches=[str(tmp_path / "other")])
    config = read_train_config(RECIPE)
    saes = plan_saes(sae_tables(RECIPE, None), config, 2, cache.d_model)[:1]
    others = train_saes(cache, 2, config, saes, runs=tmp_path / "runs", device="cpu", say=lambda line: None)
    evaluate_saes(cache, 2, others)
    with pytest.raises(IdentityError, match=r"caches/fast is of the model .* and \S+other of .*Compare SAEs of one"):
        compare([here / "runs/fast/layer2", *others], caches=[str(tmp_path / "other")])
