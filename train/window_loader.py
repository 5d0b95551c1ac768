"""Loads windows ahead of the training: mapped blocks are read, checked and copied by threads.

A window lies in the memory of the training device as it was read, in the order of the cache; a batch is picked out
of it there (one gather). So nothing is permuted on the way: on CUDA, blocks are copied to pinned buffers in one
piece, and from there to the device on a stream of their own while the step runs.

Blocks are read in the order of the file, each thread a piece of it. A window's blocks lie all over the file, where the
kernel reads nothing ahead: so a thread asks for all blocks of its piece at once, and takes them one by one as they
come (`MappedFile.prefetch`, `load`). The memory of a window that is served is used again: new pages would cost as much
as the copy into them. Where the layer is large beside the machine's memory, pages are given back as soon
as they are copied, so that one run does not push everybody else's files out of memory.
"""

import os
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from queue import Queue
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from shared.format.layout import BLOCK_ROWS
from shared.reading.layer_rows import LayerRows
from train.order import Order, Window

PIECE_BYTES = 8 << 20
"""Rows that a thread reads at a time, and a pinned buffer holds."""

RELEASE_SHARE = 0.5
"""Pages are given back when a layer takes more than this share of the machine's memory."""

Bits = npt.NDArray[np.uint16]


@dataclass(frozen=True)
class LoadedWindow:
    """A window in the device's memory."""

    window: Window
    memory: Tensor
    """bf16 [capacity, d_in]: the rows held, in the order of the cache, and room for those of a larger window."""
    served: Tensor
    """int64 [served]: where each row that is served lies in ``memory``."""
    loaded: torch.cuda.Event | None
    """On CUDA: when the copies are done."""

    def take(self, start: int, stop: int) -> Tensor:
        """Rows number ``start`` to ``stop`` of those served: a copy, bf16 [stop - start, d_in]."""
        if self.loaded is not None:
            stream = torch.cuda.current_stream(self.memory.device)
            stream.wait_event(self.loaded)
            self.served.record_stream(stream)
        return self.memory.index_select(0, self.served[start:stop])


class WindowLoader:
    """Threads that load the windows of an order, in the order in which they are asked for."""

    def __init__(self, layer: LayerRows, order: Order, device: torch.device, *, threads: int | None = None,
                 release_pages: bool | None = None, staged: bool | None = None) -> None:
        """
        Args:
            threads: how many read at a time; by default half the cores, 8 at most, and at least 2, so that one copies
                while another waits for the disk.
            release_pages: whether pages are given back behind; by default by `RELEASE_SHARE`, and never where the
                order comes back to a block within the epoch.
            staged: whether rows go through buffers of their own; by default on CUDA, where these are pinned.
        """
        self._layer = layer
        self._order = order
        self._device = device
        threads = threads or max(2, min(8, (os.cpu_count() or 2) // 2))
        self._release = order.reads_once and is_large(layer) if release_pages is None else release_pages
        self._piece_rows = max(BLOCK_ROWS, PIECE_BYTES // (2 * layer.d_model))
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]
        self._staging: Queue[tuple[Tensor, torch.cuda.Event | None]] | None = None
        if device.type == "cuda" if staged is None else staged:
            self._staging = Queue()
            for _ in range(2 * threads):  # one is filled while another is on its way
                self._staging.put((torch.empty((self._piece_rows, layer.d_model), dtype=torch.bfloat16,
                                               pin_memory=device.type == "cuda"), None))
        self._capacity = min(order.window_blocks * BLOCK_ROWS, order.num_rows)
        self._free: list[Tensor] = []
        self._latest: tuple[tuple[int, int], LoadedWindow] | None = None
        begin: dict[str, Any] = {}
        if device.type == "cuda":
            # Each thread has a current device of its own. A stream's use would open the first GPU too, and take half a
            # gigabyte of it for every process that trains on another.
            begin = {"initializer": torch.cuda.set_device,
                     "initargs": (torch.cuda.current_device() if device.index is None else device.index,)}
        self._windows = ThreadPoolExecutor(max_workers=1, thread_name_prefix="window", **begin)
        self._readers = ThreadPoolExecutor(max_workers=threads, thread_name_prefix="read", **begin)

    def start(self, epoch: int, number: int) -> Future[LoadedWindow]:
        """Begin to load a window."""
        return self._windows.submit(self._load, epoch, number)

    def give_back(self, served: LoadedWindow) -> None:
        """Nothing more is taken from a window: its memory is for one that is loaded later."""
        self._wait_for_taking()
        self._free.append(served.memory)

    def close(self) -> None:
        """End the threads; what is not loaded by now is not."""
        self._readers.shutdown(wait=True, cancel_futures=True)
        self._windows.shutdown(wait=True, cancel_futures=True)
        self._wait_for_taking()
        self._free, self._latest = [], None

    def _wait_for_taking(self) -> None:
        """On CUDA: no copy from now on begins before what was taken by now is taken."""
        if self._stream is not None:
            self._stream.wait_stream(torch.cuda.current_stream(self._device))

    def _load(self, epoch: int, number: int) -> LoadedWindow:
        window = self._order.window(epoch, number)
        with self._on_stream():
            memory = self._memory()
            done = self._carry(window, (epoch, number), memory)
            reading = []
            for start in range(done, len(window.held), self._piece_rows):
                numbers = window.held[start : start + self._piece_rows]
                reading.append(self._readers.submit(self._read, numbers, memory[start : start + len(numbers)]))
            for piece in reading:
                piece.result()
            served = torch.from_numpy(window.served).to(self._device)
            loaded = LoadedWindow(window, memory, served, self._stream.record_event() if self._stream else None)
        self._latest = ((epoch, number), loaded)
        return loaded

    def _memory(self) -> Tensor:
        """Memory for a window: what was given back, unless the next window goes on from what is in it."""
        for number, memory in enumerate(self._free):
            if self._latest is None or memory is not self._latest[1].memory:
                return self._free.pop(number)
        shape = (self._capacity, self._layer.d_model)
        if self._device.type == "cpu":
            # NumPy asks for huge pages: 300 MB are touched for the first time in 35 ms, torch's in 180.
            return torch.from_numpy(np.empty(shape, np.uint16)).view(torch.bfloat16)
        return torch.empty(shape, dtype=torch.bfloat16, device=self._device)

    def _carry(self, window: Window, here: tuple[int, int], memory: Tensor) -> int:
        """Copy what the window loaded last leaves over into its place, if it is the one before; how many rows."""
        if not window.num_carried or self._latest is None or self._order.following(*self._latest[0]) != here:
            return 0
        before = self._latest[1]
        left = np.delete(np.arange(len(before.window.held)), before.window.served)
        torch.index_select(before.memory, 0, torch.from_numpy(left).to(self._device), out=memory[: len(left)])
        return len(left)

    def _read(self, numbers: npt.NDArray[np.int64], into: Tensor) -> None:
        """Copy rows of the cache, ascending, into a part of a window."""
        with self._host_memory(into) as out:
            of_rows = numbers // BLOCK_ROWS
            starts = np.flatnonzero(np.diff(of_rows, prepend=-1)).tolist()
            blocks = of_rows[starts].tolist()
            self._layer.prefetch(blocks)
            for block, start, stop in zip(blocks, starts, [*starts[1:], len(numbers)], strict=True):
                stored = self._layer.block(block).view(np.uint16)  # numpy is fast with types of its own
                np.take(stored, numbers[start:stop] - block * BLOCK_ROWS, axis=0, out=out[start:stop], mode="clip")
        if self._release:
            self._layer.release(blocks[0], blocks[-1])

    @contextmanager
    def _host_memory(self, into: Tensor) -> Iterator[Bits]:
        """Where the rows of a part are written: the part itself, or a buffer that is copied to it."""
        if self._staging is None:
            yield into.view(torch.uint16).numpy()
            return
        buffer, copied = self._staging.get()
        try:
            if copied is not None:
                copied.synchronize()
            part = buffer[: len(into)]
            yield part.view(torch.uint16).numpy()
            with self._on_stream():
                into.copy_(part, non_blocking=True)
                copied = self._stream.record_event() if self._stream else None
        finally:
            self._staging.put((buffer, copied))

    def _on_stream(self) -> AbstractContextManager[object]:
        return torch.cuda.stream(self._stream) if self._stream else nullcontext()


def is_large(layer: LayerRows) -> bool:
    """Whether a layer would fill much of the machine's memory if its pages stayed."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return layer.num_bytes > RELEASE_SHARE * memory
