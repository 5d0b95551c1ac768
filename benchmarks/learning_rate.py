"""How the best learning rate moves with the batch: what the rule `train.optimizer.default_lr` says of small batches.

    python -m benchmarks.learning_rate [--cache caches/quality --layer 9]

TopK, k 32, 8x, on the same 307,200 rows in batches of 128 and of 512, each with several rates. Explained variance is on
held-out rows of CONTENT, as in `benchmarks.train_step`.
"""

import argparse
import tempfile
from pathlib import Path

from benchmarks.measuring import save
from benchmarks.train_step import Ours, write_rows
from shared.reading.cache import open_cache
from train.optimizer import default_lr

NUM_ROWS = 307_200
CASES = {128: (8e-4, 1.6e-3, 3e-3, 4.4e-3), 512: (1.5e-3, 3e-3, 4.4e-3)}
"""Rates to try, by rows of a batch."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", default="caches/quality")
    parser.add_argument("--layer", type=int, default=9)
    parser.add_argument("--rows", type=int, default=NUM_ROWS)
    arguments = parser.parse_args()
    cache = open_cache(arguments.cache)
    d_sae = 8 * cache.d_model
    found: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        write_rows(cache, arguments.layer, arguments.rows, Path(folder))
        for batch_size, rates in CASES.items():
            rule = default_lr(d_sae, arguments.rows, batch_size)
            print(f"{batch_size} rows: the rule says {rule:.2g}", flush=True)
            for lr in rates:
                num_steps = arguments.rows // batch_size
                ours = Ours(Path(folder), {"device": "cpu", "architecture": "topk", "batch_size": batch_size,
                                           "d_sae": d_sae, "k": 32, "lr": lr, "num_steps": num_steps})
                for _ in range(num_steps):
                    ours.step()
                explained = ours.evaluate()["explained_variance"]
                found.setdefault(str(batch_size), {})[f"{lr:g}"] = explained
                print(f"  {lr:.1e}  {explained:.4f}", flush=True)
    save("learning_rate", {"layer": arguments.layer, "rows": arguments.rows, "d_sae": d_sae,
                           "explained_variance": found})


if __name__ == "__main__":
    main()
