"""The held-out curve: L0 and explained variance on a fixed sample of held-out rows, while an SAE is trained.

The SAE is taken as it is then, before thresholds are set at the end (`train.finish`): BatchTopK with the average of
its recent batches' thresholds, not with the batch's. The sample depends on the cache, the units and the token policy
alone; nothing is drawn from the training's random numbers and nothing is kept, so that weights are the same with and
without it, and a resumed run goes on.

Cost: an encoder and a decoder product over ``held_out_rows`` rows, by `held_out_interval`. With
2,048 rows one measurement took as long as 2.7 steps of TopK, 3.0 of BatchTopK, 0.8 of Standard and 0.6 of JumpReLU
(processor seconds of one thread): of the 390 steps of batch 1,024 between two of them, under 1 %. The rows
(2 * d_in bytes each) stay on the device.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from shared.reading.cache import Cache
from train.architectures import SAE
from train.config import TrainConfig
from train.policy import TokenPolicy, keeps
from train.statistics import InputStatistics

_TOKENS_BETWEEN = 400_000
"""Training tokens between two measurements at most, where held_out_steps is not given."""

_SEED = 0x8E1D
_CHUNK_ROWS = 1024


def held_out_sample(cache: Cache, layer: int, policy: TokenPolicy, units: Sequence[int], median: float,
                    max_rows: int) -> Tensor | None:
    """A fixed sample of the held-out rows that a policy keeps: bf16 ``[n, d_in]``, n at most ``max_rows``; or None."""
    rows = cache.rows(layer=layer, split="held_out", units=units)
    if max_rows and len(rows):
        rows = rows[keeps(cache, layer, policy, rows, median)]
    if not max_rows or not len(rows):
        return None
    chosen = np.random.Generator(np.random.Philox(_SEED)).permutation(len(rows))[:max_rows]
    return torch.from_numpy(cache.layer(layer)[rows[np.sort(chosen)]].view(np.uint16)).view(torch.bfloat16)


def held_out_interval(train: TrainConfig, num_steps: int) -> int:
    """Steps between two measurements, whole log_steps: by default 400,000 tokens' worth, or a quarter of a shorter
    run."""
    steps = train.held_out_steps or min(_TOKENS_BETWEEN // train.batch_size, num_steps // 4)
    return max(1, -(-steps // train.log_steps)) * train.log_steps


@torch.no_grad()
def held_out_figures(sae: SAE, sample: Tensor, statistics: InputStatistics) -> dict[str, float]:
    """l0 and explained variance (centred on the sample's own mean) of a sample of raw rows ``[n, d_in]``."""
    sums = torch.zeros(3, dtype=torch.float64, device=sample.device)
    mean = statistics.apply(sample).double().mean(0)
    for start in range(0, len(sample), _CHUNK_ROWS):
        x = statistics.apply(sample[start : start + _CHUNK_ROWS])
        latents = sae.encode(x)
        active = sae.shards.sum((latents > 0).sum())
        sums += torch.stack([active.double(), (x - sae.decode(latents)).double().square().sum(),
                             (x.double() - mean).square().sum()])
    num_active, error, variance = sums.tolist()
    return {"held_out_l0": num_active / len(sample),
            "held_out_explained_variance": 1 - error / max(variance, 1e-30)}
