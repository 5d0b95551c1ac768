"""Run by the peers' interpreter: SAEs of random weights, saved by their own packages, with what these make of rows.

python peers_writer.py ROWS.safetensors OUT.safetensors FOLDER

Each SAE gets a folder in FOLDER. Weights are scaled so that a few latents of a row are active.
"""

import json
import sys
from pathlib import Path

import torch
from dictionary_learning.trainers.batch_top_k import BatchTopKTrainer
from dictionary_learning.trainers.gdm import GatedSAETrainer
from dictionary_learning.trainers.jumprelu import JumpReluTrainer
from dictionary_learning.trainers.matryoshka_batch_top_k import MatryoshkaBatchTopKTrainer
from dictionary_learning.trainers.standard import StandardTrainer, StandardTrainerAprilUpdate
from dictionary_learning.trainers.top_k import TopKTrainer
from dictionary_learning.utils import load_dictionary
from sae_lens import SAE
from sae_lens.registry import get_sae_class
from safetensors.torch import load_file, save_file
from sparsify import SparseCoder, SparseCoderConfig

D_SAE, K = 40, 4
rows, out, target = sys.argv[1], sys.argv[2], Path(sys.argv[3])
x = load_file(rows)["x"]
d_in = x.shape[1]
results = {}
torch.manual_seed(0)


def randomise(sae):
    """Random weights; biases of decoders near the rows' mean; thresholds that a few pre-activations pass."""
    for name, value in [*sae.named_parameters(), *sae.named_buffers()]:
        if name in {"k", "group_sizes"}:
            continue
        noise = torch.randn(value.shape)
        if name in {"b_dec", "bias", "decoder_bias", "decoder.bias"}:
            value.data = x.mean(0) + 0.3 * noise
        elif name == "threshold":
            value.data = noise.abs() * 0.3 + 1.5
        else:
            value.data = 0.3 * noise


def keep(name, latents, x_hat):
    results[f"{name}/latents"], results[f"{name}/x_hat"] = latents.contiguous(), x_hat.contiguous()


def save_dictionaries():
    """As `dictionary_learning.training.trainSAE` saves: the state dict, and the trainer's config."""
    sizes = {"steps": 10_000, "activation_dim": d_in, "dict_size": D_SAE, "layer": 3, "lm_name": "org/fake",
             "submodule_name": "resid_post_layer_3", "device": "cpu"}
    trainers = {
        "AutoEncoder": StandardTrainer(**sizes), "AprilUpdate": StandardTrainerAprilUpdate(**sizes),
        "Gated": GatedSAETrainer(**sizes), "TopK": TopKTrainer(**sizes, k=K), "JumpReLU": JumpReluTrainer(**sizes),
        "BatchTopK": BatchTopKTrainer(**sizes, k=K),
        "Matryoshka": MatryoshkaBatchTopKTrainer(**sizes, k=K, group_fractions=[0.25, 0.75])}
    for name, trainer in trainers.items():
        randomise(trainer.ae)
        folder = target / f"dictionary_learning-{name}"
        folder.mkdir()
        torch.save({key: value.cpu() for key, value in trainer.ae.state_dict().items()}, folder / "ae.pt")
        (folder / "config.json").write_text(json.dumps({"trainer": trainer.config, "buffer": {"ctx_len": 128}}))
        sae, _ = load_dictionary(str(folder), "cpu")
        latents = sae.encode(x)
        keep(folder.name, latents, sae.decode(latents))


def save_saelens():
    for name, architecture, options in (
            ("standard", "standard", {}), ("standard_raw", "standard", {"apply_b_dec_to_input": False}),
            ("gated", "gated", {}), ("gated_raw", "gated", {"apply_b_dec_to_input": False}),
            ("jumprelu", "jumprelu", {}), ("jumprelu_raw", "jumprelu", {"apply_b_dec_to_input": False}),
            ("topk", "topk", {"k": K}), ("topk_by_norm", "topk", {"k": K, "rescale_acts_by_decoder_norm": True}),
            ("bfloat16", "standard", {"dtype": "bfloat16"})):
        sae_class, config_class = get_sae_class(architecture)
        sae = sae_class(config_class(d_in=d_in, d_sae=D_SAE, device="cpu", **{"dtype": "float32", **options}))
        randomise(sae)
        if name == "bfloat16":
            sae = sae.to(torch.bfloat16)
        sae.cfg.metadata.hook_name, sae.cfg.metadata.model_name = "blocks.3.hook_resid_post", "fake"
        folder = target / f"saelens-{name}"
        sae.save_model(folder)
        loaded = SAE.load_from_disk(folder, device="cpu", dtype="float32")
        latents = loaded.encode(x)
        keep(folder.name, latents, loaded.decode(latents))


def save_sparsify():
    sae = SparseCoder(d_in, SparseCoderConfig(num_latents=D_SAE, k=K))
    randomise(sae)
    folder = target / "sparsify" / "layers.3"
    sae.save_to_disk(folder)
    values, indices, _ = sae.encode(x)
    keep("sparsify/layers.3", torch.zeros(len(x), D_SAE).scatter_(1, indices, values), sae.decode(values, indices))


with torch.no_grad():
    save_dictionaries()
    save_saelens()
    save_sparsify()
save_file(results, out)
