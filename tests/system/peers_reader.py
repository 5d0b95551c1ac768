"""Run by the peers' interpreter: open SAEs with dictionary_learning and sparsify, encode and decode rows, save it.

python peers_reader.py ROWS.safetensors OUT.safetensors FOLDER...
"""

import json
import sys
from pathlib import Path

import torch
from dictionary_learning.utils import load_dictionary
from safetensors.torch import load_file, save_file
from sparsify import SparseCoder

rows, out, *folders = sys.argv[1:]
x = load_file(rows)["x"]
results, kinds = {}, {}
with torch.no_grad():
    for folder in folders:
        if Path(folder, "ae.pt").exists():
            sae, config = load_dictionary(folder, "cpu")
            latents = sae.encode(x)
            x_hat = sae.decode(latents)
            kinds[folder] = json.dumps([type(sae).__name__, config["trainer"]["lm_name"]])
        else:
            sae = SparseCoder.load_from_disk(folder)
            values, indices, _ = sae.encode(x)
            latents = torch.zeros(len(x), sae.num_latents).scatter_(1, indices, values)
            x_hat = sae.decode(values, indices)
            kinds[folder] = json.dumps([type(sae).__name__, ""])
        results[f"{folder}/latents"], results[f"{folder}/x_hat"] = latents.contiguous(), x_hat.contiguous()
save_file(results, out, kinds)
