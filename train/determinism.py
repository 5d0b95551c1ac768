"""``--deterministic``: the same bits from the same command on the same kind of GPU.

On a CPU they are the same anyway for a number of threads. On CUDA some kernels add in an order that changes
(scatter, index_add), and cuBLAS chooses its workspace as it comes.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch


def be_deterministic() -> None:
    """Have torch use deterministic algorithms from here on, or fail where it has none. Before CUDA is used first."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when cuBLAS is first used
    torch.use_deterministic_algorithms(True)
    # Filling new tensors with NaN finds reads of memory that was never written; it would cost time in every step.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


@contextmanager
def order_statistics_allowed() -> Iterator[None]:
    """Allow torch.kthvalue on CUDA, which is refused for the index that it gives: its value, which we take, is one."""
    deterministic = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(False)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(deterministic)
