"""Run by the peers' interpreter: sae-probes on one of its own data sets, with activations that lie in its cache.

python saeprobes_reader.py labels DATASET OUT.npy
python saeprobes_reader.py probe DATASET MODEL HOOK CACHE OUT.npz SAE_FOLDER     prints what it writes as its results
"""

import json
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from sae_lens import SAE
from sae_probes import run_sae_evals
from sae_probes.generate_sae_activations import generate_sae_activations_normal
from sae_probes.utils_data import get_xy_traintest, get_yvals

if sys.argv[1] == "labels":
    dataset, out = sys.argv[2:]
    np.save(out, get_yvals(dataset))
else:
    dataset, model, hook, cache, out, folder = sys.argv[2:]
    sae = SAE.load_from_disk(folder, device="cpu")
    latents = generate_sae_activations_normal(sae, dataset, hook, model, "cpu", cache)
    rows = get_xy_traintest(len(latents.X_train), dataset, hook, model_name=model, model_cache_path=cache)[0]
    np.savez(out, rows=rows.numpy(), latents=latents.X_train.numpy())
    with TemporaryDirectory() as results:
        run_sae_evals(sae, model_name=model, hook_name=hook, reg_type="l2", setting="normal", ks=[1, 4],
                      results_path=results, model_cache_path=cache, datasets=[dataset], device="cpu")
        (written,) = Path(results).rglob("*.json")
        print(json.dumps({"results": json.loads(written.read_text())}))
