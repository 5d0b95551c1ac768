"""One SAE over several processes: each holds a part of its latents, and what all latents add up to is summed.

    x_hat = sum over processes of (latents of its own W_dec rows) + b_dec        one all-reduce of [batch, d_in]

A process holds d_sae / size latents, neighbours: their columns of W_enc, rows of W_dec, biases, thresholds, counts and
moments of Adam. Parameters without a dimension of latents (b_dec) are on every process and stay alike, because the loss
is: it is computed from sums over all latents, which are the same bits everywhere. So the gradient of a sum is the
gradient of each process's part of it, and nothing is communicated backwards. (A column-parallel encoder and a
row-parallel decoder: Shoeybi et al. 2019, arXiv 1909.08053; for TopK SAEs Gao et al. 2024, arXiv 2406.04093.)

`Shards` is the form for one process, where all of this is nothing; `TeamShards` is one of a team. Sums and choices of
a step go over NCCL on CUDA; counts, decisions and states go over gloo, from CPU to CPU, on any device.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.functional import pad

from shared.errors import TryAgainError

_TIMEOUT = timedelta(days=1)
"""How long a process waits for the others. One that died is not found by it but by its closed connections, at once; and
the first may write a checkpoint, or evaluate, for long."""

Json = TypeVar("Json")


class Shards:
    """The whole SAE in one process: a sum is what it is given."""

    rank: int = 0
    size: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this process is the one of its team that writes files and speaks to the user."""
        return self.rank == 0

    def sum(self, part: Tensor) -> Tensor:
        """The sum over all processes. Its gradient is taken as that of each part."""
        return part

    def once(self, value: Tensor) -> Tensor:
        """What a process adds to a `sum` of something that all have: the first all of it, the others zero.

        The gradient is the same for all.
        """
        return value

    def total(self, count: int) -> int:
        """The sum of a count over all processes."""
        return count

    def most(self, *values: int) -> list[int]:
        """The largest of each value over all processes."""
        return list(values)

    def first_says(self, make: Callable[[], Json]) -> Json:
        """What ``make`` gives on the first process, which JSON must hold; the others wait for it."""
        return make()

    def largest(self, values: Tensor, count: int) -> Tensor:
        """Values [n] of all processes together: at least the ``count`` largest, or all where they are fewer."""
        return values

    def among_largest(self, values: Tensor, count: int) -> tuple[Tensor, Tensor] | None:
        """Which of ``values`` [rows, n], n <= count, are among the ``count`` largest of their row over all processes.

        Returns:
            bool [rows, n], and the smallest value of each row that is among them [rows]; None where all of them are.
        """
        return None

    def own(self, whole: Tensor, dim: int | None) -> Tensor:
        """This process's part of a tensor with latents along ``dim``, a view; all of it where that is None."""
        return whole

    def whole(self, part: Tensor, dim: int | None) -> Tensor:
        """The tensor that ``part`` is a part of, on the CPU of the first process; of no meaning on the others."""
        return part

    @torch.no_grad()
    def deal(self, wholes: Mapping[str, Tensor], name: str, part: Tensor, dim: int | None) -> None:
        """Copy into ``part`` what is its of ``wholes[name]``, which only the first process must have."""
        part.copy_(wholes[name])


ALONE = Shards()


class TeamShards(Shards):
    """One of several processes that hold an SAE. They all call the same methods in the same order.

    Every method raises TryAgainError where another process has ended.
    """

    def __init__(self, group: dist.ProcessGroup) -> None:
        self._group = group
        self.rank, self.size = group.rank(), group.size()

    def sum(self, part: Tensor) -> Tensor:
        summed: Tensor = _Sum.apply(part, self._all_reduce)  # type: ignore[no-untyped-call]
        return summed

    def once(self, value: Tensor) -> Tensor:
        return value if self.is_first else value - value.detach()

    def total(self, count: int) -> int:
        return int(self._all_reduce(torch.tensor(count)))

    def most(self, *values: int) -> list[int]:
        found: list[int] = self._all_reduce(torch.tensor(values), dist.ReduceOp.MAX).tolist()
        return found

    def first_says(self, make: Callable[[], Json]) -> Json:
        said = json.dumps(make() if self.is_first else None).encode()
        (length,) = self.most(len(said) if self.is_first else 0)
        text = torch.frombuffer(bytearray(said), dtype=torch.uint8) if self.is_first else torch.empty(
            length, dtype=torch.uint8)
        with _others_may_end():
            dist.broadcast(text, group=self._group, group_src=0)
        heard: Json = json.loads(text.numpy().tobytes())
        return heard

    def largest(self, values: Tensor, count: int) -> Tensor:
        if len(values) > count:
            values = torch.topk(values, count, sorted=False).values
        lengths = self._all_gather(torch.tensor(len(values))).tolist()
        if not any(lengths):
            return values
        every = self._all_gather(pad(values, (0, max(lengths) - len(values))))
        return torch.cat([found[:length] for found, length in zip(every, lengths, strict=True)])

    def among_largest(self, values: Tensor, count: int) -> tuple[Tensor, Tensor] | None:
        rows, columns = values.shape
        every = self._all_gather(pad(values.detach(), (0, count - columns), value=-torch.inf))
        every = every.transpose(0, 1).reshape(rows, self.size * count)
        best = torch.topk(every, count, dim=1, sorted=False)
        kept = torch.zeros_like(every, dtype=torch.bool).scatter_(1, best.indices, True)
        first = self.rank * count
        return kept[:, first : first + columns], best.values.amin(1)

    def own(self, whole: Tensor, dim: int | None) -> Tensor:
        return whole if dim is None else whole.chunk(self.size, dim)[self.rank]

    @torch.no_grad()
    def whole(self, part: Tensor, dim: int | None) -> Tensor:
        if dim is None:
            return part
        ours = part.movedim(dim, 0).cpu().contiguous()
        whole = torch.empty((self.size * len(ours) if self.is_first else 0, *ours.shape[1:]), dtype=part.dtype)
        with _others_may_end():
            dist.gather(ours, list(whole.chunk(self.size)) if self.is_first else None, group=self._group, group_dst=0)
        return whole.movedim(0, dim)

    @torch.no_grad()
    def deal(self, wholes: Mapping[str, Tensor], name: str, part: Tensor, dim: int | None) -> None:
        along = dim or 0
        parts = None
        if self.is_first:
            whole = wholes[name].movedim(along, 0).contiguous()
            parts = [whole] * self.size if dim is None else list(whole.chunk(self.size))
        ours = torch.empty(part.movedim(along, 0).shape, dtype=part.dtype)
        with _others_may_end():
            dist.scatter(ours, parts, group=self._group, group_src=0)
        part.copy_(ours.movedim(0, along))

    @torch.no_grad()
    def _all_reduce(self, part: Tensor, op: Any = dist.ReduceOp.SUM) -> Tensor:
        # A product is bf16 under autocast: as many roundings as processes would be summed.
        reduced = part.to(torch.float32 if part.dtype.is_floating_point and part.element_size() < 4 else part.dtype,
                          memory_format=torch.contiguous_format, copy=True)
        with _others_may_end():
            dist.all_reduce(reduced, op, group=self._group)
        return reduced

    @torch.no_grad()
    def _all_gather(self, part: Tensor) -> Tensor:
        """The tensors of all processes, of one shape, along a new first dimension."""
        gathered = part.new_empty((self.size, *part.shape))
        with _others_may_end():
            dist.all_gather(list(gathered), part.contiguous(), group=self._group)
        return gathered


class _Sum(torch.autograd.Function):
    """Sum over processes; the gradient of the sum is that of each part."""

    @staticmethod
    def forward(ctx: Any, part: Tensor, all_reduce: Callable[[Tensor], Tensor]) -> Tensor:
        ctx.dtype = part.dtype
        return all_reduce(part)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0].to(ctx.dtype), None


@contextmanager
def _others_may_end() -> Iterator[None]:
    """Torch has nothing more precise than RuntimeError for a closed connection."""
    try:
        yield
    except RuntimeError as error:
        lines = str(error).splitlines() or [type(error).__name__]
        raise TryAgainError("Another of the processes that train an SAE between them has ended (what it says tells "
                            f"why), or cannot be reached: {lines[0]} Start all of them again: they go on from the "
                            "newest checkpoint.") from error


@contextmanager
def open_shards(size: int, device: str) -> Iterator[Shards]:
    """Join the team of ``size`` neighbouring processes that this one is in, as torchrun's variables say.

    All processes of a torchrun must call it, with a ``size`` that divides their number. With 1 no connection is made.
    ``device`` is what parameters are on: "cuda:N" is another for each.
    """
    if size == 1:
        yield ALONE
        return
    backend = "cpu:gloo,cuda:nccl" if device.startswith("cuda") else "gloo"
    with _others_may_end():
        dist.init_process_group(backend, timeout=_TIMEOUT)
        # Not a DeviceMesh: the groups that it makes wait for half an hour, whatever the first was told.
        team, _ = dist.new_subgroups(size, timeout=_TIMEOUT)  # type: ignore[no-untyped-call]
    yield TeamShards(team)
    dist.destroy_process_group()  # not after an error: it would wait for processes that are no more
