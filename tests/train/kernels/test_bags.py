"""Sums over selected rows against plain indexing in float64; the kernels for CUDA are held to these forms."""

import torch

from train.kernels.bags import bag_sum, pair_products


def parts(pairs):
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.randn(rows, 20, generator=generator) for rows in (13, 9))
    a, b = (torch.randint(rows, (pairs,), generator=generator) for rows in (13, 9))
    return left, a, right, b, torch.randn(pairs, generator=generator)


def test_empty_bags_are_zero_and_others_the_sum_of_their_rows():
    left, a, *_, values = parts(6)
    found = bag_sum(left, a, torch.tensor([0, 0, 5, 6]), values)
    products = left[a].double() * values.double()[:, None]
    expected = torch.stack([torch.zeros(20), products[:5].sum(0), products[5], torch.zeros(20)])
    torch.testing.assert_close(found.double(), expected.double(), rtol=1e-5, atol=1e-6)


def test_products_are_those_of_each_pair_of_rows():
    for pairs in (0, 1, 50):
        left, a, right, b, _ = parts(pairs)
        torch.testing.assert_close(pair_products(left, a, right, b).double(), (left[a].double() * right[b]).sum(1),
                                   rtol=1e-5, atol=1e-5)
