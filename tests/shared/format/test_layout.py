"""Where rows lie: sizes that add up for any geometry."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.errors import CorruptError
from shared.format.layout import BLOCK_ROWS, Geometry, inside

geometries = st.builds(
    lambda rows, train, d_model, blocks, shards: Geometry(rows, min(train, rows), d_model, 128 * blocks, shards),
    st.integers(1, 5000), st.integers(1, 5000), st.integers(1, 16), st.integers(1, 5), st.integers(1, 4),
)


@given(geometry=geometries)
def test_units_shards_and_blocks_cover_all_rows_once(geometry):
    by_unit = [row for unit in range(geometry.num_units) for row in geometry.unit_rows(unit)]
    by_shard = [row for shard in range(geometry.num_shards) for row in geometry.shard_rows(shard)]
    assert by_unit == by_shard == list(range(geometry.num_rows))
    shards = [shard for unit in range(geometry.num_units) for shard in geometry.unit_shards(unit)]
    assert shards == list(range(geometry.num_shards))
    assert sum(map(geometry.shard_blocks, shards)) == geometry.num_blocks
    assert sum(map(geometry.train_rows_of, range(geometry.num_units))) == geometry.num_train_rows


@given(geometry=geometries, data=st.data())
def test_a_shards_index_points_at_its_blocks_and_marks_the_rest_missing(geometry, data):
    shard = data.draw(st.integers(0, geometry.num_shards - 1))
    index = geometry.shard_index(shard)
    assert len(index) == geometry.index_bytes
    assert geometry.shard_bytes(shard) == geometry.shard_blocks(shard) * geometry.block_stride + len(index)
    table = np.frombuffer(index[:-4], "<u8").reshape(-1, 2)
    assert len(table) == geometry.rows_per_shard // BLOCK_ROWS
    present = table[: geometry.shard_blocks(shard)]
    assert (present[:, 1] == geometry.block_stride).all()
    assert (np.diff(present[:, 0]) == geometry.block_stride).all()
    assert (table[geometry.shard_blocks(shard) :] == 2**64 - 1).all()


@given(geometry=geometries, wanted=st.integers(1, 6000), more=st.integers(0, 3000))
def test_held_out_units_come_first_and_more_tokens_only_add_units(geometry, wanted, more):
    order = geometry.fill_order(wanted)
    held_out = [unit for unit in range(geometry.num_units) if geometry.unit_rows(unit).stop > geometry.num_train_rows]
    assert order[: len(held_out)] == held_out
    assert len(set(order)) == len(order)
    assert sum(map(geometry.train_rows_of, order)) >= min(wanted, geometry.num_train_rows)
    assert sum(map(geometry.train_rows_of, order[:-1])) < wanted or len(order) == len(held_out)
    assert geometry.fill_order(wanted + more)[: len(order)] == order
    assert sorted(geometry.fill_order(None)) == list(range(geometry.num_units))


@given(path=st.text(st.sampled_from("ab./~ "), max_size=12))
def test_a_named_file_lies_inside_its_folder_or_is_refused(path, tmp_path_factory):
    folder = tmp_path_factory.getbasetemp() / "cache"
    try:
        named = inside(folder, path)
    except CorruptError:
        return
    assert folder.resolve() in named.resolve().parents


@pytest.mark.parametrize("path", ["/etc/passwd", "../x", "a/../../x", "", "."])
def test_a_path_that_leads_out_is_refused(path, tmp_path):
    with pytest.raises(CorruptError):
        inside(tmp_path, path)
