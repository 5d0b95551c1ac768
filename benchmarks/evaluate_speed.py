"""How long it takes to evaluate an SAE on held-out rows, against the products of its encoder and decoder alone.

    python -m benchmarks.evaluate_speed                       # 100,000 rows of noise, d_in 576, d_sae 4,608
    python -m benchmarks.evaluate_speed --rows 10000 --rounds 1

Rows lie in memory, in conversations of 400 tokens, so that what is timed is the evaluation: two passes, sums,
histograms, 1,000 resamples, three files. The floor is x W_enc and latents W_dec over the same chunks.
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np
import torch

from benchmarks.measuring import interleave, median_ratio, save
from tests.train.fake_cache import FakeCache
from train.evaluation.evaluate import Subject, encode_and_decode, evaluate
from train.export import ExportedSAE
from train.export.exported import MadeFor
from train.policy import TokenPolicy

_CHUNK = 2048


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--d-in", type=int, default=576)
    parser.add_argument("--d-sae", type=int, default=4608)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    rows, d_in, d_sae = arguments.rows, arguments.d_in, arguments.d_sae

    x = np.random.default_rng(0).standard_normal((rows + 400, d_in), dtype=np.float32)
    cache = FakeCache(x, num_train_rows=400, sequence=400, rows_per_unit=65_536)
    W_dec = torch.nn.functional.normalize(torch.randn(d_sae, d_in, generator=torch.Generator().manual_seed(0)), dim=1)
    sae = ExportedSAE("jumprelu", W_dec.t().contiguous(), torch.zeros(d_sae), W_dec, torch.zeros(d_in),
                      torch.full((d_sae,), 2.45), None, None, {}, "saelens",  # noise passes it 7 times in 1,000: L0 32
                      MadeFor(None, None, None))

    with tempfile.TemporaryDirectory() as folder:
        subject = Subject(Path(folder), "noise", "jumprelu", d_sae, encode_and_decode(sae), TokenPolicy(), d_in ** 0.5)
        found = []
        seconds = interleave({
            "evaluation": lambda: found.append(evaluate(cache, 3, [subject])[0]),
            "the SAE's two products": lambda: products(sae, torch.from_numpy(x[400:])),
        }, arguments.rounds)
    ratio = median_ratio(seconds["evaluation"], seconds["the SAE's two products"])
    l0 = found[0]["subsets"]["all"]["l0"]
    print(f"{rows:,} rows, L0 {l0:.1f}: {min(seconds['evaluation']):.1f} s, {ratio:.2f} times the two products")
    save("evaluate_speed", {"rows": rows, "d_in": d_in, "d_sae": d_sae, "l0": l0, "seconds": seconds,
                            "times_two_products": ratio})


@torch.no_grad()
def products(sae: ExportedSAE, x: torch.Tensor) -> None:
    """What no evaluation can do without."""
    for part in x.split(_CHUNK):
        torch.addmm(sae.b_dec, torch.addmm(sae.b_enc, part, sae.W_enc), sae.W_dec)


if __name__ == "__main__":
    main()
