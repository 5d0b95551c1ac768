"""CE, KL and CE recovered are those of SAELens's own evaluation, of the same SAE in the same model on the same tokens.

SAE_LENS_PYTHON names the interpreter of an environment that has sae-lens; `make test-system` makes one.
"""

import os
import subprocess
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from harvest.device import find_device
from pipelines.loss.run import Wanted, measure_loss, open_model
from pipelines.loss.streams import read_stream
from shared.reading.cache import open_cache
from train.config import plan_saes, read_train_config, sae_tables
from train.evaluation.evaluate import sae_subject
from train.run import train_saes

pytestmark = pytest.mark.system

READER = Path(__file__).with_name("saelens_loss_reader.py")
LAYER = 2
RECIPE = {"train": {"batch_size": 64, "num_tokens": 64 * 40}, "sae": [{"d_sae": 64, "k": 4}]}

NAMES = {"ce": "ce_loss_without_sae", "ce_spliced": "ce_loss_with_sae", "kl": "kl_div_with_sae",
         "ce_zero": "ce_loss_with_ablation", "kl_zero": "kl_div_with_ablation"}
"""Of the same figure here and there."""


@pytest.fixture(scope="module")
def both(tmp_path_factory, llama, cache_folder):
    """Our eval_loss.json and sums by conversation, and SAELens's sums by conversation."""
    interpreter = os.environ.get("SAE_LENS_PYTHON")
    if not interpreter:
        pytest.skip("SAE_LENS_PYTHON is not set: no interpreter with sae-lens")
    folder = tmp_path_factory.mktemp("loss")
    cache = open_cache(cache_folder)
    config = read_train_config(RECIPE)
    saes = plan_saes(sae_tables(RECIPE, None), config, LAYER, cache.d_model)
    [sae] = train_saes(cache, LAYER, config, saes, runs=folder, device="cpu", say=lambda line: None)
    model = open_model(cache, LAYER, find_device("cpu"), str(llama))
    [content] = measure_loss(cache, LAYER, [sae_subject(cache, LAYER, sae, "cpu")], model, Wanted())
    stream = read_stream(cache, LAYER, "conversations", Wanted().num_tokens, model.source.tokenizer)
    save_file({name: torch.from_numpy(getattr(stream, name)) for name in ("token_id", "offset")},
              folder / "ids.safetensors")
    subprocess.run([interpreter, str(READER), str(folder / "ids.safetensors"), str(folder / "out.safetensors"),
                    str(llama), str(sae), str(LAYER)], check=True, timeout=280,
                   env={**os.environ, "HF_HUB_OFFLINE": "1"})
    return content, load_file(sae / "eval_loss_conversations.safetensors"), load_file(folder / "out.safetensors")


@pytest.mark.parametrize("name", NAMES)
def test_every_conversation_costs_the_same(both, name):
    """Every position replaced, as SAELens does. float32 in other batches: 1e-4 of a token's nats."""
    _, ours, theirs = both
    number = ours["conversations.all.n"]
    assert len(number) > 1
    assert torch.allclose(ours[f"conversations.all.{name}"] / number, theirs[NAMES[name]] / number, rtol=0, atol=1e-4)


def test_ce_recovered_is_their_score(both):
    content, _, theirs = both
    sae, clean, ablated = (theirs[NAMES[name]].sum() for name in ("ce_spliced", "ce", "ce_zero"))
    figure = content["streams"]["conversations"]["all"]["ce_recovered_zero"]
    if ablated > clean:
        assert figure == pytest.approx(float((ablated - sae) / (ablated - clean)), rel=1e-3)
    else:  # a random model may predict better without a layer: their score is then of no meaning, and ours not defined
        assert figure is None
