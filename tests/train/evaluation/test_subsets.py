"""Subsets as unions of groups of rows."""

import numpy as np

from shared.format.tokens import Role, TokenClass, TokenType
from tests.train.fake_cache import FakeCache
from train.evaluation.subsets import group_rows, is_paired


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
    without_first = classes != TokenClass.FIRST
    assert np.array_equal(member["turn:0"], (cache.turn == 0) & without_first)
    assert np.array_equal(member["turn:1"], cache.turn == 1)
    position = np.arange(400) % 40
    assert np.array_equal(member["position:0"], position == 0)
    assert np.array_equal(member["position:1-15"], (position >= 1) & (position <= 15))
    assert np.array_equal(member["position:16-63"], position >= 16)
    special = ((types & (TokenType.SPECIAL | TokenType.ROLE_NAME)) != 0) & ((types & TokenType.BOS) == 0)
    assert np.array_equal(member["special"], special)
    assert np.array_equal(member["special_without_first"], special & (classes != TokenClass.FIRST))
    bos = (types & TokenType.BOS) != 0
    assert np.array_equal(member["special_and_bos"], special | bos)
    assert np.array_equal(member["special_and_bos_without_first"], (special | bos) & without_first)
    assert "class:bos" not in member
    for kind in ("class:", "role:", "turn:", "position:"):  # each of them parts the rows; the middle two without FIRST
        times = sum(mask.astype(int) for name, mask in member.items() if name.startswith(kind))
        assert np.array_equal(times > 0, without_first if kind in ("role:", "turn:") else np.ones(400, bool))
        assert times.max() == 1


def test_position_0_is_in_no_other_range_of_positions_where_blocks_cut_conversations():
    cache = FakeCache(np.zeros((400, 4), np.float32))
    cache.conversation_offset = np.array([0, 400])
    cache.conversation = np.zeros_like
    groups, group = group_rows(cache, np.arange(400), np.ones(400, bool))
    member = {name: chosen[group] for name, chosen in groups.subsets().items()}
    first = cache.token_class == TokenClass.FIRST
    assert np.flatnonzero(member["position:0"]).tolist() == [0]
    assert not (member["position:64-255"] & first).any()
    assert member["position:64-255"].sum() == 192 - first[64:256].sum()


def test_sums_by_conversation_are_kept_of_classes_positions_and_the_headline_figures():
    kept = [name for name in ("all", "all_without_first", "policy", "content", "special", "special_without_first",
                              "special_and_bos", "class:user", "role:user", "turn:0", "position:0") if is_paired(name)]
    assert kept == ["all_without_first", "policy", "content", "special", "special_without_first", "class:user",
                    "position:0"]


def test_a_system_role_name_is_no_special_token_of_the_paper():
    cache = FakeCache(np.zeros((40, 4), np.float32))
    cache.role[1] = Role.SYSTEM
    groups, group = group_rows(cache, np.arange(40), np.ones(40, bool))
    assert not groups.special[group[1]]
