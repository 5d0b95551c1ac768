"""Token policies."""

import numpy as np
import pytest

from shared.errors import DataError, RecipeError
from shared.format.tokens import Role, TokenClass
from shared.recipe import read_table
from tests.train.fake_cache import FakeCache
from train.policy import TokenPolicy, keeps, median_norm, training_mask


@pytest.fixture
def cache():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((4000, 8)).astype(np.float32)
    x[::40] *= 1000  # the sink
    x[17] *= 100
    return FakeCache(x, num_train_rows=3200)


def test_the_default_drops_position_0_and_outlier_norms_and_nothing_else(cache):
    mask = training_mask(cache, 3, TokenPolicy())
    dropped = np.flatnonzero(~mask[:3200])
    assert set(dropped) == {*range(0, 3200, 40), 17}


def test_held_out_rows_are_never_trained_on(cache):
    assert not training_mask(cache, 3, TokenPolicy(drop_classes=(), max_norm=None))[3200:].any()


def test_only_the_given_units_are_trained_on(cache):
    mask = training_mask(cache, 3, TokenPolicy(), units=[1])
    assert set(np.flatnonzero(mask) // 1024) == {1}


@pytest.mark.parametrize(("fields", "expected"), [
    ({"keep_classes": ("assistant",)}, lambda c, r: c.token_class[r] == TokenClass.ASSISTANT),
    ({"drop_classes": ("user", "first")}, lambda c, r: ~np.isin(c.token_class[r], [TokenClass.USER, TokenClass.FIRST])),
    ({"keep_roles": ("user",), "drop_classes": ()}, lambda c, r: c.role[r] == Role.USER),
    ({"drop_roles": ("user",)}, lambda c, r: c.role[r] != Role.USER),
    ({"keep_types": ("role_name", "first"), "drop_classes": ()}, lambda c, r: c.position(r) < 2),
    ({"drop_types": ("template",)}, lambda c, r: c.position(r) > 2),
    ({"min_turn": 1}, lambda c, r: c.turn[r] == 1),
    ({"max_turn": 0, "drop_classes": ()}, lambda c, r: c.turn[r] == 0),
    ({"min_position": 5, "max_position": 9}, lambda c, r: (c.position(r) >= 5) & (c.position(r) <= 9)),
])
def test_each_condition_keeps_what_it_says(cache, fields, expected):
    rows = np.arange(4000)
    policy = TokenPolicy(max_norm=None, **fields)
    assert np.array_equal(keeps(cache, 3, policy, rows, 1.0), expected(cache, rows))


def test_the_median_is_over_training_rows(cache):
    norms = cache.layer(3).norm(np.arange(3200))
    assert median_norm(cache, 3) == pytest.approx(np.median(norms))


def test_an_unknown_class_is_refused_with_the_known_ones():
    with pytest.raises(RecipeError, match=r"must be among first, bos.*got \['frist'\]"):
        read_table(TokenPolicy, {"drop_classes": ["frist"]}, "[train.policy]")


def test_a_policy_that_keeps_nothing_is_refused(cache):
    with pytest.raises(DataError, match="keeps none of the 3,200 training rows"):
        training_mask(cache, 3, TokenPolicy(keep_classes=("system",)))
