"""Exit code 2 of a harvest: a recipe, an option or a name that cannot be used."""

import json
from pathlib import Path

import numpy as np
import torch
from huggingface_hub import errors as hub

from harvest.__main__ import main
from harvest.commands.deduplicate import find_output, parse_roles
from harvest.commands.options import cache_path, resolve
from harvest.device import find_device
from harvest.forward import Forward
from harvest.hub import hub_errors
from harvest.inspection_sample import Wanted, inspect_cache, inspect_source
from harvest.model import find_model
from harvest.opening import open_plan
from harvest.sources import find_source
from harvest.units import Piece
from shared.reading.cache import open_cache
from shared.recipe import find_recipe, read_recipe
from tests import tiny
from tests.error_cases.case import case

try:  # the hub's client has changed its HTTP library
    import httpx2 as httpx
except ImportError:
    import httpx


@case(2, then="--model")
def no_model_is_given(w):
    resolve(None, None, None, None, None, None, (), "cpu", False, False)


@case(2, "'nosuch'", then="Known aliases")
def an_unknown_model(w):
    find_model("nosuch")


@case(2, "'empty'", then="MODEL=org/name")
def a_model_folder_without_a_config(w):
    Path("empty").mkdir()
    find_model("empty")


@case(2, "model", then="save_pretrained")
def a_model_folder_without_weights(w):
    folder = w.model()
    (folder / "model.safetensors").unlink()
    open_plan(tiny.make_job(folder, w.data), w.tmp / "cache")


@case(2, "model", then="save_pretrained")
def a_damaged_config(w):
    folder = w.model()
    (folder / "config.json").write_text("{broken")
    tiny.make_job(folder, w.data)


@case(2, "model", then="save_pretrained")
def a_damaged_tokenizer(w):
    folder = w.model()
    (folder / "tokenizer.json").write_text("{broken")
    tiny.make_job(folder, w.data)


@case(2, "model", then="save_pretrained")
def damaged_weights(w):
    folder = w.model()
    (folder / "model.safetensors").write_bytes(b"broken")
    tiny.make_cache(w.tmp / "cache", folder, w.data)


@case(2, "model-00002-of-00002.safetensors", "index.json", then="all of it")
def a_model_that_was_not_downloaded_whole(w):
    """It is told before anything is planned, so that the cache is not that of another model when the rest is there."""
    folder = w.model()
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    files = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": files}))
    try:
        open_plan(tiny.make_job(folder, w.data), w.tmp / "cache")
    finally:
        assert not (w.tmp / "cache" / "plan.json").exists()


@case(2, "index.json", then="Download or save the model again")
def a_damaged_index_of_weights(w):
    folder = w.model()
    (folder / "model.safetensors.index.json").write_text("{broken")
    open_plan(tiny.make_job(folder, w.data), w.tmp / "cache")


def other_config(w, **changes):
    """A harvest with a model folder whose config.json was changed."""
    folder = w.model()
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))
    tiny.make_cache(w.tmp / "cache", folder, w.data, layers=[changes.get("num_hidden_layers", 3) - 1])


@case(2, "model", "shapes", then="Download or save it again")
def weights_of_another_width(w):
    other_config(w, hidden_size=64)


@case(2, "model", "layers.4.", then="Download or save it again")
def weights_without_some_layers(w):
    other_config(w, num_hidden_layers=6)


@case(2, "no chat template", then="instruct variant")
def a_base_model(w):
    folder = w.model()
    (folder / "chat_template.jinja").unlink()
    tiny.make_job(folder, w.data)


@case(2, "Layer 17", "tiny-llama", "0 to 3", then="--layers")
def a_layer_out_of_range(w):
    w.job(layers=[0, 17])


@case(2, "'4 x'", then="expected numbers from 0")
def layers_that_are_no_numbers(w):
    resolve("m", None, None, "4 x", None, None, (), "cpu", False, False)


@case(2, "'gpu'", then="Expected auto, cpu")
def an_unknown_device(w):
    find_device("gpu")


@case(2, "'cuda:99'", then="Use auto or cpu")
def a_device_that_is_not_there(w):
    find_device("cuda:99")


@case(2, "'mine.jsonl'", then="Expected a JSONL file")
def a_missing_data_file(w):
    find_source("mine.jsonl")


@case(2, "data.csv", then="expected JSONL")
def a_data_file_of_another_kind(w):
    Path("data.csv").write_text("a,b")
    find_source("data.csv")


@case(2, "'chats/*.jsonl'", then="Expected a pattern like")
def a_pattern_that_fits_no_file(w):
    find_source("chats/*.jsonl")


@case(2, "'chats'", then="--dataset 'chats/**/*.parquet'")
def a_data_folder_without_data(w):
    Path("chats").mkdir()
    find_source("chats")


@case(2, "'pile-uncopyrighted'", then="--dataset my.jsonl")
def a_data_set_of_plain_text(w):
    find_source("pile-uncopyrighted")


@case(2, "[harvest].mixture", "mine.jsonl", then="give one of them")
def a_mixture_and_a_data_set(w):
    mixture = 'harvest.mixture=[{dataset = "mine.jsonl"}]'
    resolve("m", "other.jsonl", None, None, None, None, (mixture,), "cpu", False, False)


@case(2, "'s3://bucket/x'", then="Mount it")
def a_cache_that_is_a_url(w):
    cache_path("s3://key:secret@bucket/x")


@case(2, "'chats.jsonl'", then="CACHE=name")
def a_cache_that_is_a_file(w):
    Path("chats.jsonl").write_text("{}")
    cache_path("./chats.jsonl")


@case(2, "'nosuch'", then="Known recipes")
def an_unknown_recipe(w):
    find_recipe("nosuch")


@case(2, "mine.toml", "line 1", then="Mend it; pipelines/recipes/ has examples")
def a_recipe_that_is_no_toml(w):
    Path("mine.toml").write_text("[harvest\n")
    read_recipe(find_recipe("mine.toml"))


@case(2, "[harvst]", then="Did you mean 'harvest'?")
def an_unknown_table(w):
    Path("mine.toml").write_text("[harvst]\n")
    read_recipe(find_recipe("mine.toml"))


@case(2, "'max_lenght'", then="Did you mean 'max_length'?")
def an_unknown_key(w):
    resolve("m", None, None, None, None, None, ("harvest.max_lenght=5",), "cpu", False, False)


@case(2, "[harvest].max_length", "got 0", then="should be greater than")
def a_value_out_of_range(w):
    resolve("m", None, None, None, None, None, ("harvest.max_length=0",), "cpu", False, False)


@case(2, "'lr=1'", then="expected TABLE.KEY=VALUE")
def an_override_without_a_table(w):
    read_recipe(None, ["lr=1"])


@case(2, "no revision is given", "'org/name'", then="--set harvest.revision=")
def remote_code_without_a_commit(w):
    find_model("org/name", None, None, trust_remote_code=True)


@case(2, "tiny-llama", then="--set harvest.trust_remote_code=false")
def remote_code_of_a_folder(w):
    find_model(str(w.llama), "1" * 40, None, trust_remote_code=True)


def answer(status):
    return httpx.Response(status, request=httpx.Request("GET", "https://hub.invalid/x"))


@case(2, "'meta-llama/x'", then="hf auth login")
def a_gated_model(w):
    with hub_errors("meta-llama/x", "model"):
        raise hub.GatedRepoError("gated", response=answer(403))


@case(2, "'org/nosuch'", then="hf auth login")
def a_model_that_the_hub_does_not_have(w):
    with hub_errors("org/nosuch", "model"):
        raise hub.RepositoryNotFoundError("404", response=answer(404))


@case(2, "'org/name'", then="huggingface.co/org/name")
def a_revision_that_the_hub_does_not_have(w):
    with hub_errors("org/name", "model"):
        raise hub.RevisionNotFoundError("404 Client Error", response=answer(404))


@case(2, "'bad name/x'", then="Expected org/name")
def a_name_that_is_no_hub_id(w):
    find_model("bad name/x")


@case(2, "40 tokens", then="--set harvest.max_length=")
def a_conversation_that_does_not_fit_in_memory(w):
    forward = object.__new__(Forward)
    forward._outputs = {}

    def fail(batch, ids):
        raise torch.OutOfMemoryError("no memory")

    forward._run = fail
    forward.run([Piece(0, 0, 40)], np.zeros((1, 40), np.int64))


@case(2, "layer 7", then="layers there: 0, 2")
def a_layer_that_a_cache_does_not_hold(w):
    open_cache(w.cache).layer(7)


@case(2, "'tset'", then="must be 'train' or 'held_out'")
def an_unknown_split(w):
    open_cache(w.cache).rows(split="tset")


@case(2, "'asistant'", then="Known: ")
def an_unknown_class(w):
    open_cache(w.cache).rows(classes=["asistant"])


@case(2, "no BOS token", then="--set harvest.separator=none")
def a_separator_that_the_tokenizer_has_not(w):
    model = w.model()
    tokenizer = tiny.make_tokenizer("llama3")
    tokenizer.bos_token = None
    tokenizer.save_pretrained(model)
    tiny.make_job(model, w.data, order="block", separator="bos")


@case(2, "'kept.parquet'", then="kept.jsonl")
def chats_to_be_written_as_something_else(w):
    find_output("kept.parquet", str(w.data), find_source(str(w.data)))


@case(2, "chats.jsonl'", then="Expected another file")
def chats_to_be_written_over_the_data(w):
    find_output(str(w.data), str(w.data), find_source(str(w.data)))


@case(2, "'chats/kept.jsonl'", "'chats'", then="another folder")
def chats_to_be_written_among_the_data(w):
    Path("chats").mkdir()
    Path("chats/one.jsonl").write_bytes(w.data.read_bytes())
    find_output("chats/kept.jsonl", "chats", find_source("chats"))


@case(2, "'asistant'", then='--roles "user assistant"')
def a_role_that_no_turn_has(w):
    parse_roles("asistant")


@case(2, "'some'", "from 1", then="--sample 2000")
def a_sample_that_is_no_number(w):
    main(["inspect", "--model", str(w.llama), "--sample", "some"], standalone_mode=False)


@case(2, "--model", "does not go with a cache", then="Leave out one of them")
def a_cache_and_a_model_to_inspect(w):
    main(["inspect", str(w.cache), "--model", str(w.llama)], standalone_mode=False)


@case(2, "--number 99999", "60 conversations", then="Choose --number")
def a_conversation_that_is_not_in_the_plan(w):
    inspect_cache(open_cache(w.cache), Wanted(numbers=(99999,)))


@case(2, "--number 60", "chats.jsonl", then="smaller --number")
def a_row_past_the_end(w):
    inspect_source(w.job(), Wanted(numbers=(59, 60)))


@case(2, "'chats.jsonl:61'", then="--place my.jsonl:17")
def a_place_where_no_row_is(w):
    inspect_source(w.job(), Wanted(places=("chats.jsonl:60", "chats.jsonl:61")))


@case(2, "chats.jsonl", then="--dataset")
def a_data_file_in_the_place_of_a_cache(w):
    main(["inspect", str(w.data)], standalone_mode=False)


@case(2, "You are Otter", then="harvest.drop_default_system=false")
def a_default_system_prompt_that_is_no_turn(w):
    folder = w.model()
    text = ("{% if messages[0].role != 'system' %}You are Otter, a helper. {% endif %}"
            "{% for message in messages %}{{ message.role + ': ' + message.content + eos_token }}{% endfor %}")
    (folder / "chat_template.jinja").write_text(text)
    tiny.make_job(folder, w.data, drop_default_system=True)


@case(2, "chat template", "got 'end of statement block'", then="--model path/to/copy")
def a_chat_template_that_is_no_template(w):
    folder = w.model()
    (folder / "chat_template.jinja").write_text("{% for message in %}")
    tiny.make_job(folder, w.data)


@case(2, "5,000 tokens", "4,096 positions", then="--set harvest.block_length=4096")
def blocks_longer_than_the_model_has_positions(w):
    w.job(order="block", block_length=5000)
