"""Figures and intervals from sums by conversation, against a calculation by hand."""

import numpy as np
import pytest

from pipelines.loss.figures import SCOPES, SUMS, LossSums, scope_figures


def table(num_conversations=6, seed=0):
    rng = np.random.default_rng(seed)
    n = rng.integers(20, 50, (num_conversations, len(SCOPES))).astype(float)
    means = {"ce": 2.0, "ce_spliced": 2.1, "kl": 0.1, "ce_zero": 10.0, "kl_zero": 8.0, "ce_mean": 5.0, "kl_mean": 3.0}
    return {"n": n, **{name: n * mean * rng.uniform(0.9, 1.1, n.shape) for name, mean in means.items()}}


def test_figures_are_ratios_of_sums():
    sums = table()
    found = scope_figures(sums)
    for number, scope in enumerate(SCOPES):
        n, ce, spliced, kl, zero, kl_zero, mean, kl_mean = (sums[name][:, number].sum() for name in SUMS)
        figures = found[scope]
        assert (figures["num_tokens"], figures["num_conversations"]) == (n, 6)
        assert figures["kl"] == pytest.approx(kl / n)
        assert figures["delta_ce"] == pytest.approx((spliced - ce) / n)
        assert figures["delta_ce_percent"] == pytest.approx(100 * (spliced - ce) / ce)
        assert figures["ce_recovered_zero"] == pytest.approx((zero - spliced) / (zero - ce))
        assert figures["ce_recovered_mean"] == pytest.approx((mean - spliced) / (mean - ce))
        assert (figures["kl_zero"], figures["kl_mean"]) == (pytest.approx(kl_zero / n), pytest.approx(kl_mean / n))
        for name, (low, high) in figures["intervals"].items():
            assert low < figures[name] < high


def test_an_ablation_that_does_no_damage_recovers_nothing_that_could_be_shared():
    sums = table()
    sums["ce_zero"] = sums["ce"] * 0.9
    for figures in scope_figures(sums).values():
        assert figures["ce_recovered_zero"] is None
        assert "ce_recovered_zero" not in figures["intervals"]
        assert figures["ce_recovered_mean"] is not None


def test_a_scope_without_predictions_has_no_figures_and_one_conversation_no_intervals():
    sums = {name: values[:1] * [0, 1, 1, 1] for name, values in table().items()}
    found = scope_figures(sums)
    assert found["assistant"]["num_tokens"] == 0
    assert {found["assistant"][name] for name in ("ce", "kl", "delta_ce", "ce_recovered_mean")} == {None}
    assert found["all"]["kl"] is not None
    assert found["all"]["intervals"] == {}


def test_values_go_to_their_conversation_in_every_scope_they_are_in():
    sums = LossSums(3, ("kl",))
    member = np.array([[True, False, True, True], [False, False, True, True], [True, True, True, False]])
    sums.add("kl", np.array([1.0, 10.0, 100.0]), np.array([2, 0, 2]), member)
    sums.add("kl", np.array([1000.0]), np.array([2]), member[:1])
    assert np.array_equal(sums.table["kl"], [[0, 0, 10, 10], [0, 0, 0, 0], [1101, 100, 1101, 1001]])
