"""Exact selection of the largest values, by the maxima of groups.

The k largest of n values all lie in the k groups with the largest maxima. So one pass takes the maxima of n / g
groups, and torch.topk runs over these and over the g * k candidates in their groups; g is a power of two near
sqrt(n / k), where both are fewest. Equal values at the edge may be chosen otherwise than torch.topk does. Nothing
waits for a GPU.
"""

import torch
from torch import Tensor


def largest(values: Tensor, wanted: int) -> Tensor:
    """Indices of the ``wanted`` largest of ``values`` [n], ascending: int64 [wanted]."""
    return largest_of_rows(values[None], wanted)[1][0].sort().values


def largest_of_rows(values: Tensor, wanted: int) -> tuple[Tensor, Tensor]:
    """The ``wanted`` largest of each row of ``values`` [rows, n], in any order, and their indices: [rows, wanted]."""
    rows, n = values.shape
    size = _group_size(n, wanted)
    if size == 1:
        found = torch.topk(values, wanted, dim=1, sorted=False)
        return found.values, found.indices
    grouped = values.view(rows, size, -1)  # neighbours in different groups: the maxima are taken along memory
    groups = torch.topk(grouped.amax(1), wanted, dim=1, sorted=False).indices
    candidates = grouped.gather(2, groups[:, None].expand(-1, size, -1)).view(rows, -1)
    best = torch.topk(candidates, wanted, dim=1, sorted=False)
    member = torch.div(best.indices, wanted, rounding_mode="floor")
    return best.values, member * grouped.shape[2] + groups.gather(1, best.indices - member * wanted)


def _group_size(n: int, wanted: int) -> int:
    size = 1
    while n % (2 * size) == 0 and (2 * size) ** 2 * wanted <= n:
        size *= 2
    return size
