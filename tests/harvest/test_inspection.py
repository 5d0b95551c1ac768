"""The statistics of conversations: counts that add up, and figures that can be checked by hand."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from harvest.inspection import Evenly, Statistics, bars, histogram, quantiles, scripts
from harvest.template import ChatTemplate
from shared.format.tokens import Role, TokenClass
from tests import tiny

numbers = st.lists(st.integers(1, 20_000), min_size=1, max_size=60)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("Hello, 7 wörld!", {"Latin": 10}),
        ("你好 world", {"Han": 2, "Latin": 5}),
        ("Привет", {"Cyrillic": 6}),
        ("مرحبا", {"Arabic": 5}),
        ("שלום", {"Hebrew": 4}),
        ("नमस्ते", {"Devanagari": 4}),  # the vowel sign and the virama are marks, no letters
        ("こカ", {"Kana": 2}),
        ("한국", {"Hangul": 2}),
        ("Ａﬁ", {"Latin": 2}),  # full-width, and a ligature
        ("🤷 12 ,;", {}),
    ],
)
def test_letters_are_counted_by_script(text, found):
    assert scripts(text) == found


@given(st.text())
def test_every_letter_has_one_script(text):
    assert sum(scripts(text).values()) == sum(char.isalpha() for char in text)


@given(numbers, st.floats(0, 1))
def test_a_quantile_is_the_smallest_value_that_so_many_do_not_exceed(values, share):
    [found] = quantiles(values, [share])
    assert found in values
    assert sum(value <= found for value in values) >= share * len(values) - 1e-9
    assert sum(value < found for value in values) <= share * len(values) + 1e-9


@given(numbers)
def test_a_histogram_counts_every_value_in_the_bin_that_holds_it(values):
    for bar in histogram(values):
        first, _, last = bar.label.replace(",", "").partition(" to ")
        assert bar.count == sum(int(first) <= value <= int(last or first) for value in values)
    assert sum(bar.count for bar in histogram(values)) == len(values)


def test_shares_are_of_all():
    assert [(bar.label, bar.count, bar.share) for bar in bars([("a", 3), ("b", 1)])] == [("a", 3, 0.75), ("b", 1, 0.25)]


@given(st.integers(1, 20), st.integers(0, 2_000))
def test_items_are_taken_evenly_from_a_stream_in_bounded_memory(limit, total):
    chosen = Evenly(limit)
    for number in range(total):
        chosen.add(number)
        assert len(chosen._kept) <= 2 * limit
    items = chosen.items()
    assert len(items) == min(limit, total)
    if total > limit > 1:
        gaps = np.diff([*items, total])
        assert items[0] == 0
        assert gaps[:-1].max() <= 2 * gaps[:-1].min()
        assert gaps[-1] <= 3 * gaps[:-1].max()


SAID = [
    [("user", "hello there"), ("assistant", "fine <|im_end|> café")],
    [("system", "short lines"), ("user", "how"), ("assistant", ""), ("user", "你好")],
    [("user", "one")],
]


def counted(family, said=SAID, cut=10_000):
    tokenizer = tiny.make_tokenizer(family)
    template = ChatTemplate(tokenizer, {"date_string": "today"})
    seen = Statistics()
    encoded = template.encode([tiny.conversation(*turns) for turns in said])
    for number, one in enumerate(encoded):
        seen.add(one.cut(cut), tokenizer.backend_tokenizer.decode, len(one), number % 2, len(one) > cut)
    return seen, encoded


def test_figures_of_conversations_that_are_counted_by_hand():
    seen, encoded = counted("chatml")
    assert seen.num_conversations == 3
    assert seen.lengths == [len(one) for one in encoded]
    assert seen.num_tokens == sum(seen.lengths) == sum(seen.by_class.values()) == sum(seen.by_role.values())
    assert seen.by_source == {0: len(encoded[0]) + len(encoded[2]), 1: len(encoded[1])}
    assert seen.turns == [2, 3, 1]  # an empty message holds no text
    assert (seen.num_system, seen.num_default_system, seen.num_escaped) == (1, 2, 1)
    assert seen.default_system == tiny.DEFAULT_SYSTEM
    assert seen.num_bos == 0  # ChatML's first token opens a turn
    assert seen.scripts == Counter({"Latin": sum(map(len, ["hellothere", "finecaféimend", "shortlines", "how", "one"])),
                                    "Han": 2})
    for kind in TokenClass:
        assert seen.by_class[kind] == sum((one.token_class == kind).sum() for one in encoded)
    for role in Role:
        assert seen.by_role[role] == sum((one.role == role).sum() for one in encoded)


def test_a_bos_is_seen_whatever_the_class_of_position_0():
    seen, _ = counted("llama3")
    assert seen.num_bos == 3
    assert seen.first_ids == {tiny.make_tokenizer("llama3").bos_token_id: 3}
    assert seen.num_default_system == 0


def test_tokens_are_those_after_the_cut_and_lengths_those_before():
    seen, encoded = counted("chatml", cut=8)
    assert seen.num_tokens == 24
    assert seen.num_truncated == 3
    assert seen.lengths == [len(one) for one in encoded]
