"""How the best learning rates move with the batch and the width, beside the rule `train.optimizer.default_lr`.

    python -m benchmarks.learning_rate [--cache caches/quality --layer 9] [--only "8x, 128 rows"]

TopK, k 32, on the same 307,200 rows, with the default schedule: at half, once and twice the rule's rate, and at the
rule's rate with other multiples of it for the decoder and for the encoder's biases. Explained variance is on held-out
rows of CONTENT, as in `benchmarks.train_step`.
"""

import argparse
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.measuring import save
from benchmarks.train_step import Ours, write_rows
from shared.reading.cache import open_cache
from train.optimizer import default_lr

NUM_ROWS = 307_200


@dataclass(frozen=True)
class Case:
    """A width and a batch."""

    expansion: int
    batch_size: int
    fields: tuple[dict[str, float], ...] = field(default=())
    """Fields of the SAE to try at the rule's rate."""

    @property
    def name(self) -> str:
        return f"{self.expansion}x, {self.batch_size} rows"


CASES = (
    Case(2, 1024),
    Case(8, 1024),
    Case(16, 1024),
    Case(8, 512, ({"decoder_lr": 1.0}, {"bias_lr": 1.0})),
    Case(8, 128, ({"decoder_lr": 1.0}, {"decoder_lr": 5.0}, {"bias_lr": 1.0}, {"bias_lr": 10.0})),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", default="caches/quality")
    parser.add_argument("--layer", type=int, default=9)
    parser.add_argument("--rows", type=int, default=NUM_ROWS)
    parser.add_argument("--only", choices=[case.name for case in CASES], action="append")
    arguments = parser.parse_args()
    cache = open_cache(arguments.cache)
    found: dict[str, dict[str, float]] = {}
    rules: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        write_rows(cache, arguments.layer, arguments.rows, Path(folder))

        def measure(case: Case, name: str, lr: float, fields: dict[str, float]) -> None:
            num_steps = arguments.rows // case.batch_size
            ours = Ours(Path(folder), {"device": "cpu", "architecture": "topk", "batch_size": case.batch_size,
                                       "d_sae": case.expansion * cache.d_model, "k": 32, "lr": lr,
                                       "num_steps": num_steps, "sae": fields})
            for _ in range(num_steps):
                ours.step()
            found.setdefault(case.name, {})[name] = explained = ours.evaluate()["explained_variance"]
            print(f"  {name:24s} {explained:.4f}", flush=True)

        for case in CASES:
            if arguments.only and case.name not in arguments.only:
                continue
            rules[case.name] = rule = default_lr(case.expansion * cache.d_model, arguments.rows, case.batch_size)
            print(f"{case.name}: the rule says {rule:.2g}", flush=True)
            for multiple in (0.5, 1.0, 2.0):
                measure(case, f"{multiple:g} of the rule", multiple * rule, {})
            for fields in case.fields:
                measure(case, ", ".join(f"{key} {value:g}" for key, value in fields.items()), rule, fields)
    if arguments.only:
        return  # the file has all cases, of one run
    save("learning_rate", {"layer": arguments.layer, "rows": arguments.rows, "rules": rules,
                           "explained_variance": found})


if __name__ == "__main__":
    main()
