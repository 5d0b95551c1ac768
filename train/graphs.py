"""A training step recorded once and replayed: on CUDA, where launching a small step's kernels takes longer than running
them.

A CUDA graph holds a step's kernels and the addresses of what they read and write. So a step that is recorded takes
its batch from a place of its own, and what changes from step to step (its number, the learning rate) from scalars
on the device. What the host decides (`SAE.prepare`) is the step's kind, and each kind has a graph of its own. All
graphs have their intermediate tensors in one pool of memory: one step is over before another begins.
"""

from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

_PLAIN_STEPS = 3
"""Steps of each kind that run as they are, before one is recorded: kernels are compiled and libraries set up."""

_pool: Any = None


class StepGraphs:
    """Runs ``step(x, variance)``, of which every kind is recorded once it has run a few times."""

    def __init__(self, step: Callable[[Tensor, Tensor], None]) -> None:
        """``step`` works on CUDA, in place and without waiting for the device."""
        self._step = step
        self._seen: Counter[int] = Counter()
        self._graphs: dict[int, torch.cuda.CUDAGraph] = {}
        self._batch: tuple[Tensor, Tensor] | None = None

    def run(self, x: Tensor, variance: Tensor, kind: int) -> None:
        """A step of a kind on ``x`` [batch, d_in], whose size and type are always the same."""
        self._seen[kind] += 1
        if self._seen[kind] <= _PLAIN_STEPS:
            self._step(x, variance)
            return
        if self._batch is None:
            self._batch = torch.empty_like(x), torch.empty_like(variance)
        for place, value in zip(self._batch, (x, variance), strict=True):
            place.copy_(value)
        if kind not in self._graphs:
            self._graphs[kind] = self._recorded(*self._batch)
        self._graphs[kind].replay()

    def _recorded(self, x: Tensor, variance: Tensor) -> torch.cuda.CUDAGraph:
        global _pool
        _pool = _pool or torch.cuda.graph_pool_handle()
        graph = torch.cuda.CUDAGraph()
        # Other threads go on reading batches meanwhile.
        with torch.cuda.graph(graph, pool=_pool, capture_error_mode="thread_local"):
            self._step(x, variance)
        return graph
