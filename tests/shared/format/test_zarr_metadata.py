"""Readers that follow the Zarr v3 specification see the same rows as ours."""

import json

import ml_dtypes
import numpy as np
import pytest
import tensorstore
import zarr

from shared.format.layout import GROUP, PLAN_ARRAYS, Geometry
from shared.format.zarr_metadata import register_bfloat16
from shared.reading.cache import open_cache
from tests.shared import small

GEOMETRIES = [
    Geometry(1, 1, 4, 128, 1),
    Geometry(128, 128, 4, 128, 1),
    Geometry(300, 200, 4, 256, 1),
    Geometry(384, 300, 6, 384, 1),
    Geometry(1000, 900, 4, 256, 2),
    Geometry(1281, 1000, 2, 128, 4),
]


@pytest.fixture(params=GEOMETRIES, ids=lambda g: f"{g.num_rows}rows-{g.rows_per_shard}x{g.shards_per_unit}")
def geometry(request):
    return request.param


def by_tensorstore(path, name):
    kvstore = {"driver": "file", "path": str(path / GROUP / name)}
    return tensorstore.open({"driver": "zarr3", "kvstore": kvstore}, read=True).result().read().result()


def by_zarr(path, name):
    register_bfloat16()
    return zarr.open_group(path / GROUP, mode="r")[name][:]


readers = pytest.mark.parametrize("read", [by_tensorstore, by_zarr])


@readers
def test_foreign_readers_see_the_rows_that_were_written(read, geometry, tmp_path):
    small.make(tmp_path / "cache", geometry)
    for layer in small.LAYERS:
        seen = read(tmp_path / "cache", f"layers/{layer}/resid_post")
        assert seen.dtype == ml_dtypes.bfloat16
        wanted = small.rows_of(geometry, layer)
        assert (seen.view(np.uint16) == wanted.view(np.uint16)).all()
        ours = open_cache(tmp_path / "cache").layer(layer)[:]
        assert (ours.view(np.uint16) == wanted.view(np.uint16)).all()
        norms = read(tmp_path / "cache", f"layers/{layer}/norm")
        assert (norms == np.linalg.norm(wanted.astype(np.float32), axis=1)).all()


@readers
def test_foreign_readers_see_shards_and_plan_arrays_of_the_usual_size(read, tmp_path):
    """Two shards and two chunks of 65,536, of which neither the last one nor its last block is full."""
    geometry = Geometry(65_536 + 77, 65_536, 2, 65_536, 1)
    small.make(tmp_path / "cache", geometry)
    ours = open_cache(tmp_path / "cache")
    seen = read(tmp_path / "cache", "layers/2/resid_post")
    assert (seen.view(np.uint16) == small.rows_of(geometry, 2).view(np.uint16)).all()
    assert (read(tmp_path / "cache", "layers/2/norm") == ours.layer(2).norm(np.arange(geometry.num_rows))).all()
    for name in PLAN_ARRAYS:
        values = read(tmp_path / "cache", name)
        assert len(values) == ours.plan.array_length(name)
        assert (values == ours.array(name).read()).all()


@readers
def test_foreign_readers_see_nan_where_nothing_is_harvested_and_ours_raises(read, tmp_path):
    geometry = Geometry(1000, 900, 4, 256, 1)
    small.make(tmp_path / "cache", geometry, units=[1, 3])
    seen = read(tmp_path / "cache", "layers/2/resid_post").astype(np.float32)
    norms = read(tmp_path / "cache", "layers/2/norm")
    layer = open_cache(tmp_path / "cache").layer(2)
    for unit in range(4):
        rows = geometry.unit_rows(unit)
        if unit in (1, 3):
            assert np.isfinite(seen[rows.start : rows.stop]).all()
            continue
        assert np.isnan(seen[rows.start : rows.stop]).all()
        assert np.isnan(norms[rows.start : rows.stop]).all()
        for touch in (layer.__getitem__, layer.norm):
            with pytest.raises(IndexError, match="not harvested"):
                touch([rows.start])
        with pytest.raises(IndexError, match="not harvested"):
            layer.block(rows.start // 128)


@readers
def test_the_real_cache_reads_the_same_everywhere(read, cache):
    group = cache.path
    for layer in (0, 2):
        ours = cache.layer(layer)[:]
        assert (read(group, f"layers/{layer}/resid_post").view(np.uint16) == ours.view(np.uint16)).all()
    for name, dtype in PLAN_ARRAYS.items():
        values = read(group, name)
        assert values.dtype == dtype
        assert (values == cache.array(name).read()).all()


def test_the_group_says_what_its_numbers_mean(cache):
    attributes = zarr.open_group(cache.path / GROUP, mode="r").attrs.asdict()
    assert attributes["format"] == "sae-granary cache"
    assert attributes["format_version"] == 1
    assert attributes["cache_id"] == cache.cache_id
    assert attributes["num_train_tokens"] == cache.num_train_rows
    assert attributes["token_class"]["turn_end"] == 5
    assert attributes["token_type_bits"]["content"] == 64
    assert attributes["role"]["assistant"] == 3


def test_a_shard_is_written_as_the_specification_says(tmp_path):
    small.make(tmp_path / "cache", Geometry(300, 300, 4, 256, 1))
    metadata = json.loads((tmp_path / "cache" / GROUP / "layers/2/resid_post/zarr.json").read_text())
    assert metadata["data_type"] == "bfloat16"
    assert metadata["fill_value"] == "NaN"
    assert metadata["chunk_grid"]["configuration"]["chunk_shape"] == [256, 4]
    [codec] = metadata["codecs"]
    assert codec["name"] == "sharding_indexed"
    assert codec["configuration"]["chunk_shape"] == [128, 4]
    assert [inner["name"] for inner in codec["configuration"]["codecs"]] == ["bytes", "crc32c"]
    assert [inner["name"] for inner in codec["configuration"]["index_codecs"]] == ["bytes", "crc32c"]
    assert codec["configuration"]["index_location"] == "end"


def test_a_foreign_reader_finds_damage_too(tmp_path):
    small.make(tmp_path / "cache", Geometry(300, 300, 4, 256, 1))
    path = tmp_path / "cache" / GROUP / "layers/2/resid_post/c/0/0"
    data = bytearray(path.read_bytes())
    data[1500] ^= 1
    path.chmod(0o644)
    path.write_bytes(data)
    with pytest.raises(Exception, match=r"(?i)digest|checksum"):
        by_tensorstore(tmp_path / "cache", "layers/2/resid_post")
