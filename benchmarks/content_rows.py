"""Rows of CONTENT on which docs/quality.md compares: training rows that set a threshold, held-out rows to measure."""

from collections.abc import Callable

import torch
from torch import Tensor

from shared.reading.cache import Cache
from train.batches import Batches
from train.policy import TokenPolicy, keeps, median_norm, only_types
from train.statistics import InputStatistics

CALIBRATION_BATCHES = 64


class ContentRows:
    """Text of messages, without position 0 and outlier norms, as an SAE's scaled input."""

    def __init__(self, cache: Cache, batches: Batches, inputs: InputStatistics) -> None:
        """``batches`` are those of the training, ``inputs`` what scales them."""
        layer, size = batches.layer, batches.batch_size
        mask = only_types(cache, batches.order.mask, ("content",))
        self.calibration = [inputs.apply(raw) for raw in Batches(cache, layer=layer, batch_size=size, mask=mask,
                                                                 num_steps=CALIBRATION_BATCHES)]
        rows = cache.rows(layer=layer, types=["content"], split="held_out")
        rows = rows[keeps(cache, layer, TokenPolicy(), rows, median_norm(cache, layer, cache.committed_units(layer)))]
        self.held_out = inputs.apply(torch.from_numpy(cache.layer(layer)[rows].view("uint16")).view(torch.bfloat16))

    @torch.no_grad()
    def figures(self, encode: Callable[[Tensor], Tensor], decode: Callable[[Tensor], Tensor]) -> dict[str, float]:
        """Explained variance, centred on the rows' own mean, and L0 of the held-out rows."""
        error = active = 0.0
        for x in self.held_out.split(4096):
            latents = encode(x)
            error += float((x - decode(latents)).double().square().sum())
            active += float((latents > 0).sum())
        variance = float((self.held_out - self.held_out.mean(0)).double().square().sum())
        return {"rows": len(self.held_out), "explained_variance": 1 - error / variance,
                "l0": active / len(self.held_out)}
