"""Shuffled, policy-filtered batches of one layer, for this trainer or one's own:

    from train.batches import Batches
    for x in Batches("caches/demo", layer=9, batch_size=1024):
        ...                                      # torch bfloat16 [batch_size, d_in], raw activations

While the batches of one window are served, threads load the next (`train.order`, `train.window_loader`). On CUDA
windows lie in the device's memory, and so do the batches.
"""

import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from shared.errors import RecipeError
from shared.reading.cache import Cache, open_cache
from train.order import ORDERS, Order, default_window_blocks
from train.policy import TokenPolicy, training_mask
from train.window_loader import LoadedWindow, WindowLoader


class Batches:
    """Iterable over the batches of one layer's training rows; each iteration starts at ``start_step``."""

    def __init__(self, cache: Cache | Path | str, layer: int, batch_size: int = 4096, *,
                 policy: TokenPolicy | None = None, data_seed: int = 0, num_steps: int | None = None,
                 start_step: int = 0, shuffle: str = "windows", window_blocks: int | None = None,
                 units: Sequence[int] | None = None, device: str | torch.device = "cpu",
                 mask: npt.NDArray[np.bool_] | None = None) -> None:
        """Rows come in an order that depends on ``shuffle``, ``data_seed``, the mask and the window size alone.

        Args:
            cache: an open cache or its folder.
            layer: which layer's activations.
            policy: which rows; the default drops position 0 and outlier norms.
            num_steps: where to stop, counted from step 0; by default after one pass (whole batches).
            shuffle: a name of `train.order.ORDERS`.
            units: train on these committed units only; by default on all.
            mask: bool [num_rows], in place of ``policy`` and ``units``.

        Raises:
            RecipeError: the layer is not in the cache, there is no such shuffle, or there are fewer rows than a batch
                takes.
            DataError: the policy keeps no row.
        """
        self.cache = cache if not isinstance(cache, (str, Path)) else open_cache(cache)
        self.layer = layer
        self.batch_size = batch_size
        self.device = torch.device(device)
        self.start_step = start_step
        self.stall_seconds = 0.0
        """How long those who iterate have waited for their batches by now."""
        if layer not in self.cache.layers:
            raise RecipeError(f"Layer {layer} is not in {self.cache.path}, which holds layers "
                              f"{', '.join(map(str, self.cache.layers)) or 'none'}.")
        if shuffle not in ORDERS:
            raise RecipeError(f"shuffle must be one of {', '.join(ORDERS)}; got {shuffle!r}.")
        if mask is None:
            mask = training_mask(self.cache, layer, policy or TokenPolicy(), units)
        self.order: Order = ORDERS[shuffle](
            mask, data_seed=data_seed,
            window_blocks=window_blocks or default_window_blocks(batch_size, self.cache.d_model))
        self.num_steps = self.order.num_rows // batch_size if num_steps is None else num_steps
        if self.num_steps < 1:
            raise RecipeError(f"{self.order.num_rows:,} rows are kept, fewer than one batch of {batch_size:,}. "
                              "Take a smaller batch_size, or harvest more.")

    def __len__(self) -> int:
        return max(0, self.num_steps - self.start_step)

    def rows(self, step: int) -> npt.NDArray[np.int64]:
        """Row numbers of the batch of a step: int64 [batch_size]."""
        return self.order.rows(step * self.batch_size, (step + 1) * self.batch_size)

    def __iter__(self) -> Iterator[Tensor]:
        order, last_position = self.order, self.num_steps * self.batch_size
        asked = time.perf_counter()
        loader = WindowLoader(self.cache.layer(self.layer), order, self.device)
        windows: dict[tuple[int, int], Future[LoadedWindow]] = {}
        try:
            for step in range(self.start_step, self.num_steps):
                start, stop = step * self.batch_size, (step + 1) * self.batch_size
                pieces = []
                for segment in order.segments(start, stop):
                    here = (segment.epoch, segment.window)
                    if here not in windows:
                        windows[here] = loader.start(*here)
                    window = windows[here].result()
                    pieces.append(window.take(segment.start, segment.stop))
                    for old in [key for key in windows if key < here]:
                        loader.give_back(windows.pop(old).result())
                    after = order.following(*here)
                    if after not in windows and stop + len(window.served) - segment.stop < last_position:
                        windows[after] = loader.start(*after)
                batch = pieces[0] if len(pieces) == 1 else torch.cat(pieces)
                self.stall_seconds += time.perf_counter() - asked
                yield batch
                asked = time.perf_counter()
        finally:
            loader.close()


class Pace:
    """How fast batches are trained on, and the share of the time that goes by in waiting for them."""

    def __init__(self, batches: Batches) -> None:
        self._batches = batches
        self._looked = (time.perf_counter(), batches.stall_seconds, batches.start_step)

    def since_last(self, done: int) -> dict[str, float]:
        """``tokens_per_second`` and ``stall_share`` since the last call, or since this was made; ``done`` steps are
        done now."""
        before, self._looked = self._looked, (time.perf_counter(), self._batches.stall_seconds, done)
        seconds, stalled, steps = (now - then for now, then in zip(self._looked, before, strict=True))
        return {"tokens_per_second": steps * self._batches.batch_size / max(seconds, 1e-9),
                "stall_share": stalled / max(seconds, 1e-9)}
