"""Metrics of an SAE with the language model: what stands in the way of them."""

import numpy as np
import torch

from harvest.device import find_device
from harvest.model import find_model, load_language_model
from pipelines.loss.run import open_model
from pipelines.loss.split_model import SplitModel
from pipelines.loss.streams import parse_streams, read_stream
from shared.reading.cache import open_cache
from tests.error_cases.case import case

CPU = find_device("cpu")


@case(2, "'conversation'", "conversations, blocks", then='--streams "conversations blocks"')
def a_stream_that_is_not_known(w):
    parse_streams("conversation")


@case(2, "'tiny-llama'", then="--model path/to/tiny-llama")
def a_model_in_a_folder_that_nobody_names(w):
    open_model(open_cache(w.cache), 2, CPU)


@case(2, "'org/tiny'", "not on this machine", then="--loss-tokens 10000")
def a_hubs_model_that_was_not_downloaded_and_not_asked_for(w):
    w.patch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(w.tmp / "hub"))
    cache = open_cache(w.cache)
    cache.identity = cache.identity | {"model": {"name": "org/tiny", "revision": "a" * 40, "weights": ""}}
    open_model(cache, 2, CPU, download=False)


@case(76, "model.weights", "there", "found", then="--model path/to/folder")
def another_models_weights(w):
    open_model(open_cache(w.cache), 2, CPU, str(w.qwen2))


@case(2, "LlamaForCausalLM", "layer 1", then="--loss-tokens 0")
def a_model_that_cannot_be_started_at_a_layer(w):
    model = load_language_model(find_model(str(w.llama)), "float32", "sdpa", CPU.device)
    kept = []
    model.model.layers[0].register_forward_hook(lambda _, __, output: kept.append(output))
    model.model.layers[3].register_forward_hook(lambda _, __, output: output + kept.pop() if kept else output)
    SplitModel(model, 1).checked(torch.arange(20, 30)[None])


@case(65, "no whole conversation", "layer 2", then="make harvest")
def held_out_conversations_of_which_none_is_there_as_a_whole(w):
    cache = open_cache(w.cache)
    w.patch.setattr(cache, "rows", lambda **which: np.array([cache.num_train_rows]))
    read_stream(cache, 2, "conversations", 100, find_model(str(w.llama)).tokenizer)
