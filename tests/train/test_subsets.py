"""Subsets as unions of groups of rows."""

import numpy as np

from shared.format.tokens import Role, TokenClass, TokenType
from tests.train.fake_cache import FakeCache
from train.subsets import group_rows


def test_every_subset_has_the_rows_that_its_name_says():
    cache = FakeCache(np.zeros((400, 4), np.float32))
    cache.token_type[3] |= TokenType.SPECIAL | TokenType.BOS
    rows = np.arange(400)
    policy = rows % 3 == 0
    groups, group = group_rows(cache, rows, policy)
    member = {name: chosen[group] for name, chosen in groups.subsets().items()}
    classes, roles, types = cache.token_class, cache.role, cache.token_type
    assert member["all"].all()
    assert np.array_equal(member["all_without_first"], classes != TokenClass.FIRST)
    assert np.array_equal(member["policy"], policy)
    assert np.array_equal(member["content"], np.isin(classes, [TokenClass.USER, TokenClass.ASSISTANT]))
    assert np.array_equal(member["class:role_name"], classes == TokenClass.ROLE_NAME)
    assert np.array_equal(member["role:assistant"], roles == Role.ASSISTANT)
    special = ((types & (TokenType.SPECIAL | TokenType.ROLE_NAME)) != 0) & ((types & TokenType.BOS) == 0)
    assert np.array_equal(member["special"], special)
    assert np.array_equal(member["special_without_first"], special & (classes != TokenClass.FIRST))
    assert "class:bos" not in member


def test_a_system_role_name_is_no_special_token_of_the_paper():
    cache = FakeCache(np.zeros((40, 4), np.float32))
    cache.role[1] = Role.SYSTEM
    groups, group = group_rows(cache, np.arange(40), np.ones(40, bool))
    assert not groups.special[group[1]]
