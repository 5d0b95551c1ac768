"""Scale and centre of the training rows: what an SAE's input is brought to before it is trained on.

    x_scaled = (x - centre) * scale,   scale = sqrt(d_in / mean |x - centre|^2)

so a scaled row has a mean square of 1 per dimension, and learning rates, coefficients and bandwidths mean the
same at every layer of every model. Both come from a fixed, bounded sample of the rows that the token policy
keeps: attention sinks (norm 25,011 against a median of 169 in one layer) must not set the scale. They are
folded into the weights when an SAE is saved (`train.export`).
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from shared.reading.cache import Cache
from train.order import Order

SAMPLE_BLOCKS = 512
"""Blocks in the sample: at most 65,536 rows."""

MEDIAN_ROWS = 8192
"""Rows that the geometric median is taken over."""

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class InputStatistics:
    """How raw activations become an SAE's input."""

    centre: Tensor
    """float32 [d_in]"""
    scale: float

    def apply(self, x: Tensor) -> Tensor:
        """Scaled input, float32, of raw activations ``[batch, d_in]``."""
        return (x.float() - self.centre) * self.scale


def measure(cache: Cache, layer: int, order: Order, centre: Literal["mean", "geometric_median", "none"],
            scale: bool, *, subtracted: bool = True) -> InputStatistics:
    """Scale and centre from a fixed sample of the blocks of ``order``, in float64.

    The scale brings rows to a mean square of 1, without the centre where it is ``subtracted`` from them.
    """
    rows = cache.layer(layer)
    blocks = order.sample_blocks(SAMPLE_BLOCKS)
    rows.prefetch(blocks.tolist())

    def kept(block: int) -> Floats:
        x: Floats = rows.block(block)[order.kept_in_block(block)].astype(np.float64)
        return x

    if centre == "mean":
        middle = sum((kept(int(block)).sum(axis=0) for block in blocks), np.zeros(cache.d_model))
        middle = middle / sum(len(order.kept_in_block(int(block))) for block in blocks)
    elif centre == "geometric_median":
        # Whole blocks in their fixed random order would be one conversation each: take every nth row.
        sample = np.concatenate([kept(int(block)).astype(np.float32) for block in blocks])
        middle = geometric_median(sample[:: max(1, -(-len(sample) // MEDIAN_ROWS))].astype(np.float64))
    else:
        middle = np.zeros(cache.d_model)
    centre32 = middle.astype(np.float32)
    factor = 1.0
    if scale:
        squares, count = 0.0, 0
        for block in blocks:
            x = kept(int(block))
            if subtracted:
                x -= centre32
            squares += float(np.einsum("ij,ij->", x, x))
            count += len(x)
        factor = float(np.sqrt(cache.d_model * count / max(squares, 1e-30)))
    return InputStatistics(torch.from_numpy(centre32), factor)


def geometric_median(x: Floats, max_iterations: int = 100, ftol: float = 1e-20, eps: float = 1e-6) -> Floats:
    """The point with the least mean distance to the rows of ``x`` [n, d], by Weiszfeld's iteration.

    FAST (arXiv 2506.07691) eq. 9-12, with SAELens's constants: weights 1 / max(distance, eps), from the mean
    on, until the objective changes by at most ftol of itself or ``max_iterations`` are done.
    """
    middle: Floats = x.mean(axis=0)
    squares = np.einsum("ij,ij->i", x, x)

    def distances(point: Floats) -> Floats:
        apart: Floats = np.sqrt(np.maximum(squares - 2 * (x @ point) + point @ point, 0.0))
        return apart

    distance = distances(middle)
    objective = distance.mean()
    for _ in range(max_iterations):
        weights = 1.0 / np.maximum(distance, eps)
        middle = weights @ x / weights.sum()
        distance = distances(middle)
        previous, objective = objective, distance.mean()
        if abs(previous - objective) <= ftol * objective:
            break
    return middle
