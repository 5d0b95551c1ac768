"""Run by the peers' interpreter: SAEBench's own core figures of an SAE, over given rows in the place of a model's.

python saebench_reader.py ROWS.safetensors OUT.json FOLDER BATCHES

The rows are dealt in order to as many equal batches. Ends with exit code 3 where sae_bench cannot be imported.
"""

import json
import sys

import torch
from safetensors.torch import load_file

try:
    from sae_bench.evals.core.main import get_sparsity_and_variance_metrics
    from sae_bench.sae_bench_utils.general_utils import load_and_format_sae
except ImportError as error:
    print(error, file=sys.stderr)
    sys.exit(3)
from sae_lens import SAE

rows, out, folder, num_batches = *sys.argv[1:4], int(sys.argv[4])
x = load_file(rows)["x"]
_, sae, _ = load_and_format_sae("ours", SAE.load_from_disk(folder, device="cpu"), "cpu")


class Rows:
    """A model and a store of tokens at once: a token is the number of a row, and its activation is the row."""

    def __init__(self):
        self.batches = iter(torch.arange(len(x)).reshape(num_batches, 1, -1))

    def get_batch_tokens(self, batch_size):
        return next(self.batches)

    def run_with_cache(self, tokens, **options):
        return None, {name: x[tokens] for name in options["names_filter"]}


both = Rows()
with torch.no_grad():
    figures, _ = get_sparsity_and_variance_metrics(
        sae, both, both, n_batches=num_batches, compute_l2_norms=True, compute_sparsity_metrics=True,
        compute_variance_metrics=True, compute_featurewise_density_statistics=False, eval_batch_size_prompts=1,
        model_kwargs={})
with open(out, "w") as file:
    json.dump(figures, file)
