"""Choosing and reading rows: the notebook's reader."""

from concurrent.futures import ThreadPoolExecutor

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from shared import open_cache as exported
from shared.errors import RecipeError
from shared.format.layout import Geometry
from shared.format.tokens import Role, TokenClass, TokenType
from shared.reading.cache import open_cache
from tests.shared import small

GEOMETRY = Geometry(1000, 900, 4, 256, 1)


@pytest.fixture(scope="module")
def half(tmp_path_factory):
    """A cache of four units of which 0 and 3 are there."""
    path = tmp_path_factory.mktemp("half") / "cache"
    small.make(path, GEOMETRY, units=[0, 3])
    return path


@given(rows=st.lists(st.integers(0, 999), max_size=50))
def test_rows_come_in_the_order_asked_for(rows, half_layer):
    there = [row for row in rows if row < 256 or row >= 768]
    x = half_layer[there]
    assert x.shape == (len(there), 4)
    assert x.dtype == ml_dtypes.bfloat16
    assert (x == small.rows_of(GEOMETRY, 2)[there]).all()
    norms = np.linalg.norm(small.rows_of(GEOMETRY, 2)[there].astype(np.float32), axis=1)
    assert (half_layer.norm(there) == norms).all()


@pytest.fixture(scope="module")
def half_layer(half):
    return open_cache(half).layer(2)


def test_rows_are_a_copy_and_blocks_are_views_of_the_file(half_layer):
    x = half_layer[[0]]
    x[:] = 0
    assert (half_layer[[0]] == small.rows_of(GEOMETRY, 2)[[0]]).all()
    block = half_layer.block(7)
    assert block.shape == (1000 - 7 * 128, 4)
    assert not block.flags.writeable
    assert (block == small.rows_of(GEOMETRY, 2)[7 * 128 :]).all()


@pytest.mark.parametrize("rows", [[300], [0, 999, 700], [1000], [-1], slice(200, 300)])
def test_rows_that_are_not_there_are_refused(half_layer, rows):
    with pytest.raises(IndexError):
        half_layer[rows]


def test_what_is_there_follows_from_records(half):
    cache = open_cache(half)
    assert cache.layers == (0, 2)
    assert cache.committed_units(0) == (0, 3)
    assert cache.committed_units(1) == ()
    assert cache.rows(layer=0).tolist() == [*range(256), *range(768, 1000)]
    assert cache.rows(layer=0, split="held_out").tolist() == list(range(900, 1000))
    assert cache.rows(layer=0, units=[1, 3], split="train").tolist() == list(range(768, 900))
    assert len(cache.rows()) == 1000
    with pytest.raises(RecipeError, match="no layer 1; layers there: 0, 2"):
        cache.layer(1)


def test_conditions_on_rows_are_those_of_the_arrays(half):
    cache = open_cache(half)
    rows = cache.rows(classes=["bos", TokenClass.TURN_START], roles="user", split="train")
    wanted = np.isin(cache.token_class, [1, 2]) & (cache.role == Role.USER) & (np.arange(1000) < 900)
    assert rows.tolist() == np.flatnonzero(wanted).tolist()
    typed = cache.rows(types=["first", "bos"])
    assert typed.tolist() == np.flatnonzero(cache.token_type & (TokenType.FIRST | TokenType.BOS)).tolist()
    assert len(cache.rows(classes=[])) == 0


def test_rows_are_the_same_whether_the_arrays_are_in_memory_or_not(half):
    few, whole = open_cache(half), open_cache(half)
    for name in ("token_id", "token_class", "token_type", "role", "turn"):
        getattr(whole, name)
    wanted = {"classes": ["bos", "turn_start"], "types": ["first"], "roles": ["user", "none"]}
    assert few.rows(**wanted).tolist() == whole.rows(**wanted).tolist() != []
    rows = np.array([999, 0, 999, 500])
    for name, array in (("token_id", whole.token_id), ("turn", whole.turn)):
        assert (few.array(f"tokens/{name}").take(rows) == array[rows]).all()
    for beyond in ([1000], [-1]):
        with pytest.raises(IndexError, match="rows must lie in"):
            few.array("tokens/turn").take(np.array(beyond))


def test_a_way_to_verify_that_there_is_not_is_refused(half):
    with pytest.raises(RecipeError, match="verify must be one of open, first-touch, never"):
        open_cache(half, verify="always")


@pytest.mark.parametrize(
    "wrong", [{"classes": ["users"]}, {"types": ["contents"]}, {"roles": ["me"]}, {"split": "test"}]
)
def test_an_unknown_name_is_refused_with_those_that_are_known(half, wrong):
    with pytest.raises(RecipeError, match=r"Known:|must be"):
        open_cache(half).rows(**wrong)


def test_positions_and_conversations_follow_from_offsets(half):
    cache = open_cache(half)
    rows = np.array([0, 49, 50, 999])
    assert cache.conversation(rows).tolist() == [0, 0, 1, 19]
    assert cache.position(rows).tolist() == [0, 49, 0, 49]
    assert (cache.sequence(rows) == cache.conversation(rows)).all()


def test_many_threads_read_the_same_rows(half):
    layer = open_cache(half).layer(0)
    wanted = small.rows_of(GEOMETRY, 0)
    numbers = [block for block in (0, 1, 6, 7) for _ in range(8)]
    with ThreadPoolExecutor(8) as pool:
        for block, x in zip(numbers, pool.map(layer.block, numbers), strict=True):
            assert (x == wanted[block * 128 : (block + 1) * 128]).all()


def test_the_notebook_lines_of_the_design_work(cache):
    assert exported is open_cache
    rows = cache.rows(layer=2, classes=["assistant"], split="held_out")
    x = cache.layer(2)[rows]
    t = torch.from_numpy(x.view("uint16")).view(torch.bfloat16)
    assert t.shape == (len(rows), cache.d_model)
    assert np.array_equal(t.float().numpy(), x.astype(np.float32))
    table = cache.tokens(rows[:20])
    assert "".join(table.text) == cache.text(rows[:20])
    assert set(table.role) == {Role.ASSISTANT}
    assert (table.token_id == cache.token_id[rows[:20]]).all()
    assert str(table).count("assistant") >= 20
    assert "layers [0, 2]" in repr(cache)


def test_ranges_of_a_plan_array_cross_its_chunks(tmp_path):
    geometry = Geometry(140_000, 140_000, 2, 128 * 1024, 1)
    small.make_plan(tmp_path / "cache", geometry)
    array = open_cache(tmp_path / "cache").array("tokens/token_id")
    whole = array.read()
    assert len(whole) == len(array) == 140_000
    for start, stop in ((0, 1), (65_535, 65_537), (65_536, 131_072), (139_999, 150_000), (5, 5)):
        assert (array.read(start, stop) == whole[start:stop]).all()
