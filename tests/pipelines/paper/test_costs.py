"""The sizes of the models are the published ones, and costs are the stated formulas."""

import re
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

from pipelines.__main__ import main
from pipelines.paper.costs import Gpu, cost_of
from pipelines.paper.models import PAPER_MODELS, SIZES, expansions_of
from pipelines.paper.sae_set import paper_caches
from shared.registry import MODELS

PUBLISHED = {
    "smollm2-135m-instruct": 134_515_008, "llama3.1-8b-instruct": 8_030_261_248, "llama3.2-3b-instruct": 3_212_749_824,
    "llama3.2-1b-instruct": 1_235_814_400, "qwen2.5-7b-instruct": 7_615_616_512, "qwen2.5-3b-instruct": 3_085_938_688,
    "qwen2.5-1.5b-instruct": 1_543_714_304, "qwen2.5-0.5b-instruct": 494_032_768,
}
"""Parameters that each model's page on the hub shows."""


@pytest.mark.parametrize("alias", SIZES)
def test_a_models_sizes_give_its_published_number_of_parameters(alias):
    assert SIZES[alias].num_parameters == PUBLISHED[alias]


@pytest.mark.parametrize("alias", ["llama3.2-1b-instruct", "qwen2.5-0.5b-instruct"])
def test_parameters_and_weights_of_a_layer_are_those_of_transformers(alias):
    sizes = SIZES[alias]
    config, model = (Qwen2Config, Qwen2ForCausalLM) if sizes.qkv_bias else (LlamaConfig, LlamaForCausalLM)
    with torch.device("meta"):
        network = model(config(
            vocab_size=sizes.vocabulary, hidden_size=sizes.d_model, intermediate_size=sizes.d_mlp,
            num_hidden_layers=sizes.num_layers, num_attention_heads=sizes.num_heads,
            num_key_value_heads=sizes.num_kv_heads, head_dim=sizes.d_head, tie_word_embeddings=sizes.tied))
    assert sum(parameter.numel() for parameter in network.parameters()) == sizes.num_parameters
    assert sizes.layer_weights == sum(parameter.numel() for parameter in network.model.layers[0].parameters()
                                      if parameter.ndim == 2)


def test_every_model_of_the_registry_has_sizes_and_the_layers_that_it_lists():
    assert SIZES.keys() == MODELS.keys()
    assert len(PAPER_MODELS) == 7
    assert all(max(MODELS[alias].layers) < sizes.num_layers for alias, sizes in SIZES.items())
    assert [alias for alias in PAPER_MODELS if expansions_of(alias) == (8.0,)] == ["llama3.1-8b-instruct",
                                                                                   "qwen2.5-7b-instruct"]


def test_a_cache_and_its_saes_cost_what_the_formulas_say():
    [cache] = [one for one in paper_caches(["llama3.2-3b-instruct"]) if one.method == "FAST"]
    cost = cost_of(cache)
    tokens = 40_960_000  # 625 whole shards
    assert cost.num_tokens == tokens
    block, index, norms = 256 * 3072 + 4, 16 * 512 + 4, 4 * 65_536 + 4
    assert cost.cache_bytes == 3 * 625 * (512 * block + index + norms)
    assert cost.bytes_read == 3 * 320_000 * block
    weights = 3072 * (2 * 3072 + 2 * 1024 + 3 * 8192)
    assert cost.harvest_flops == tokens * 21 * (2 * weights + 2 * 2048 * 3072)  # layers 0 to 20
    narrow, wide = 3072 * 8 * 3072, 3072 * 16 * 3072
    assert cost.training_flops == tokens * 10 * 3 * 2 * (narrow + wide)
    assert sum(sae.moved for sae in cost.of_saes) == 320_000 * 56 * 3 * 2 * (narrow + wide)
    gpu = Gpu(tflops=500, tflops_float32=50, terabytes=2, utilisation=0.5)
    assert gpu.harvest_seconds(250e12) == pytest.approx(1)
    assert gpu.training_seconds(25e12, 1e12) == pytest.approx(2)
    assert cost.training_seconds(gpu) == pytest.approx(cost.training_flops / 25e12 + 320_000 * 56 * 6
                                                       * (narrow + wide) / 1e12)


def test_the_hours_and_bytes_of_the_page_are_those_of_the_formulas():
    costs = [cost_of(cache) for cache in paper_caches()]
    page = Path(__file__).parents[3].joinpath("docs", "paper.md").read_text(encoding="utf-8")
    harvest = sum(Gpu().harvest_seconds(cost.harvest_flops) for cost in costs) / 3600
    train = sum(cost.training_seconds(Gpu()) for cost in costs) / 3600
    said = f"{harvest:.1f} hours to harvest and {train:.0f} to train, on {sum(c.cache_bytes for c in costs) / 1e12:.1f}"
    assert said in " ".join(page.split())
    smallest, largest = (pick(cost.cache_bytes for cost in costs) / 1e12 for pick in (min, max))
    assert f"{smallest:.1f} to {largest:.1f} TB a cache" in page


def test_the_dry_run_adds_up_and_calls_hours_an_estimate():
    shown = CliRunner().invoke(main, ["paper", "--saes"])
    assert shown.exit_code == 0
    assert len(re.findall(r"(standard|jumprelu)-\d+-", shown.output)) == 240
    [total] = [line for line in shown.output.splitlines() if line.startswith("│ all")]
    disk = sum(cost_of(cache).cache_bytes for cache in paper_caches())
    assert [cell.strip() for cell in total.split("│")][4:7] == ["860.2", f"{disk / 1e12:.2f}", "240"]
    assert "an estimate, and no measurement" in shown.output
    twice = CliRunner().invoke(main, ["paper", "--utilisation", "0.8"]).output
    hours = [float(re.search(r"([\d.]+) │$", line)[1]) for text in (shown.output, twice)
             for line in text.splitlines() if line.startswith("│ all")]
    assert hours[0] == pytest.approx(2 * hours[1], rel=1e-2)  # printed with one decimal
