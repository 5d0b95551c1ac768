"""The baseline of docs/quality.md: BatchTopK trained by a plain loop, on the rows and batches of our trainer.

    python -m benchmarks.plain_loop --cache caches/quality --layer 9

Constant learning rate 1e-3, no clipping, no decoder norm, no AuxK; threshold from training rows of CONTENT,
so that their mean L0 is k. Prints and saves explained variance and L0 on held-out CONTENT rows (without position 0
and outlier norms), centred on their own mean.
"""

import argparse

import numpy as np
import torch

from benchmarks.content_rows import ContentRows
from benchmarks.measuring import save
from shared.reading.cache import open_cache
from train.batches import Batches
from train.statistics import measure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", default="caches/quality")
    parser.add_argument("--layer", type=int, default=9)
    parser.add_argument("--expansion", type=int, default=8)
    parser.add_argument("--k", type=int, default=32)
    parser.add_argument("--batch-size", type=int, default=1024)
    parser.add_argument("--lr", type=float, default=1e-3)
    arguments = parser.parse_args()
    cache = open_cache(arguments.cache)
    k, layer = arguments.k, arguments.layer
    batches = Batches(cache, layer=layer, batch_size=arguments.batch_size)
    inputs = measure(cache, layer, batches.order, "mean", True)
    d_in, d_sae = cache.d_model, arguments.expansion * cache.d_model

    W_dec = torch.nn.functional.normalize(torch.randn(d_sae, d_in, generator=torch.Generator().manual_seed(0)), dim=1)
    W_enc, W_dec = W_dec.t().clone().requires_grad_(), W_dec.requires_grad_()
    b_enc, b_dec = torch.zeros(d_sae, requires_grad=True), torch.zeros(d_in, requires_grad=True)
    adam = torch.optim.Adam([W_enc, b_enc, W_dec, b_dec], lr=arguments.lr)
    last_fired = torch.zeros(d_sae, dtype=torch.int64)
    steps = 0
    for raw in batches:
        x = inputs.apply(raw)
        pre_acts = torch.relu(x @ W_enc + b_enc)
        wanted = k * len(x)
        cut = np.partition(pre_acts.detach().flatten().numpy(), -wanted)[-wanted]
        latents = pre_acts * (pre_acts >= float(cut))
        loss = (x - latents @ W_dec - b_dec).square().sum(1).mean()
        adam.zero_grad()
        loss.backward()
        adam.step()
        steps += 1
        last_fired[(latents > 0).any(0)] = steps
        if steps % 100 == 0:
            print(f"step {steps}  loss {loss.item():.1f}", flush=True)

    rows = ContentRows(cache, batches, inputs)
    with torch.no_grad():
        acts = torch.cat([torch.relu(x @ W_enc + b_enc).flatten() for x in rows.calibration])
        acts = acts[acts > 0]
        cut = torch.kthvalue(acts, len(acts) - k * sum(map(len, rows.calibration))).values

    def encode(x: torch.Tensor) -> torch.Tensor:
        latents = torch.relu(x @ W_enc + b_enc)
        return latents * (latents > cut)

    found = rows.figures(encode, lambda latents: latents @ W_dec + b_dec)
    dead = int((last_fired <= steps - steps // 10).sum())
    figures = {"layer": layer, "steps": steps, **found, "dead_latents_last_tenth": dead, "d_sae": d_sae,
               "lr": arguments.lr}
    print(figures)
    save(f"plain_loop_layer{layer}", figures)


if __name__ == "__main__":
    main()
