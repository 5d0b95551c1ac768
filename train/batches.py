"""Shuffled, policy-filtered batches of one layer, for this trainer or one's own:

    from train.batches import Batches
    for x in Batches("caches/demo", layer=9, batch_size=1024):
        ...                                      # torch bfloat16 [batch_size, d_in], raw activations

While the batches of one window are served, a thread loads the next (`train.order`). On CUDA a window lies in
pinned memory and its batches are copied asynchronously.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from shared.errors import RecipeError
from shared.reading.cache import Cache, open_cache
from train.order import BlockOrder, default_window_blocks
from train.policy import TokenPolicy, training_mask

_Window = tuple[int, int]  # (epoch, window)


class Batches:
    """Iterable over the batches of one layer's training rows; each iteration starts at ``start_step``."""

    def __init__(self, cache: Cache | Path | str, layer: int, batch_size: int = 4096, *,
                 policy: TokenPolicy | None = None, data_seed: int = 0, num_steps: int | None = None,
                 start_step: int = 0, window_blocks: int | None = None, units: Sequence[int] | None = None,
                 device: str | torch.device = "cpu", mask: npt.NDArray[np.bool_] | None = None) -> None:
        """Rows come in an order that depends on ``data_seed``, the mask and the window size alone.

        Args:
            cache: an open cache or its folder.
            layer: which layer's activations.
            policy: which rows; the default drops position 0 and outlier norms.
            num_steps: where to stop, counted from step 0; by default after one pass (whole batches).
            units: train on these committed units only; by default on all.
            mask: bool [num_rows], in place of ``policy`` and ``units``.

        Raises:
            RecipeError: the layer is not in the cache, or there are fewer rows than a batch takes.
            DataError: the policy keeps no row.
        """
        self.cache = cache if not isinstance(cache, (str, Path)) else open_cache(cache)
        self.layer = layer
        self.batch_size = batch_size
        self.device = torch.device(device)
        self.start_step = start_step
        if layer not in self.cache.layers:
            raise RecipeError(f"Layer {layer} is not in {self.cache.path}, which holds layers "
                              f"{', '.join(map(str, self.cache.layers)) or 'none'}.")
        if mask is None:
            mask = training_mask(self.cache, layer, policy or TokenPolicy(), units)
        self.order = BlockOrder(mask, data_seed=data_seed,
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
        windows: dict[_Window, Future[Tensor]] = {}
        last_position = self.num_steps * self.batch_size
        with ThreadPoolExecutor(max_workers=1, thread_name_prefix="window") as pool:
            try:
                for step in range(self.start_step, self.num_steps):
                    start, stop = step * self.batch_size, (step + 1) * self.batch_size
                    pieces = []
                    for segment in self.order.segments(start, stop):
                        here = (segment.epoch, segment.window)
                        if here not in windows:
                            windows[here] = pool.submit(self._load, *here)
                        window = windows[here].result()
                        pieces.append(window[segment.start : segment.stop])
                        for old in [key for key in windows if key < here]:
                            del windows[old]
                        after = self.order.following(segment)
                        if after not in windows and stop + len(window) - segment.stop < last_position:
                            windows[after] = pool.submit(self._load, *after)
                    batch = pieces[0] if len(pieces) == 1 else torch.cat(pieces)
                    yield batch.to(self.device, non_blocking=True)
            finally:
                pool.shutdown(wait=True, cancel_futures=True)

    def _load(self, epoch: int, window: int) -> Tensor:
        """One window's rows in the order in which they are served: bf16 [n, d_in]."""
        order, layer = self.order, self.cache.layer(self.layer)
        places = order.places(epoch, window)
        loaded = torch.empty((len(places), self.cache.d_model), dtype=torch.bfloat16,
                             pin_memory=self.device.type == "cuda")
        # uint16 on both sides: numpy copies rows of a built-in type at the speed of memory.
        out = loaded.view(torch.uint16).numpy()
        done = 0
        for block in order.window_blocks_of(epoch, window):
            kept = order.kept_in_block(block)
            rows = layer.block(int(block)).view(np.uint16)
            out[places[done : done + len(kept)]] = rows[kept]
            done += len(kept)
        return loaded
