"""What a unit computes: properties over all offsets, units and budgets."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from harvest.units import UnitReader, fill, make_batches, unit_pieces
from shared.format.layout import Geometry

lengths = st.lists(st.integers(1, 400), min_size=1, max_size=40)


def offsets(lengths):
    return np.cumsum([0, *lengths], dtype=np.int64)


@given(lengths=lengths, blocks_per_shard=st.integers(1, 4), shards=st.integers(1, 3))
def test_each_row_is_kept_exactly_once_over_all_units(lengths, blocks_per_shard, shards):
    offset = offsets(lengths)
    geometry = Geometry(int(offset[-1]), int(offset[-1]), 8, 128 * blocks_per_shard, shards)
    kept = np.zeros(geometry.num_rows, int)
    for unit in range(geometry.num_units):
        for piece in unit_pieces(offset, geometry.unit_rows(unit)):
            assert piece.start in offset  # a sequence runs from its beginning
            assert piece.start <= piece.keep < piece.stop
            assert piece.stop <= geometry.unit_rows(unit).stop
            kept[piece.keep : piece.stop] += 1
    assert (kept == 1).all()


@given(lengths=lengths, budget=st.integers(1, 1000))
def test_batches_hold_every_piece_once_within_the_budget(lengths, budget):
    offset = offsets(lengths)
    pieces = unit_pieces(offset, range(int(offset[-1])))
    batches = make_batches(pieces, budget)
    assert sorted((piece for batch in batches for piece in batch), key=lambda piece: piece.start) == pieces
    for batch in batches:
        assert len(batch[0]) == max(map(len, batch))
        assert len(batch) * len(batch[0]) <= budget or len(batch) == 1
    assert 0 < fill(batches) <= 1


def test_batches_follow_from_lengths_alone_and_are_longest_first():
    pieces = unit_pieces(offsets([3, 10, 10, 1]), range(24))
    assert [[piece.start for piece in batch] for batch in make_batches(pieces, 20)] == [[3, 13], [0, 23]]


def test_token_ids_are_right_padded_and_those_of_the_plan(cache):
    reader = UnitReader(cache)
    for batch in reader.batches(cache.num_units - 1):
        ids = reader.token_ids(batch)
        assert ids.shape == (len(batch), len(batch[0]))
        for line, piece in zip(ids, batch, strict=True):
            assert (line[: len(piece)] == cache.token_id[piece.start : piece.stop]).all()
