"""Which conversations a plan holds, and in what order."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from harvest.selection import CHOSEN, HELD_OUT_SHARE, Place, Placer, Smallest

keys = st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=60)


def entry(place, length):
    return np.array([(*place.sort_key, 0, 0, length, 0, 0, 0)], CHOSEN)


def select(places, max_rows, max_conversations=None):
    smallest = Smallest(max_rows, max_conversations)
    for place, length in places:
        if smallest.may_take(place):
            smallest.add(entry(place, length))
    return [Place(*map(int, item.item()[:3])) for item in smallest.chosen()]


@given(keys=keys, data=st.data(), seed=st.integers(0, 3))
def test_places_depend_on_keys_and_not_on_the_order_of_arrival(keys, data, seed):
    shuffled = data.draw(st.permutations(keys))
    one, other = Placer(seed), Placer(seed)
    assert sorted(map(repr, map(one.place, keys))) == sorted(map(repr, map(other.place, shuffled)))


@given(
    ranked=st.dictionaries(st.integers(0, 2**63 - 1), st.integers(1, 9_000), min_size=1, max_size=60),
    data=st.data(),
    max_rows=st.integers(1, 40_000),
)
def test_the_choice_is_the_shortest_prefix_that_reaches_the_limit_whatever_arrives_first(ranked, data, max_rows):
    placer = Placer(0)
    places = [(placer.place(key + 2**63)[0], length) for key, length in ranked.items()]
    expected, rows = [], 0
    for place, length in sorted(places, key=lambda item: item[0].sort_key):
        if rows >= max_rows:
            break
        expected.append(place)
        rows += length
    assert select(places, max_rows) == expected
    assert select(data.draw(st.permutations(places)), max_rows) == expected


def test_memory_is_bounded_by_the_limit_and_not_by_the_data_set():
    placer, smallest, most = Placer(0), Smallest(20_000), 0
    rng = np.random.default_rng(0)
    for key in rng.integers(2**62, 2**63, 3_000):
        place, _ = placer.place(int(key))
        if smallest.may_take(place):
            smallest.add(entry(place, 100))
        most = max(most, smallest._conversations)
    assert most <= 402  # half more than the limit, and the constant: 40,000 rows of 100
    assert len(smallest.chosen()) == 200


def test_a_number_of_conversations_limits_the_choice_too():
    placer = Placer(0)
    places = [(placer.place(key)[0], 10) for key in range(2**62, 2**62 + 500)]
    expected = sorted((place for place, _ in places), key=lambda place: place.sort_key)[:7]
    assert select(places, None, 7) == expected


@given(keys=keys, seeds=st.tuples(st.integers(0, 9), st.integers(0, 9)))
def test_what_is_held_out_follows_from_the_key_alone_in_every_plan(keys, seeds):
    held_out = [[Placer(seed).place(key)[1] for key in keys] for seed in seeds]
    assert held_out[0] == held_out[1] == [key < int(HELD_OUT_SHARE * 2**64) for key in keys]


def test_the_held_out_share_is_four_percent_for_ever():
    assert HELD_OUT_SHARE == 0.04


def test_held_out_conversations_are_those_of_lowest_keys_whatever_the_seed():
    keys = [5, 3, 9, 3]
    for seed in range(3):
        placer = Placer(seed)
        places = [(placer.place(key)[0], 10) for key in keys]
        assert [(place.key, place.occurrence) for place in select(places, 25)] == [(3, 0), (3, 1), (5, 0)]


def test_the_seed_changes_the_order_of_training():
    def order(seed):
        placer = Placer(seed)
        return [place.key for place in select([(placer.place(key)[0], 1) for key in range(2**62, 2**62 + 50)], None)]

    assert order(0) != order(1)
    assert sorted(order(0)) == sorted(order(1))
