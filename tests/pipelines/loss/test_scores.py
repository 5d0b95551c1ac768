"""Cross-entropy and KL against their definitions in float64."""

import pytest
import torch

from pipelines.loss import scores
from pipelines.loss.scores import score

N = 43


@pytest.fixture(autouse=True)
def _in_pieces(monkeypatch):
    """Of at most 20 predictions: the tiny model has about 440 logits."""
    monkeypatch.setitem(scores._PIECE_BYTES, "cpu", 20 * 4 * 450)


@pytest.fixture
def hidden():
    return torch.randn(N, 32, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def targets():
    return torch.randint(0, 300, (N,), generator=torch.Generator().manual_seed(1))


def test_they_are_those_of_the_definition_over_all_rows_at_once(model, hidden, targets):
    other = hidden + 0.5 * torch.randn(N, 32, generator=torch.Generator().manual_seed(2))
    ce, found = score(model.split, hidden, {"other": other}, targets)
    p, q = (torch.log_softmax(model.split.logits(h).double(), dim=1) for h in (hidden, other))
    each = torch.arange(N)
    # float32 logits of a few tens: 1e-6 of that.
    assert torch.from_numpy(ce) == pytest.approx(-p[each, targets], abs=2e-5)
    assert torch.from_numpy(found["other"].ce) == pytest.approx(-q[each, targets], abs=2e-5)
    assert torch.from_numpy(found["other"].kl) == pytest.approx((p.exp() * (p - q)).sum(1), abs=2e-5)
    assert (found["other"].kl > 0).all()


def test_equal_predictions_have_a_kl_of_exactly_0(model, hidden, targets):
    ce, found = score(model.split, hidden, {"same": hidden.clone()}, targets)
    assert (found["same"].kl == 0).all()
    assert (found["same"].ce == ce).all()


def test_predictions_that_are_nearly_certain_lose_no_digits(model, hidden, targets):
    """log(softmax(...)) would take the logarithm of 0."""
    certain = hidden * 300
    _, found = score(model.split, certain, {"other": -certain}, targets)
    p, q = (torch.log_softmax(model.split.logits(h).double(), dim=1) for h in (certain, -certain))
    assert torch.from_numpy(found["other"].kl) == pytest.approx((p.exp() * (p - q)).sum(1), rel=1e-5)
