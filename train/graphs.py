"""A training step recorded once and replayed: on CUDA, where launching a small step's kernels takes longer than running
them.

A CUDA graph holds a step's kernels and the addresses of what they read and write. So a step that is recorded takes
its batch from a place that stays, and what changes from step to step (its number, the learning rate) from scalars
on the device. What the host decides (`SAE.prepare`) is the step's kind, and each kind has a graph of its own. All
graphs have their intermediate tensors in one pool of memory, and take batches of the same shape from the same place:
one step is over before another begins.
"""

from collections import Counter
from collections.abc import Callable
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor

_PLAIN_STEPS = 3
"""Steps of each kind that run as they are, before one is recorded: kernels are compiled and libraries set up."""

_living: WeakSet[torch.cuda.CUDAGraph] = WeakSet()
"""Graphs whose pool the next one shares. A pool ends with its last graph: none is kept by its handle."""

_places: dict[tuple[Any, ...], tuple[Tensor, Tensor]] = {}
"""Where steps that are recorded find batch and variance, by shape, type and device."""


class StepGraphs:
    """Runs a step, of which every kind is recorded once it has run a few times."""

    def __init__(self) -> None:
        self._seen: Counter[int] = Counter()
        self._graphs: dict[int, torch.cuda.CUDAGraph] = {}

    def run(self, step: Callable[[Tensor, Tensor], None], x: Tensor, variance: Tensor, kind: int) -> None:
        """A step of a kind.

        Args:
            step: works on CUDA, in place and without waiting for the device; always the same. (It is not kept: with
                its owner, who has this, it would be a circle, and the SAE's memory stay until it is collected.)
            x: ``[batch, d_in]``, its size and type always the same.
        """
        self._seen[kind] += 1
        if self._seen[kind] <= _PLAIN_STEPS:
            step(x, variance)
            return
        key = (x.shape, x.dtype, x.device)
        if key not in _places:
            _places[key] = torch.empty_like(x), torch.empty_like(variance)
        batch = _places[key]
        for place, value in zip(batch, (x, variance), strict=True):
            place.copy_(value)
        if kind not in self._graphs:
            self._graphs[kind] = _recorded(step, *batch)
        self._graphs[kind].replay()


def _recorded(step: Callable[[Tensor, Tensor], None], x: Tensor, variance: Tensor) -> torch.cuda.CUDAGraph:
    pool = next((other.pool() for other in _living), None)
    graph = torch.cuda.CUDAGraph()
    # Other threads go on reading batches meanwhile.
    with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
        step(x, variance)
    _living.add(graph)
    return graph
