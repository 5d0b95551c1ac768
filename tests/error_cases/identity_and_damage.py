"""Exit codes 76 and 77: folders of another configuration, and bytes that are not those that were written."""

from harvest.opening import open_plan
from harvest.run import harvest
from shared.format.layout import PLAN, inside
from shared.format.plan import read_plan
from shared.reading.cache import open_cache
from shared.sealed_json import read_sealed, seal
from shared.upkeep.verify import files_to_check
from shared.writing.writers import remove_cache
from tests.error_cases.case import ONE_SAE, case, damage
from tests.train import tiny_run
from tests.train.fake_cache import FakeCache, planted
from train.evaluation.evaluate import evaluate_saes


@case(76, "seed", "3", then="--fresh")
def another_seed(w):
    open_plan(w.job(seed=3), w.cache)


@case(76, "batch_tokens", "512", "64", then="--allow batch-budget")
def another_batch_budget(w):
    open_plan(w.job(batch_tokens=64), w.cache)


@case(76, "layers", "0 2", "2 3", then="CACHE=name")
def a_layer_of_another_pass(w):
    harvest(w.job(layers=[2, 3]), w.cache)


@case(76, "thesis", then="CACHE=name")
def a_folder_with_other_files(w):
    (w.tmp / "thesis").mkdir()
    (w.tmp / "thesis" / "thesis.tex").write_text("x")
    open_plan(w.job(), w.tmp / "thesis")


@case(76, "thesis", then="CACHE=name")
def starting_over_in_a_folder_that_is_no_cache(w):
    (w.tmp / "thesis").mkdir()
    (w.tmp / "thesis" / "thesis.tex").write_text("x")
    remove_cache(w.tmp / "thesis")


@case(76, "format 9", then="Update the checkout")
def a_newer_format(w):
    path = w.copy() / PLAN
    path.write_bytes(seal(read_sealed(path) | {"format_version": 9}))
    read_plan(path.parent)


@case(76, "another cache of this name", then="--fresh")
def an_sae_of_another_cache(w):
    tiny_run.train(w.tmp, ONE_SAE)
    w.patch.setattr(tiny_run, "cache", lambda units: other_cache())
    tiny_run.train(w.tmp, ONE_SAE)


def other_cache():
    rows, _ = planted(4096, d_in=24)
    cache = FakeCache(rows, num_train_rows=3500)
    cache.cache_id = "0" * 32
    return cache


@case(77, "plan.json", "checksum", then="python -m harvest verify")
def a_damaged_plan(w):
    path = w.copy() / PLAN
    path.write_text(path.read_text().replace('"seed": 0', '"seed": 1'))
    read_plan(path.parent)


@case(77, "plan.json", "no JSON", then="python -m harvest verify")
def a_plan_that_is_cut_short(w):
    path = w.copy() / PLAN
    path.write_text(path.read_text()[:100])
    read_plan(path.parent)


@case(77, ".g0.json", then="python -m harvest verify")
def a_damaged_record(w):
    path = next(w.copy().glob("commits/*/*.json"))
    damage(path)
    files_to_check(w.tmp / "copy")


@case(77, "block", "layer 2", "unit", then="python -m harvest verify")
def a_damaged_block(w):
    damage(w.copy() / "activations.zarr/layers/2/resid_post/c/3/0", 777)
    cache = open_cache(w.tmp / "copy")
    cache.layer(2)[cache.rows(layer=2)]


@case(77, "resid_post/c/3/0", "unit 1", "bytes, expected", then="python -m harvest verify")
def a_truncated_shard(w):
    path = w.copy() / "activations.zarr/layers/2/resid_post/c/3/0"
    path.chmod(0o644)
    path.write_bytes(path.read_bytes()[:-1])
    open_cache(w.tmp / "copy").layer(2)


@case(77, "resid_post/c/3/0", "unit 1", "missing", then="python -m harvest verify")
def a_missing_shard(w):
    (w.copy() / "activations.zarr/layers/2/resid_post/c/3/0").unlink()
    open_cache(w.tmp / "copy").layer(2)


@case(77, "tokens/token_id/c/0", then="python -m harvest verify")
def a_damaged_array_of_the_plan(w):
    damage(w.copy() / "activations.zarr/tokens/token_id/c/0")
    _ = open_cache(w.tmp / "copy").token_id


@case(77, "passes/", then="python -m harvest verify")
def a_damaged_pass(w):
    damage(next(w.copy().glob("passes/*.json")))
    open_cache(w.tmp / "copy")


@case(77, "'../outside'", then="python -m harvest verify")
def a_name_that_leads_out_of_the_cache(w):
    inside(w.cache, "../outside")


@case(76, "eeeeeeeeeeee", "ffffffffffff", then="--cache NAME")
def an_sae_of_another_cache_that_is_evaluated(w):
    cache, [folder] = tiny_run.train(w.tmp, ONE_SAE)
    cache.cache_id = "e" * 32
    evaluate_saes(cache, 3, [folder])


@case(76, "on layer 3, not on layer 4", then="--layer 3")
def an_sae_of_another_layer_that_is_evaluated(w):
    cache, [folder] = tiny_run.train(w.tmp, ONE_SAE)
    evaluate_saes(cache, 4, [folder])


@case(77, "sae_weights.safetensors", "damaged", then="--fresh")
def a_damaged_sae(w):
    cache, [folder] = tiny_run.train(w.tmp, ONE_SAE)
    damage(folder / "sae_weights.safetensors", 1000)
    evaluate_saes(cache, 3, [folder])
