"""What training takes in memory, and which SAEs of a group fit in it at once.

A parameter takes 12 bytes all the time (its fp32 weight and Adam's two moments) and 4 while its own SAE makes a step
(the gradient). SAEs step one after the other, so gradients and the tensors of a batch are the largest SAE's, and not
the sum. On a CPU a checkpoint, which copies what does not lie row by row, takes half of the 12 bytes once more.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from shared.format.layout import BLOCK_ROWS
from train.config import SAEPlan, TrainConfig

_BATCH_TENSORS = 10
"""Tensors of [batch, d_sae] in fp32 that a step holds at its peak. Measured at d_in 64, d_sae 8,192, batch 2,048: Gated
with all latents active 9.3, JumpReLU 6.5, Standard with all of them active 5.3, TopK with all of them silent 3.1."""

_SHARE_OF_FREE = 0.85
"""How much of what is free now is planned with: allocators leave holes, and others work on the machine."""


@dataclass(frozen=True)
class MemoryNeed:
    """Bytes that one SAE, or its part, takes on the device it is trained on."""

    kept: int
    """For as long as its set is trained."""
    step: int
    """While it makes a step."""


def memory_need(sae: SAEPlan, d_in: int, train: TrainConfig, device: str) -> MemoryNeed:
    """Bytes for a process's part of an SAE with inputs of width ``d_in``: an estimate that errs upwards."""
    d_sae = sae.config.width(d_in) // train.tensor_parallel
    parameters = 2 * d_in * d_sae + d_in + 4 * d_sae
    kept = 12 * parameters
    reconstructions = 1 + len(getattr(sae.config, "prefixes", ()))  # Matryoshka's, each with its gradient and errors
    step = 4 * parameters + 4 * train.batch_size * (_BATCH_TENSORS * d_sae + 4 * reconstructions * d_in)
    if device.startswith("cuda"):  # bf16 copies of the weights; what recorded steps hold stays beside what others make
        return MemoryNeed(kept, 2 * step + 2 * parameters)
    return MemoryNeed(kept + kept // 2, step)


def shared_need(train: TrainConfig, d_in: int, window_blocks: int) -> int:
    """Bytes that a set takes once for all its SAEs: two windows of rows in bf16, batches for calibration in fp32."""
    windows = 2 * window_blocks * BLOCK_ROWS * d_in * 2
    return windows + 4 * train.calibration_size() * train.batch_size * d_in


def set_need(needs: Sequence[MemoryNeed], shared: int) -> int:
    """Bytes for SAEs that are trained together."""
    return shared + sum(need.kept for need in needs) + max(need.step for need in needs)


def in_turns(needs: Sequence[MemoryNeed], shared: int, budget: int) -> list[list[int]]:
    """Places of the SAEs that are trained together, turn by turn: as many neighbours at once as fit in ``budget``.

    One that does not fit even by itself has a turn of its own.
    """
    turns: list[list[int]] = []
    for place in range(len(needs)):
        if turns and set_need([needs[other] for other in [*turns[-1], place]], shared) <= budget:
            turns[-1].append(place)
        else:
            turns.append([place])
    return turns


def memory_budget(train: TrainConfig, device: str) -> int:
    """Bytes to plan with: train.memory_gib, or most of what is free on the device now.

    Processes that torchrun starts on one host have a GPU each, or an equal part of the host's memory.
    """
    if train.memory_gib is not None:
        return int(train.memory_gib * 2**30)
    if device.startswith("cuda"):
        torch.cuda.empty_cache()  # what the SAEs before had is free, and torch has kept it for us
        free, _ = torch.cuda.mem_get_info(device)
    else:
        free = _free_host_memory() // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return int(_SHARE_OF_FREE * free)


def _free_host_memory() -> int:
    """Bytes that the host can give: what Linux says, or physical memory; within the limit of our control group."""
    free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    meminfo = Path("/proc/meminfo")
    if meminfo.is_file():
        lines = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
        free = min(free, int(lines["MemAvailable"].split()[0]) * 1024)
    limit, used = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
    if limit.is_file() and used.is_file() and limit.read_text().strip() != "max":
        free = min(free, max(0, int(limit.read_text()) - int(used.read_text())))
    return free
