"""Run by the peers' interpreter: open SAEs with SAELens, encode and decode rows, save what came out.

python saelens_reader.py ROWS.safetensors OUT.safetensors FOLDER...
"""

import json
import sys

import torch
from sae_lens import SAE
from safetensors.torch import load_file, save_file

rows, out, *folders = sys.argv[1:]
x = load_file(rows)["x"]
results = {}
metadata = {}
with torch.no_grad():
    for folder in folders:
        sae = SAE.load_from_disk(folder, device="cpu")
        latents = sae.encode(x)
        results[f"{folder}/latents"] = latents.contiguous()
        results[f"{folder}/x_hat"] = sae.decode(latents).contiguous()
        metadata[folder] = json.dumps({
            "architecture": sae.cfg.architecture(), "hook_name": sae.cfg.metadata.hook_name,
            "model_name": sae.cfg.metadata.model_name, "prepend_bos": sae.cfg.metadata.prepend_bos,
            "ours": sae.cfg.metadata.to_dict().get("sae_granary", {}).get("cache_id")})
save_file(results, out, metadata)
