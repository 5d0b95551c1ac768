"""Run by the peers' interpreter: SAELens's own CE and KL of an SAE in a model, one sequence at a time.

python saelens_loss_reader.py IDS.safetensors OUT.safetensors MODEL SAE LAYER

What the layer gives is rounded to bfloat16, as a cache holds it.
"""

import sys

import torch
from sae_lens import SAE
from sae_lens.evals import get_recons_loss
from sae_lens.load_model import HookedProxyLM
from sae_lens.training.activation_scaler import ActivationScaler
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

ids, out, model, folder, layer = sys.argv[1:]
network = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
name = f"model.layers.{layer}"
network.get_submodule(name).register_forward_hook(lambda _, __, output: output.bfloat16().float())
hooked = HookedProxyLM(network, tokenizer=None, hook_names=[name])  # everything is tokens already
sae = SAE.load_from_disk(folder, device="cpu")

loaded, found = load_file(ids), {}
with torch.no_grad():
    for start, stop in zip(loaded["offset"][:-1], loaded["offset"][1:], strict=True):
        scores = get_recons_loss(sae, hooked, ActivationScaler(), loaded["token_id"][None, start:stop], compute_kl=True,
                                 compute_ce_loss=True, hook_name=name)
        for key, values in scores.items():
            # CE has no value for the last token, whose next one is not there; KL has.
            found.setdefault(key, []).append(values[0, : stop - start - 1].double().sum())
save_file({key: torch.stack(values) for key, values in found.items()}, out)
