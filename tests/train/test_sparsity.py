"""The coefficient that follows the L0."""

import math

import pytest
import torch

from train.sparsity import CoefficientController, FixedCoefficient, level_passed_by, levels_passed_by, share_at_start


@pytest.mark.parametrize(("times", "l0", "d_sae", "share"), [
    (8, 32, 4608, 256 / 4608), (16, 64, 4608, 1 / 8), (8, 3, 48, 1 / 4), (4, 32, 64, 1 / 2)])
def test_a_start_from_over_four_times_the_l0_keeps_to_an_eighth_of_the_latents(times, l0, d_sae, share):
    assert share_at_start(times, l0, d_sae) == pytest.approx(share)


@pytest.mark.parametrize(("share", "active"), [(1e-4, 1), (0.01, 1), (0.025, 2), (0.5, 50), (0.99, 99), (1.0, 99)])
def test_as_many_rows_exceed_a_latents_level_as_the_share_says(share, active):
    values = torch.randn(100, 7, generator=torch.Generator().manual_seed(0))
    level = levels_passed_by(share, values)
    assert ((values > level).sum(0) == active).all()
    assert levels_passed_by(share, values[:1]).shape == (7,)


def simulate(steps, slope=0.8, lag=0.05, drift=1.25):
    """An SAE whose log L0 follows -slope * log(coefficient), late, and that needs ever less of it while the rate is up.

    The drift is what layer 9 of the embedded model showed: the coefficient fell by e^1.25 over a whole run.
    """
    controller = CoefficientController(32.0, 1.0, steps)
    log_l0 = math.log(200.0)
    for step in range(steps):
        needed = drift * min(step / steps, 0.8)
        wanted = math.log(150.0) - slope * (float(controller.coefficient().log()) + needed)
        log_l0 += lag * (wanted - log_l0)
        controller.update(torch.tensor(math.exp(log_l0)), step)
    return controller, math.exp(log_l0)


def test_the_asked_l0_is_reached_in_short_and_long_runs_although_the_sae_learns():
    for steps in (500, 1000, 10_000):
        _, l0 = simulate(steps)
        assert 32 / 1.05 < l0 < 32 * 1.05, steps


def test_the_coefficient_is_frozen_at_the_end():
    controller = CoefficientController(32.0, 1.0, 100)
    for step in range(80):  # the coefficient of step 80 follows from them
        controller.update(torch.tensor(100.0), step)
    before = controller.coefficient().clone()
    for step in range(80, 100):
        controller.update(torch.tensor(5.0), step)
        assert torch.equal(controller.coefficient(), before)


def test_an_l0_that_cannot_be_reached_does_not_wind_it_up():
    controller = CoefficientController(32.0, 1.0, 100)
    for step in range(75):
        controller.update(torch.tensor(1000.0), step)
    assert controller.coefficient() <= 100 * math.e * 1.001


def test_a_fixed_coefficient_warms_up_linearly():
    fixed = FixedCoefficient(5.0, 10)
    values = []
    for step in range(12):
        values.append(float(fixed.coefficient()))
        fixed.update(torch.tensor(1.0), step)
    assert values[0] == 0.5
    assert values[9:] == [5.0, 5.0, 5.0]


def level_cases():
    """Values a row to pass, and batches: of all kinds, and with a first batch that is not like the others."""
    generator = torch.Generator().manual_seed(0)
    batches = list(torch.randn(1000, 40, generator=generator).split(128))
    unlike = [torch.full((4, 10), 5.0) + torch.arange(10), *(x.view(4, 10) for x in torch.arange(120.0).split(40))]
    return [*((per_row, batches) for per_row in (1, 2.5, 30)), (3, unlike), (5, [torch.tensor([[1.0, -2.0]] * 2)])]


def test_the_level_is_passed_by_exactly_as_many_values_as_asked():
    for per_row, batches in level_cases()[:3]:
        level = level_passed_by(per_row, batches, torch.flatten)
        assert sum(int((x > level).sum()) for x in batches) == per_row * 1000


def test_the_level_is_found_where_the_first_batch_is_not_like_the_others():
    per_row, batches = level_cases()[3]
    assert sum(int((x > level_passed_by(per_row, batches, torch.flatten)).sum()) for x in batches) == 48


def test_where_there_are_fewer_values_than_asked_all_of_them_pass():
    x = torch.tensor([[1.0, -2.0], [3.0, -4.0]])
    assert (x > level_passed_by(5, [x], torch.flatten)).all()


def test_where_there_is_no_value_at_all_the_level_is_zero():
    def positive(x):
        return x[x > 0]

    assert level_passed_by(5, [-torch.ones(4, 2)] * 3, positive) == 0
    # Nothing in the first batch, and then fewer than asked, or enough.
    later = [-torch.ones(4, 2), torch.tensor([[1.0, -2.0]] * 4), torch.tensor([[3.0, 4.0]] * 4)]
    assert (level_passed_by(5, later, positive) < 1).all()
    assert 1 <= level_passed_by(2 / 3, later, positive) < 3
