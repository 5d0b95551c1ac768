"""Sums and products over selected rows of matrices, which are never gathered into memory."""

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

from train.kernels.device import on_triton


def bag_sum(dense: Tensor, indices: Tensor, offsets: Tensor, values: Tensor, written: Tensor | None = None) -> Tensor:
    """``out[b] = sum over the bag's pairs p of values[p] * dense[indices[p]]``, in float32.

    Args:
        dense: ``[rows, d]``, float32; on CUDA also bfloat16, which is summed in float32.
        indices: ``[n]`` int64, rows of ``dense``; the pairs of a bag follow one another.
        offsets: ``[bags]`` int64, where each bag begins.
        values: ``[n]`` float32.
        written: ``[bags]`` bool, all that are not empty among them: other rows of the result may hold anything.

    Returns:
        ``[bags, d]``
    """
    if on_triton(dense):
        from train.kernels import triton_bags
        return triton_bags.bag_sum(dense, indices, offsets, values, written)
    return embedding_bag(indices, dense, offsets, mode="sum", per_sample_weights=values)


def pair_products(left: Tensor, left_rows: Tensor, right: Tensor, right_rows: Tensor) -> Tensor:
    """``out[p] = <left[left_rows[p]], right[right_rows[p]]>``: ``[n]`` float32.

    Args:
        left: ``[rows, d]``, its rows for a few pairs after one another the same, best.
        left_rows: ``[n]`` int64.
        right: ``[rows, d]`` of the same type.
        right_rows: ``[n]`` int64.
    """
    if on_triton(left):
        from train.kernels import triton_bags
        return triton_bags.pair_products(left, left_rows, right, right_rows)
    no_offsets = left_rows[:0]  # the bag of each pair is given
    products: Tensor = torch.ops.aten._embedding_bag_per_sample_weights_backward(
        right, left, left_rows, no_offsets, right_rows, 0)
    return products
