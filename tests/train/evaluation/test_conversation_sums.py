"""Sums by conversation: against plain loops, where conversations go alone, and where blocks cut them."""

import numpy as np
import pytest

from tests.train.fake_cache import FakeCache
from train.evaluation.bootstrap import SEED
from train.evaluation.conversation_sums import (
    BY_CELL,
    Cells,
    CellSums,
    conversation_table,
    figures_of_sums,
    intervals,
    sequence_means,
)

N, D_IN = 300, 4
ORDERS = {
    "alone": (np.array([0, 40, 90, 91, 200, N]), np.array([0, 40, 90, 91, 200, N])),
    "cut": (np.array([0, 40, 90, 91, 200, N]), np.array([0, 40, 60, 90, 91, 100, 200, N])),
    "blocks": (np.array([0, 40, 90, 91, 200, N]), np.array([0, 50, 100, 150, 200, 250, N])),
}


class Blocks(FakeCache):
    def __init__(self, conversations, sequences):
        super().__init__(np.zeros((N, D_IN), np.float32))
        self.conversation_offset, self.sequence_offset = conversations, sequences

    def conversation(self, rows):
        return np.searchsorted(self.conversation_offset, rows, side="right") - 1


@pytest.fixture(params=ORDERS)
def summed(request):
    """A cache, rows of it with gaps, their figures and subsets, and the sums in chunks of 37."""
    cache = Blocks(*ORDERS[request.param])
    rng = np.random.default_rng(0)
    rows = np.flatnonzero(rng.random(N) < 0.9)
    member = rng.random((len(rows), 3)) < [1.0, 0.5, 0.02]
    figures = {name: rng.gamma(3, 1, len(rows)) for name in BY_CELL}
    variance = rng.gamma(9, 1, (len(rows), 3))
    cells = Cells.of(cache, rows)
    inputs, errors = CellSums(cells, 3, ("n", "variance")), CellSums(cells, 3, BY_CELL)
    for start in range(0, len(rows), 37):
        here = slice(start, start + 37)
        inputs.add({"n": np.ones(len(rows[here])), "variance": variance[here]}, member[here], here)
        errors.add({name: values[here] for name, values in figures.items()}, member[here], here)
    return request.param, cache, rows, member, figures, variance, inputs, errors


def test_sums_by_conversation_are_those_of_a_loop(summed):
    order, cache, rows, member, figures, variance, inputs, errors = summed
    table = conversation_table(inputs, errors, D_IN)
    conversation = cache.conversation(rows)
    assert inputs.cells.conversations.tolist() == sorted(set(conversation.tolist()))
    for place, number in enumerate(inputs.cells.conversations):
        for subset in range(3):
            inside = (conversation == number) & member[:, subset]
            assert table["n"][place, subset] == inside.sum()
            assert table["variance"][place, subset] == pytest.approx(variance[inside, subset].sum(), rel=1e-12)
            for name in BY_CELL:
                assert table[name][place, subset] == pytest.approx(figures[name][inside].sum(), rel=1e-12)
    assert ("sequences" in table) == (order != "blocks")  # a block is no part of one conversation


def test_the_mean_of_sequence_means_is_that_of_a_loop(summed):
    _, cache, rows, member, figures, _, inputs, errors = summed
    means, there = sequence_means(inputs, errors, D_IN)
    sequence = cache.sequence(rows)
    for subset in range(3):
        values = [figures["squared_error"][(sequence == s) & member[:, subset]].mean() / D_IN
                  for s in np.unique(sequence[member[:, subset]])]
        assert means[:, subset].sum() / there[:, subset].sum() == pytest.approx(np.mean(values), rel=1e-12)


def test_intervals_equal_a_loop_over_resamples_of_whole_conversations(summed):
    order, cache, rows, member, figures, variance, inputs, errors = summed
    found = intervals(conversation_table(inputs, errors, D_IN), D_IN, has_latents=True)
    conversation, sequence = cache.conversation(rows), cache.sequence(rows)
    numbers = inputs.cells.conversations
    drawn = np.random.Generator(np.random.Philox(SEED)).integers(len(numbers), size=(1000, len(numbers)))
    loop = {"mse": [], "explained_variance": [], "cosine": [], "shrinkage": [], "l0": [], "mse_paper": []}
    for clusters in drawn:
        again = np.concatenate([np.flatnonzero((conversation == numbers[c]) & member[:, 1]) for c in clusters])
        error = figures["squared_error"][again].sum()
        loop["mse"].append(error / len(again) / D_IN)
        loop["explained_variance"].append(1 - error / variance[again, 1].sum())
        loop["cosine"].append(figures["cosine"][again].mean())
        loop["shrinkage"].append(figures["x_hat2"][again].sum() / figures["dot"][again].sum())
        loop["l0"].append(figures["active"][again].mean())
        means = []
        for c in clusters:
            here = (conversation == numbers[c]) & member[:, 1]
            means += [figures["squared_error"][here & (sequence == s)].mean() / D_IN for s in np.unique(sequence[here])]
        loop["mse_paper"].append(np.mean(means))
    for name, samples in loop.items():
        if name == "mse_paper" and order == "blocks":
            assert name not in found[1]
        else:
            assert found[1][name] == pytest.approx(np.quantile(samples, [0.025, 0.975]).tolist(), rel=1e-12), name
    assert "l0" not in intervals(conversation_table(inputs, errors, D_IN), D_IN, has_latents=False)[1]


def test_the_figures_of_all_sums_are_the_pooled_ones(summed):
    _, _, _, member, figures, _, inputs, errors = summed
    table = conversation_table(inputs, errors, D_IN)
    pooled = figures_of_sums({name: values.sum(0) for name, values in table.items()}, D_IN)
    assert pooled["mse"][0] == pytest.approx(figures["squared_error"][member[:, 0]].mean() / D_IN, rel=1e-12)


def test_one_conversation_has_no_interval():
    table = {name: np.ones((1, 2)) for name in ("n", "variance", *BY_CELL)}
    assert intervals(table, D_IN, has_latents=True) == [{}, {}]
