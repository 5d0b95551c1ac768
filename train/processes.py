"""Which of several processes this is, when a grid is split: as torchrun says it, one process a GPU.

    torchrun --nproc-per-node 8 -m train run --recipe grid

The processes read the same files and train different SAEs. They need not talk to each other, so no process group is
made, and processes on several machines that share a file system are no different.
"""

import os
from dataclasses import dataclass


@dataclass(frozen=True)
class Process:
    """One of ``world_size`` processes, and the number of its GPU on its machine."""

    rank: int = 0
    local_rank: int = 0
    world_size: int = 1

    def says(self, line: str) -> str:
        """A line for the user, with who says it where there are several."""
        return line if self.world_size == 1 else f"[{self.rank}] {line}"


def this_process() -> Process:
    """What torchrun's variables say; a single process without them."""
    rank, local_rank, world_size = (int(os.environ.get(name, default)) for name, default in
                                    (("RANK", "0"), ("LOCAL_RANK", "0"), ("WORLD_SIZE", "1")))
    return Process(rank, local_rank, world_size)
