"""`train.kernels.bags` for CUDA.

A program of `bag_sum` sums one bag over up to 1,024 columns, eight pairs at a time: a thread has its columns of all
eight, so nothing is exchanged between threads. Other shapes took up to ten times as long (16 pairs by 256 columns,
measured on an H100). Programs that follow one another take the next bag of the same columns, so the part of the matrix
that all of them gather from stays near.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _bag_sum(dense, indices, offsets, values, written, out, bags, pairs, d,
             SOME: tl.constexpr, COLUMNS: tl.constexpr, PAIRS: tl.constexpr):
    bag = tl.program_id(0)
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = columns < d
    start = tl.load(offsets + bag)
    stop = tl.load(offsets + bag + 1, mask=bag + 1 < bags, other=pairs)
    rest = start + (stop - start) // PAIRS * PAIRS
    total = tl.zeros([COLUMNS], tl.float32)
    for first in range(start, rest, PAIRS):  # the same as below, with nothing to leave out
        pair = first + tl.arange(0, PAIRS)
        index = tl.load(indices + pair)
        value = tl.load(values + pair)
        rows = tl.load(dense + index[:, None] * d + columns[None, :], mask=inside[None, :], other=0.0)
        total += tl.sum(rows.to(tl.float32) * value[:, None], 0)
    for first in range(rest, stop, PAIRS):
        pair = first + tl.arange(0, PAIRS)
        there = pair < stop
        index = tl.load(indices + pair, mask=there, other=0)
        value = tl.load(values + pair, mask=there, other=0.0)
        rows = tl.load(dense + index[:, None] * d + columns[None, :], mask=there[:, None] & inside[None, :], other=0.0)
        total += tl.sum(rows.to(tl.float32) * value[:, None], 0)
    if SOME:
        inside = columns < tl.where(tl.load(written + bag) != 0, d, 0)
    tl.store(out + bag.to(tl.int64) * d + columns, total, mask=inside)


@triton.jit
def _pair_products(left, left_rows, right, right_rows, out, pairs, d, COLUMNS: tl.constexpr, PAIRS: tl.constexpr):
    pair = tl.program_id(0) * PAIRS + tl.arange(0, PAIRS)
    there = pair < pairs
    a = tl.load(left_rows + pair, mask=there, other=0)
    b = tl.load(right_rows + pair, mask=there, other=0)
    total = tl.zeros([PAIRS], tl.float32)
    for first in range(0, d, COLUMNS):
        columns = first + tl.arange(0, COLUMNS)
        both = there[:, None] & (columns < d)[None, :]
        x = tl.load(left + a[:, None] * d + columns[None, :], mask=both, other=0.0)
        y = tl.load(right + b[:, None] * d + columns[None, :], mask=both, other=0.0)
        total += tl.sum(x.to(tl.float32) * y.to(tl.float32), 1)
    tl.store(out + pair, total, mask=there)


def bag_sum(dense: Tensor, indices: Tensor, offsets: Tensor, values: Tensor, written: Tensor | None = None) -> Tensor:
    """See `train.kernels.bags.bag_sum`."""
    bags, d = len(offsets), dense.shape[1]
    out = torch.empty(bags, d, dtype=torch.float32, device=dense.device)
    columns = min(1024, max(256, triton.next_power_of_2(d)))
    _bag_sum[bags, triton.cdiv(d, columns)](
        dense.contiguous(), indices, offsets, values.contiguous(), written, out, bags, len(indices), d,
        SOME=written is not None, COLUMNS=columns, PAIRS=8, num_warps=columns // 256)
    return out


def pair_products(left: Tensor, left_rows: Tensor, right: Tensor, right_rows: Tensor) -> Tensor:
    """See `train.kernels.bags.pair_products`."""
    pairs, d = len(left_rows), left.shape[1]
    out = torch.empty(pairs, dtype=torch.float32, device=left.device)
    _pair_products[triton.cdiv(pairs, 32),](left.contiguous(), left_rows, right.contiguous(), right_rows, out,
                                            pairs, d, COLUMNS=128, PAIRS=32, num_warps=4)
    return out
