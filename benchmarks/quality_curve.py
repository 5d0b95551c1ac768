"""The curve in docs/quality.md: explained variance on training batches against tokens seen.

    python -m benchmarks.quality_curve [--runs runs/quality] [--layers 9 15]
"""

import argparse
import json
from pathlib import Path

import matplotlib.pyplot as plt


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs/quality"))
    parser.add_argument("--layers", type=int, nargs="+", default=[9, 15])
    arguments = parser.parse_args()
    figure, axes = plt.subplots(figsize=(6, 3.2))
    for layer, style in zip(arguments.layers, ("-", "--", ":", "-."), strict=False):
        metrics = next(arguments.runs.glob(f"layer{layer}/batchtopk-4608-k32-s0-*/metrics.jsonl"))
        lines = [json.loads(line) for line in metrics.read_text().splitlines()]
        axes.plot([line["tokens"] / 1e6 for line in lines], [line["explained_variance"] for line in lines], style,
                  color="black", label=f"layer {layer}")
    axes.set(ylim=(0.6, 0.95), xlabel="million tokens seen", ylabel="explained variance\n(training batches)")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    figure.tight_layout()
    figure.savefig("docs/quality.png", dpi=110)
    print("written docs/quality.png")


if __name__ == "__main__":
    main()
