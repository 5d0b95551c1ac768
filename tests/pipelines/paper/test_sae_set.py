"""The recipes train the paper's 240 SAEs, each with the paper's settings."""

from collections import Counter

import pytest
from click.testing import CliRunner

from harvest.config import HarvestConfig
from harvest.device import find_device
from harvest.job import prepare
from harvest.opening import open_plan
from pipelines.__main__ import main
from pipelines.paper.models import PAPER_MODELS, SIZES
from pipelines.paper.published import Cell, read_published
from pipelines.paper.sae_set import RECIPES, paper_caches
from shared.errors import RecipeError
from shared.reading.cache import open_cache
from shared.recipe import find_recipe, read_recipe
from shared.registry import MODELS
from tests import tiny
from tests.test_make import typed


@pytest.fixture(scope="module")
def caches():
    return paper_caches()


def test_they_are_the_published_cells_each_once(caches):
    found = Counter()
    for cache in caches:
        model = MODELS[cache.model].repo.split("/")[1]
        for layer, saes in cache.saes.items():
            for sae in saes:
                expansion = sae.config.width(SIZES[cache.model].d_model) / SIZES[cache.model].d_model
                found[Cell(model, layer, expansion, cache.method), sae.architecture] += 1
    assert found.total() == 240
    assert found == Counter(read_published().keys())


def test_every_one_has_the_papers_settings(caches):
    for cache in caches:
        train, harvest = cache.train, cache.harvest
        assert train.num_tokens // train.batch_size == 320_000
        assert (train.batch_size, train.lr, train.schedule, train.data_seed) == (128, 7e-5, "cosine", 42)
        assert (train.scale, train.centre, train.centre_input, train.shuffle) == (
            False, "geometric_median", False, "mixing-buffer")
        assert train.policy.describe() == "keep all"
        assert harvest.num_tokens == harvest.plan_tokens == 40_960_000
        for sae in (sae for saes in cache.saes.values() for sae in saes):
            fixed = {"standard": "l1_coefficient", "jumprelu": "sparsity_coefficient"}[sae.architecture]
            assert getattr(sae.config, fixed) == {"standard": 5.0, "jumprelu": 0.01}[sae.architecture]
            assert sae.config.seed == 42


def test_methods_differ_in_order_and_data_alone():
    fast, block, text = (read_recipe(find_recipe(RECIPES[method])) for method in ("FAST", "BT(F)", "BT(P)"))
    assert [part["dataset"] for part in fast["harvest"]["mixture"]] == [
        "wildchat-1m-full", "infinity-instruct", "tulu-3-sft-mixture", "orca-agentinstruct-1m-v1-cleaned",
        "lmsys-chat-1m"]
    assert fast["harvest"]["deduplicate"] == {"n": 20}
    cuts = {"order": "block", "block_length": 2048}
    assert block == {"harvest": {**fast["harvest"], **cuts}}
    assert "order" not in fast["harvest"]  # the default is fast
    assert (text["harvest"]["dataset"], text["harvest"]["order"], text["harvest"]["block_length"]) == (
        "pile-uncopyrighted", "block", 2048)


@pytest.mark.parametrize("method", ["FAST", "BT(F)", "BT(P)"])
def test_a_recipe_harvests_with_local_data_in_place_of_the_hubs(method, llama, tmp_path):
    table = read_recipe(find_recipe(RECIPES[method]))["harvest"]
    chats = tiny.chats(60)
    parts = [tiny.write_jsonl(tmp_path / f"{number}.jsonl", chats[10 * number : 10 * number + 20])
             for number in range(5)]  # half of each is in the next one again
    if "mixture" in table:
        table["mixture"] = [{**part, "dataset": str(path)} for part, path in zip(table["mixture"], parts, strict=True)]
    else:
        table |= {"dataset": str(parts[0]), "dataset_split": "train"}
    table |= {"num_tokens": 2000, "plan_tokens": 2000, "layers": [2], "rows_per_shard": 256, "batch_tokens": 512}
    job = prepare(HarvestConfig.model_validate({"model": str(llama), **table}), find_device("cpu"))
    open_plan(job, tmp_path / "cache")
    cache = open_cache(tmp_path / "cache")
    assert cache.identity["order"]["kind"] == ("fast" if method == "FAST" else "block")
    assert ("deduplicate" in cache.identity) == (method != "BT(P)")
    assert 0 < cache.num_train_rows < 2500


def test_the_commands_are_what_make_understands(caches):
    shown = CliRunner().invoke(main, ["paper", "--commands"])
    lines = shown.output.splitlines()
    assert len(lines) == len(PAPER_MODELS) * 3
    harvest, train = caches[3].commands()
    assert f"{harvest} && {train}" in lines
    assert typed(*harvest.split()[1:]) == [["-m", "harvest", "run", "--model", "llama3.2-3b-instruct", "--cache",
                                            "llama3.2-3b-instruct-bt-p", "--recipe", "paper-bt-p", "--device", "auto"]]
    assert typed("train", "RECIPE=paper", f"CACHE={caches[3].name}", "LAYER=4 12 20", "EXPANSION=8 16") == [
        ["-m", "train", "run", "--layer", "4 12 20", "--expansion", "8 16", "--cache", caches[3].name, "--recipe",
         "paper", "--device", "auto"]]


def test_other_models_can_be_asked_for_if_their_sizes_are_known():
    assert {cache.model for cache in paper_caches(["smollm2-135m-instruct"])} == {"smollm2-135m-instruct"}
    with pytest.raises(RecipeError, match=r"'gpt2'.*Expected some of smollm2"):
        paper_caches(["gpt2"])
