"""Which of several processes this is: as torchrun says it, one process a GPU.

    torchrun --nproc-per-node 8 -m train run --recipe grid

The processes read the same files and train different SAEs: a grid is split over them. They need not talk to each
other, so no process group is made, and processes on several machines that share a file system are no different.

With ``train.tensor_parallel = N`` it is split over teams instead, N neighbours each, that train every SAE of theirs
between them (`train.shards`).
"""

import os
from dataclasses import dataclass

from shared.errors import RecipeError


@dataclass(frozen=True)
class Process:
    """One of ``world_size`` processes, and the number of its GPU on its machine."""

    rank: int = 0
    local_rank: int = 0
    world_size: int = 1

    def says(self, line: str) -> str:
        """A line for the user, with who says it where there are several."""
        return line if self.world_size == 1 else f"[{self.rank}] {line}"

    def team(self, size: int) -> "Process":
        """The team of ``size`` neighbours that this process is in, as one of all teams.

        Raises:
            RecipeError: the processes cannot be divided so.
        """
        if self.world_size % size:
            raise RecipeError(f"[train].tensor_parallel is {size}: it takes {size} processes or a multiple, and here "
                              f"{'is 1' if self.world_size == 1 else f'are {self.world_size}'}. Start them together: "
                              f"torchrun --nproc-per-node {size} -m train run ... or make train WORKERS={size}")
        return Process(self.rank // size, self.local_rank, self.world_size // size)


def this_process() -> Process:
    """What torchrun's variables say; a single process without them."""
    rank, local_rank, world_size = (int(os.environ.get(name, default)) for name, default in
                                    (("RANK", "0"), ("LOCAL_RANK", "0"), ("WORLD_SIZE", "1")))
    return Process(rank, local_rank, world_size)
