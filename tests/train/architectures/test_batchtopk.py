"""BatchTopK's choice and its threshold."""

import pytest
import torch

from train.architectures.base import RunLength
from train.architectures.batchtopk import BatchTopKSAE, largest


def make(k=4, d_sae=64, d_in=16):
    return BatchTopKSAE(BatchTopKSAE.Config(k=k, d_sae=d_sae), d_in, RunLength(100, 32))


def test_the_choice_is_the_flat_topk_wherever_the_search_begins():
    generator = torch.Generator().manual_seed(0)
    sae = make()
    for scale in (1.0, 1.0, 5.0, 0.1, 1.0):
        pre_acts = torch.randn(32, 64, generator=generator) * scale
        expected = torch.topk(pre_acts.flatten(), 4 * 32).indices.sort().values
        assert torch.equal(sae.choose(pre_acts), expected)


def test_fewer_positive_pre_activations_than_asked_are_all_taken():
    pre_acts = -torch.ones(32, 64)
    pre_acts[3, 5] = 1.0
    assert make().choose(pre_acts).tolist() == [3 * 64 + 5]


def test_the_running_threshold_is_right_from_the_first_step():
    sae = make()
    x = torch.randn(32, 16)
    sae.after_step(sae.loss(x, 0), 32, 0)
    torch.testing.assert_close(sae.threshold[0], sae._batch_threshold)


def test_calibration_brings_the_mean_l0_of_training_rows_to_k():
    sae = make()
    x = torch.randn(4096, 16)
    sae.after_step(sae.loss(x[:32], 0), 32, 0)
    for start in (1.0, 100.0):
        sae.threshold_sum.copy_(sae.threshold_weight * start)
        sae.calibrate(list(x.split(512)))
        assert abs((sae.encode(x) > 0).sum(1).float().mean() - 4) < 0.01


@pytest.mark.parametrize(("number", "wanted"), [(4096, 16), (4096, 4096), (4096, 1), (4095, 60), (12 * 96, 5 * 12)])
def test_the_largest_by_groups_are_those_of_a_flat_topk(number, wanted):
    values = torch.randn(number, generator=torch.Generator().manual_seed(number + wanted))
    assert torch.equal(largest(values, wanted), torch.topk(values, wanted).indices.sort().values)


def test_of_equal_values_the_largest_takes_as_many_as_asked():
    values = torch.zeros(1024)
    values[[3, 700]] = 1.0
    found = largest(values, 10)
    assert len(set(found.tolist())) == 10
    assert {3, 700} <= set(found.tolist())
