"""Training, and gradients of what was trained: recipes, options, names and rows that cannot be used."""

import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from pipelines.gsnr import Wanted, layer_of, measure, training_cache
from shared.reading.cache import open_cache
from tests.error_cases.case import ONE_SAE, case, damage, saes
from tests.train import tiny_run
from train.batches import Batches
from train.choose_cache import choose_cache
from train.commands.run import _expansions, _layers
from train.config import read_train_config
from train.evaluation.gsnr_rows import number_of_batches
from train.groups import plan_groups, train_configs
from train.processes import Process
from train.run import train_saes
from train.trained import read_trained
from train.training_set import check_saes
from train.watchers import WATCHERS, Watchers
from train.watchers.base import WatchedRun


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


@case(2, "tensor_parallel is 2", "here are 3", then="torchrun --nproc-per-node 2")
def processes_that_make_no_whole_teams(w):
    Process(0, 0, 3).team(2)


@case(2, "tensor_parallel", "the 32 latents", "over 3 processes", then="a multiple of 3")
def latents_that_cannot_be_divided(w):
    check_saes(saes(ONE_SAE), 24, 3)


@case(2, "tensor_parallel is 2", "here are 1", then="under torchrun")
def an_sae_that_one_process_is_to_divide(w):
    train_saes(tiny_run.cache(), 3, read_train_config({"train": {"tensor_parallel": 2}}), [], runs=w.tmp, device="cpu",
               say=print)


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


@case(2, "calibration_types", "escaped", then="Name types that it keeps")
def nothing_to_calibrate_on(w):
    tiny_run.train(w.tmp, {"train": {**tiny_run.RECIPE["train"], "calibration_types": ["escaped"]},
                           "sae": ONE_SAE["sae"]})


@case(2, "diverged", "step 7", then="--set sae.lr=")
def a_run_that_diverges(w):
    tiny_run.train(w.tmp, {"train": {**tiny_run.RECIPE["train"], "lr": 1e30}, "sae": tiny_run.RECIPE["sae"][3:4]})


@case(2, "num_tokens (100)", "epochs (3)", then="Leave one out")
def two_lengths(w):
    read_train_config({"train": {"num_tokens": 100, "epochs": 3}})


@case(2, "topk-8-k9-s0", "9 active latents of 8", then="larger expansion")
def more_active_latents_than_there_are(w):
    check_saes(saes({"sae": [{"architecture": "topk", "d_sae": 8, "k": 9}]}), 24, 1)


@case(2, "jumprelu-8-l0-8.5", "8.5 active latents of 8", then="larger expansion")
def a_mean_of_more_active_latents_than_there_are(w):
    check_saes(saes({"sae": [{"architecture": "jumprelu", "d_sae": 8, "l0": 8.5}]}), 24, 1)


@case(2, "layers 0 and 2", "one, two", then="--cache one")
def several_caches_with_all_of_the_layers(w):
    for name in "one", "two":
        shutil.copytree(w.cache, w.tmp / "caches" / name)
    choose_cache(None, 0, 2)


@case(2, "'nine'", then="must be numbers from 0")
def layers_to_train_on_that_are_no_numbers(w):
    _layers("nine")


@case(2, "[[sae]].k", then="Give it a value")
def an_empty_axis_of_a_grid(w):
    saes({"sae": [{"architecture": "topk", "k": []}]})


@case(2, "[[sae]].architecture", then="Give it a value")
def a_grid_of_no_architecture(w):
    saes({"sae": [{"architecture": [], "k": 4}]})


@case(2, "(architecture = jumprelu, k = 4)", then="takes its sparsity as l0")
def a_grid_over_architectures_that_do_not_share_a_key(w):
    saes({"sae": [{"architecture": ["topk", "jumprelu"], "k": [4, 8]}]})


@case(2, "layer 9", "drop class first", then="Leave one of them out")
def the_same_layer_and_policy_twice(w):
    recipe = {"train": {"layer": [9, 9]}}
    plan_groups(recipe, train_configs(recipe), None, 24)


@case(2, "'runs/nothing'", then="Expected a folder such as")
def a_warm_start_from_nothing(w):
    saes({"sae": [{"architecture": "topk", "warm_start": "runs/nothing"}]})


def _source(w):
    """A finished SAE of 40 latents, on inputs of width 24."""
    _, [folder] = tiny_run.train(w.tmp / "runs", {"train": tiny_run.RECIPE["train"] | {"num_tokens": 128},
                                                  "sae": [{"architecture": "topk", "d_sae": 40, "k": 3}]})
    return str(folder)


@case(2, "40 latents", "width 24", then="Leave out expansion and d_sae")
def a_warm_start_from_another_width(w):
    tiny_run.train(w.tmp / "runs", {"train": tiny_run.RECIPE["train"], "sae": [
        {"architecture": "topk", "d_sae": 41, "warm_start": _source(w)}]})


@case(77, "sae_weights.safetensors", then="--fresh")
def a_warm_start_from_an_sae_that_is_damaged(w):
    folder = _source(w)
    recipe = {"train": tiny_run.RECIPE["train"], "sae": [{"architecture": "topk", "k": 3, "warm_start": folder}]}
    damage(Path(folder) / "sae_weights.safetensors")
    tiny_run.train(w.tmp / "runs", recipe)


@case(74, "cfg.json is missing", then="--fresh")
def a_warm_start_from_an_sae_that_lacks_a_file(w):
    folder = _source(w)
    (Path(folder) / "cfg.json").unlink()
    tiny_run.planned({"train": tiny_run.RECIPE["train"], "sae": [{"architecture": "topk", "warm_start": folder}]})


@case(77, "sae_weights.safetensors", then="give the command again")
def a_warm_start_from_an_sae_that_was_changed_meanwhile(w):
    folder = _source(w)
    recipe = {"train": tiny_run.RECIPE["train"], "sae": [{"architecture": "topk", "k": 3, "warm_start": folder}]}
    planned = tiny_run.planned(recipe)
    damage(Path(folder) / "sae_weights.safetensors")
    train_saes(tiny_run.cache(), 3, read_train_config(recipe), planned, runs=w.tmp / "runs", device="cpu",
               say=lambda line: None)


@case(2, "'tensorboard'", then='pip install -e ".[tensorboard]"')
def a_watcher_that_is_not_installed(w):
    def missing(run):
        raise ModuleNotFoundError("No module named 'tensorboard'")

    w.patch.setitem(WATCHERS, "tensorboard", missing)  # it may be installed here
    Watchers(["tensorboard"], WatchedRun("sae", "demo/layer9", w.tmp, "1", 0, {}))


@case(2, "'wandb'", "No API key configured.", then="WANDB_MODE=offline")
def a_watcher_that_wants_an_account(w):
    def init(**settings):
        raise RuntimeError("No API key configured.")

    w.patch.setitem(sys.modules, "wandb", SimpleNamespace(init=init))
    Watchers(["wandb"], WatchedRun("sae", "demo/layer9", w.tmp, "1", 0, {}))


@case(2, "'.'", "no run.json", then="--sae FOLDER")
def gsnr_of_what_is_no_sae(w):
    read_trained(Path())


@case(2, "'nosuch'", then="Expected a finished SAE")
def gsnr_of_what_is_not_there(w):
    read_trained(Path("nosuch"))


@case(2, "layer 3, not on layer 4", then="--layer 3")
def gsnr_on_another_layer(w):
    layer_of([Path(_source(w))], 4)


@case(2, "the cache 'fake'", then="--cache PATH")
def gsnr_without_the_cache_of_the_training(w):
    training_cache(read_trained(Path(_source(w))), [])


@case(2, "width 24", "32 wide", then="--cache NAME")
def gsnr_on_a_stream_of_another_width(w):
    folder = Path(_source(w))
    w.patch.setattr("pipelines.gsnr.training_cache", lambda record, caches: tiny_run.cache())
    measure(Wanted((folder,), 3, ("all",), "train", 640, 64, 0), [open_cache(w.cache)], "cpu")


@case(65, "3 batches of 64", "at least 8", then="--batch-size")
def gsnr_of_too_few_rows(w):
    number_of_batches([np.arange(200)], 64, 1000, "sae")
