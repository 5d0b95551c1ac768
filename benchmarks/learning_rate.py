"""How the best learning rates move with the batch: what the rules `train.optimizer.default_lr` and
`fast_decoder_lr` say of small batches.

    python -m benchmarks.learning_rate [--cache caches/quality --layer 9]

TopK, k 32, 8x, on the same 307,200 rows in batches of 128 and of 512, each with several rates; and at the rule's rate
with other multiples of it for the decoder and for the encoder's biases. Explained variance is on held-out rows of
CONTENT, as in `benchmarks.train_step`.
"""

import argparse
import tempfile
from pathlib import Path

from benchmarks.measuring import save
from benchmarks.train_step import Ours, write_rows
from shared.reading.cache import open_cache
from train.optimizer import default_lr

NUM_ROWS = 307_200
CASES = {128: (8e-4, 3e-3, 4.4e-3), 512: (1.5e-3, 4.4e-3)}
"""Rates to try beside the rule's, by rows of a batch."""
MULTIPLES: dict[int, tuple[dict[str, float], ...]] = {
    128: ({}, {"decoder_lr": 0.5}, {"decoder_lr": 3.0}, {"bias_lr": 1.0}, {"bias_lr": 10.0}),
    512: ({}, {"decoder_lr": 3.0}, {"bias_lr": 1.0}),
}
"""Fields of the SAE to try at the rule's rate, by rows of a batch."""


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

        def measure(batch_size: int, lr: float, fields: dict[str, float]) -> None:
            num_steps = arguments.rows // batch_size
            ours = Ours(Path(folder), {"device": "cpu", "architecture": "topk", "batch_size": batch_size,
                                       "d_sae": d_sae, "k": 32, "lr": lr, "num_steps": num_steps, "sae": fields})
            for _ in range(num_steps):
                ours.step()
            explained = ours.evaluate()["explained_variance"]
            name = ", ".join([f"{lr:.2g}", *(f"{key} {value:g}" for key, value in fields.items())])
            found.setdefault(str(batch_size), {})[name] = explained
            print(f"  {name:24s} {explained:.4f}", flush=True)

        for batch_size in CASES:
            rule = default_lr(d_sae, arguments.rows, batch_size)
            print(f"{batch_size} rows: the rule says {rule:.2g}", flush=True)
            for lr in CASES[batch_size]:
                measure(batch_size, lr, {})
            for fields in MULTIPLES[batch_size]:
                measure(batch_size, rule, fields)
    save("learning_rate", {"layer": arguments.layer, "rows": arguments.rows, "d_sae": d_sae,
                           "explained_variance": found})


if __name__ == "__main__":
    main()
