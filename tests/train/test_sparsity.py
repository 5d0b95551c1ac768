"""The coefficient that follows the L0."""

import math

import torch

from train.sparsity import CoefficientController, FixedCoefficient


def simulate(steps, slope=0.8, lag=0.05):
    """An SAE whose log L0 follows -slope * log(coefficient), late."""
    controller = CoefficientController(32.0, 1.0, steps)
    log_l0 = math.log(200.0)
    for step in range(steps):
        wanted = math.log(150.0) - slope * float(controller.coefficient().log())
        log_l0 += lag * (wanted - log_l0)
        controller.update(torch.tensor(math.exp(log_l0)), step)
    return controller, math.exp(log_l0)


def test_the_asked_l0_is_reached_in_short_and_long_runs():
    for steps in (200, 1000, 10_000):
        _, l0 = simulate(steps)
        assert 28 < l0 < 36, steps


def test_the_coefficient_is_frozen_at_the_end():
    controller = CoefficientController(32.0, 1.0, 100)
    for step in range(85):
        controller.update(torch.tensor(100.0), step)
    before = controller.coefficient().clone()
    for step in range(85, 100):
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
