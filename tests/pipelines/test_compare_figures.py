"""Figures and paired differences against brute force over rows, in float64, and against what is worked out by hand."""

import statistics
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.comparison.comparison import compare
from pipelines.comparison.measure import (
    COUNTS,
    HOLDS_ZERO,
    NO_INTERVAL,
    NO_SEEDS,
    OTHER_TOKENS,
    WITHIN_SEEDS,
    differences,
    verdict,
)
from pipelines.loss.figures import SUMS, loss_figures
from tests.pipelines.planted import Planted, Rows, make_rows, plant, plant_loss, write
from train.evaluation import bootstrap
from train.evaluation.paired import pairing

METRICS = ("explained_variance", "mse", "log2_mse", "normalised_error", "cosine", "l0")


def draws(num_conversations):
    """Which conversations each resample has, as `bootstrap.resamples` draws them: 50 at a time."""
    generator = np.random.Generator(np.random.Philox(bootstrap.SEED))
    return np.concatenate([generator.integers(num_conversations, size=(50, num_conversations)) for _ in range(20)])


def brute_interval(saes, others, subset, metric):
    """The interval of the difference of mean figures, each resample put together row by row."""
    rows = saes[0].rows
    of_conversation = [np.flatnonzero(rows.conversation == number) for number in range(rows.num_conversations)]
    found = []
    for drawn in draws(rows.num_conversations):
        take = np.concatenate([of_conversation[number] for number in drawn])
        means = [statistics.fmean(sae.figure(subset, metric, take) for sae in side) for side in (saes, others)]
        found.append(means[0] - means[1])
    return np.quantile(found, [0.025, 0.975])


def row_of(comparison, subset, metric):
    return next(row for row in comparison.differences if (row.subset, row.metric) == (subset, metric))


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    """Two sets of two seeds each on the same rows, as planted and as compared; the second a little worse."""
    folder, rows = tmp_path_factory.mktemp("sets"), make_rows()
    first = [plant(rows, 0.30, seed) for seed in (1, 2)]
    second = [plant(rows, 0.33, seed) for seed in (3, 4)]
    folders = [write(folder / f"first{seed}", sae, seed=seed) for seed, sae in enumerate(first)]
    folders += [write(folder / f"second{seed}", sae, seed=seed, batch_size=16) for seed, sae in enumerate(second)]
    return first, second, compare(folders)


@pytest.mark.parametrize("metric", METRICS)
def test_a_figure_of_a_set_is_the_mean_over_its_seeds_with_their_standard_deviation_beside_it(sets, metric):
    first, _, comparison = sets
    for subset in ("content", "class:assistant"):
        row = comparison.measured[0].figures[subset, metric]
        values = [sae.figure(subset, metric) for sae in first]
        assert row.value == pytest.approx(np.mean(values), rel=1e-14)
        assert row.seed_sd == pytest.approx(np.std(values, ddof=1), rel=1e-9)
        assert row.num_saes == 2


@pytest.mark.parametrize("metric", METRICS)
def test_the_interval_of_a_difference_is_that_of_putting_the_drawn_rows_together_anew(sets, metric):
    first, second, comparison = sets
    row = row_of(comparison, "content", metric)
    expected = brute_interval(second, first, "content", metric)
    # Sums in another order; a difference of figures loses digits.
    assert [row.low, row.high] == pytest.approx(expected, rel=1e-9, abs=1e-12)
    values = [statistics.fmean(sae.figure("content", metric) for sae in side) for side in (second, first)]
    assert row.difference == pytest.approx(values[0] - values[1], rel=1e-12, abs=1e-15)
    spread = [statistics.variance([sae.figure("content", metric) for sae in side]) for side in (first, second)]
    assert row.seed_sd == pytest.approx(sum(spread) ** 0.5, rel=1e-9)


def test_two_conversations_by_hand(tmp_path):
    # One row of each of two conversations. Squared errors 1 and 3 against 2 and 2: the means are equal, and of four
    # equally likely draws (aa, ab, ba, bb) the difference is -1, 0, 0 and 1; a quarter is far over 2.5 %.
    rows = Rows(np.array([0, 1]), np.array([5, 6], np.uint64), np.full((2, 4), 3.0) + np.arange(2)[:, None],
                np.ones((2, 7), bool))

    def sae(errors):
        return Planted(rows, rows.x - np.sqrt(np.array(errors) / 4)[:, None], np.array([32, 32]))

    folders = [write(tmp_path / "a", sae([2, 2])), write(tmp_path / "b", sae([1, 3]), batch_size=16)]
    row = row_of(compare(folders), "content", "mse")
    assert row.difference == pytest.approx(0, abs=1e-15)
    assert [row.low, row.high] == pytest.approx([-1 / 4, 1 / 4], rel=1e-12)
    assert row.verdict == HOLDS_ZERO


def test_an_sae_and_its_copy_differ_by_nothing(tmp_path):
    sae = plant(make_rows())
    comparison = compare([write(tmp_path / name, sae) for name in ("one", "two")])
    assert len(comparison.sets) == 2  # the same seed twice is no set of seeds
    assert comparison.differences
    for row in comparison.differences:
        assert (row.difference, row.low, row.high, row.verdict) == (0.0, 0.0, 0.0, HOLDS_ZERO)


def test_a_small_planted_shift_is_found_though_intervals_of_the_figures_overlap(tmp_path):
    rows = make_rows(40, seed=3)
    sae = plant(rows, 0.3, seed=1)
    better = Planted(rows, rows.x + 0.97 * (sae.x_hat - rows.x), sae.active)
    comparison = compare([write(tmp_path / "a", sae), write(tmp_path / "b", better, batch_size=16)])
    one, other = (found.figures["content", "mse"] for found in comparison.measured)
    assert other.high > one.low  # one by one, they could be the same
    row = row_of(comparison, "content", "mse")
    assert row.difference == pytest.approx((0.97**2 - 1) * one.value, rel=1e-9)
    assert row.high < 0
    assert row.verdict == NO_SEEDS


def test_a_difference_between_figures_of_other_tokens_never_counts(sets):
    found, reference = sets[2].measured[1], sets[2].measured[0]
    key = ("content", "mse")
    fewer = replace(found, figures=found.figures | {key: replace(found.figures[key], num_rows=7)})
    verdicts = {(row.subset, row.metric): row.verdict for row in differences(fewer, reference)}
    assert verdicts[key] == OTHER_TOKENS
    assert COUNTS in verdicts.values()


def test_conversations_in_another_order_are_paired_all_the_same(tmp_path):
    rows = make_rows()
    sae, other = plant(rows, 0.3, 1), plant(rows, 0.35, 2)
    shuffled, taken = rows.reordered(np.random.default_rng(5).permutation(rows.num_conversations))
    again = Planted(shuffled, other.x_hat[taken], other.active[taken])
    first = write(tmp_path / "a", sae)
    here = compare([first, write(tmp_path / "b", other, batch_size=16)]).differences
    there = compare([first, write(tmp_path / "c", again, batch_size=16)]).differences
    for row, same in zip(here, there, strict=True):
        assert (row.low, row.high) == pytest.approx((same.low, same.high), rel=1e-9, abs=1e-12)


@given(st.lists(st.integers(0, 5), max_size=12), st.randoms())
def test_pairing_puts_keys_into_the_order_of_others_and_refuses_other_keys(keys, random):
    others = [*keys]
    random.shuffle(others)
    keys, others = np.array(keys, np.uint64), np.array(others, np.uint64)
    places = pairing(keys, others)
    assert sorted(places.tolist()) == list(range(len(keys)))
    assert (keys[places] == others).all()
    for key in set(keys.tolist()):  # those of equal content stay in their order
        assert (np.diff(places[others == key]) > 0).all()
    assert pairing(np.append(keys, np.uint64(9)), others) is None
    if len(keys):
        assert pairing(np.append(keys[1:], np.uint64(9)), others) is None


@pytest.mark.parametrize(("difference", "low", "high", "seed_sd", "expected"), [
    pytest.param(0.5, 0.4, 0.6, 0.1, COUNTS, id="counts"),
    pytest.param(-0.5, -0.6, -0.4, 0.1, COUNTS, id="counts-below"),
    pytest.param(0.5, 0.4, 0.6, 0.5, WITHIN_SEEDS, id="seeds-do-as-much"),
    pytest.param(0.5, -0.1, 0.9, 0.1, HOLDS_ZERO, id="holds-0"),
    pytest.param(0.5, 0.0, 0.9, 0.1, HOLDS_ZERO, id="ends-at-0"),
    pytest.param(0.5, 0.4, 0.6, None, NO_SEEDS, id="one-seed"),
    pytest.param(0.5, None, None, 0.1, NO_INTERVAL, id="one-conversation"),
])
def test_an_effect_counts_where_its_interval_leaves_out_0_and_it_exceeds_the_seeds(difference, low, high, seed_sd,
                                                                                   expected):
    assert verdict(difference, low, high, seed_sd) == expected


def test_the_figures_of_the_loss_are_those_of_brute_force_over_tokens(tmp_path):
    rows = make_rows()
    losses = [plant_loss(rows, 0.10, 1), plant_loss(rows, 0.14, 2)]
    folders = [write(tmp_path / name, plant(rows), loss=loss, batch_size=size)
               for name, loss, size in zip("ab", losses, (8, 16), strict=True)]
    comparison = compare(folders)
    of_conversation = [np.flatnonzero(rows.conversation == number) for number in range(rows.num_conversations)]
    for scope in ("all_without_first", "assistant_without_first"):
        for metric in ("kl", "delta_ce", "ce_recovered_mean", "ce_recovered_zero"):
            row = row_of(comparison, f"conversations:{scope}", metric)
            found = []
            for drawn in draws(rows.num_conversations):
                take = np.concatenate([of_conversation[number] for number in drawn])
                found.append(losses[1].figure(scope, metric, take) - losses[0].figure(scope, metric, take))
            assert row.value == pytest.approx(losses[1].figure(scope, metric), rel=1e-9)
            assert [row.low, row.high] == pytest.approx(np.quantile(found, [0.025, 0.975]), rel=1e-9, abs=1e-12)
            assert row.num_rows == losses[1].scopes()[scope].sum()


def test_ce_recovered_by_hand():
    of = {"n": 10.0, "ce": 20.0, "ce_spliced": 25.0, "kl": 4.0, "ce_zero": 120.0, "ce_mean": 60.0}
    sums = {name: np.array([of.get(name, 1.0)]) for name in SUMS}
    found = {name: float(value[0]) for name, value in loss_figures(sums).items()}
    expected = {"kl": 0.4, "delta_ce": 0.5, "delta_ce_percent": 25, "ce_recovered_mean": 35 / 40,
                "ce_recovered_zero": 0.95}
    assert {name: found[name] for name in expected} == pytest.approx(expected, rel=1e-12)
    assert np.isnan(loss_figures(sums | {"ce_mean": sums["ce"]})["ce_recovered_mean"])  # nothing was damaged


def test_losses_on_other_conversations_are_left_out_and_it_is_said(tmp_path):
    rows, others = make_rows(), make_rows(seed=7)
    folders = [write(tmp_path / "a", plant(rows), loss=plant_loss(rows)),
               write(tmp_path / "b", plant(rows), loss=plant_loss(others), batch_size=16),
               write(tmp_path / "c", plant(rows), batch_size=32)]
    comparison = compare(folders)
    assert not [row for row in comparison.differences if row.metric == "kl"]
    notes = " ".join(comparison.notes)
    assert f"loss of {folders[1]} was measured on other conversations" in notes
    assert f"known of 2 of 3 SAEs: {folders[2]}" in notes


def test_a_subset_that_one_conversation_has_alone_has_no_interval(tmp_path):
    rows = make_rows()
    rows.member[:, 0] &= rows.conversation == 3
    comparison = compare([write(tmp_path / "a", plant(rows)), write(tmp_path / "b", plant(rows, 0.4), batch_size=16)])
    assert row_of(comparison, "content", "mse").verdict == NO_INTERVAL
    assert row_of(comparison, "policy", "mse").verdict == NO_SEEDS


def test_one_conversation_has_figures_and_no_intervals(tmp_path):
    rows = make_rows(1)
    comparison = compare([write(tmp_path / "a", plant(rows)), write(tmp_path / "b", plant(rows, 0.4), batch_size=16)])
    assert {row.verdict for row in comparison.differences} == {NO_INTERVAL}
