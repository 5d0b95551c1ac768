"""Exit code 2 of a training: a recipe, an option or a name that cannot be used."""

import shutil

from tests.error_cases.case import ONE_SAE, case, saes
from tests.train import tiny_run
from train.batches import Batches
from train.choose_cache import choose_cache
from train.commands.run import _expansions


@case(2, "No cache 'nosuch'", then="no cache under caches/")
def a_cache_that_is_not_there(w):
    choose_cache("nosuch", 2)


@case(2, "does not hold layer 3", "layers there: 0, 2", then="--layers 3")
def training_on_a_layer_that_is_not_there(w):
    choose_cache(str(w.cache), 3)


@case(2, "no cache under caches/", then="make harvest")
def training_before_a_harvest(w):
    choose_cache(None, 3)


@case(2, "Several caches", "one, two", then="--cache one")
def several_caches_with_the_layer(w):
    for name in "one", "two":
        shutil.copytree(w.cache, w.tmp / "caches" / name)
    choose_cache(None, 2)


@case(2, "'8 x'", then="must be positive numbers")
def expansions_that_are_no_numbers(w):
    _expansions("8 x")


@case(2, "'relu'", then="must be one of")
def an_unknown_architecture(w):
    saes({"sae": [{"architecture": "relu"}]})


@case(2, "[[sae]] number 2", then="Change its seed")
def the_same_sae_twice(w):
    saes({"sae": [{"architecture": "topk", "d_sae": 8, "k": 2}] * 2})


@case(2, "640 tokens", "1,000", then="harvest more")
def fewer_tokens_than_a_batch(w):
    recipe = {"train": {"batch_size": 1000, "num_tokens": 640}, "sae": ONE_SAE["sae"]}
    tiny_run.train(w.tmp, recipe)


@case(2, "Layer 7", "0, 2", then="holds layers")
def batches_of_a_layer_that_is_not_there(w):
    Batches(w.cache, layer=7)


@case(2, "shuffle must be one of", "'random'", then="windows")
def batches_in_an_order_that_is_not_there(w):
    Batches(w.cache, layer=2, shuffle="random")


@case(2, "diverged", "step 7", then="--set sae.lr=")
def a_run_that_diverges(w):
    tiny_run.train(w.tmp, {"train": {**tiny_run.RECIPE["train"], "lr": 1e30}, "sae": tiny_run.RECIPE["sae"][3:]})
