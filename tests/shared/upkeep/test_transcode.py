"""A cache as an archive and back: the same rows bit for bit. What happens when it is killed: tests/crash."""

import resource
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import tensorstore
import zarr

from shared import storage
from shared.errors import CorruptError, IdentityError, RecipeError, TryAgainError
from shared.format.commits import read_record, read_records, record_path
from shared.format.layout import GROUP, PASSES, PLAN, SKIPPED, Geometry
from shared.format.plan import read_passes
from shared.format.zarr_metadata import register_bfloat16
from shared.reading.cache import open_cache
from shared.sealed_json import read_sealed, seal
from shared.upkeep.transcode import transcode
from shared.upkeep.verify import files_to_check, verify
from tests.shared import small
from tests.tiny import promised

PASS_ID = small.PASS.pass_id
GEOMETRY = Geometry(700, 600, 16, 256, 1)
GEOMETRIES = [
    Geometry(1, 1, 4, 128, 1),
    Geometry(300, 200, 4, 256, 1),
    Geometry(1281, 1000, 2, 128, 4),
    Geometry(1000, 900, 40, 256, 2),
]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A whole cache. Read it; copy it to change it."""
    path = tmp_path_factory.mktemp("transcode") / "cache"
    small.make(path, GEOMETRY)
    return path


@pytest.fixture(scope="module")
def archive(whole):
    """Its archive. Read it; copy it to change it."""
    transcode(whole, whole.parent / "archive", "archive", threads=2)
    return whole.parent / "archive"


@pytest.fixture
def source(whole, tmp_path):
    """A copy of the whole cache whose files may be written."""
    return writable(small.copy(whole, tmp_path / "source"))


def writable(cache):
    for path in cache.rglob("*"):
        if path.is_file() and path.stat().st_nlink == 1:
            path.chmod(0o644)
    return cache


def problems(cache):
    return [checked.problem for checked in verify(files_to_check(cache)) if checked.problem]


def flip(path, position):
    data = bytearray(path.read_bytes())
    data[position] ^= 0x10
    path.write_bytes(data)


def shard_path(cache, layer, shard):
    return cache / GROUP / f"layers/{layer}/resid_post/c/{shard}/0"


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=lambda g: f"{g.num_rows}-{g.rows_per_shard}x{g.shards_per_unit}")
def test_an_archive_has_the_same_rows_plan_and_ids_and_expands_to_the_same_files(geometry, memory_folder):
    source, target, back = (memory_folder / name for name in ("source", "archive", "back"))
    small.make(source, geometry)
    done = transcode(source, target, "archive", threads=2)
    assert done.units == geometry.num_units
    assert (target / PLAN).read_bytes() == (source / PLAN).read_bytes()
    assert read_passes(target).keys() == {PASS_ID}
    assert problems(target) == []
    opened = open_cache(target, verify="open")
    rng = np.random.default_rng(0)
    some = rng.integers(0, geometry.num_rows, 500)
    for layer in small.LAYERS:
        wanted = small.rows_of(geometry, layer)
        assert (opened.layer(layer)[:].view(np.uint16) == wanted.view(np.uint16)).all()
        assert (opened.layer(layer)[some] == wanted[some]).all()
        last = geometry.num_blocks - 1
        assert (opened.layer(layer).block(last) == wanted[last * 128 :]).all()
        assert (opened.layer(layer).norm(some) == open_cache(source).layer(layer).norm(some)).all()
    transcode(target, back, "mapped", threads=1)
    assert promised(back) == promised(source)


def test_an_archive_has_records_of_its_own_with_the_checksums_of_the_rows(whole, archive):
    for unit, record in read_records(archive, PASS_ID).items():
        original = read_record(record_path(whole, PASS_ID, unit))
        assert record.writer != original.writer
        assert record.blocks.xxh3 == original.blocks.xxh3
        same = ("rows", "made_with", "nonfinite", "cache_id", "pass_id", "unit")
        assert [getattr(record, name) for name in same] == [getattr(original, name) for name in same]
        sizes = {entry.path: (archive / entry.path).stat().st_size for entry in record.files}
        assert sizes == {entry.path: entry.size for entry in record.files}
        assert not any((archive / entry.path).stat().st_mode & 0o222 for entry in record.files)


def by_tensorstore(path, name):
    kvstore = {"driver": "file", "path": str(path / GROUP / name)}
    return tensorstore.open({"driver": "zarr3", "kvstore": kvstore}, read=True).result().read().result()


def by_zarr(path, name):
    register_bfloat16()
    return zarr.open_group(path / GROUP, mode="r")[name][:]


@pytest.mark.parametrize("read", [by_tensorstore, by_zarr])
def test_foreign_readers_open_an_archive_and_find_damage_in_it(read, archive, tmp_path):
    for layer in small.LAYERS:
        seen = read(archive, f"layers/{layer}/resid_post")
        assert seen.dtype == ml_dtypes.bfloat16
        assert (seen.view(np.uint16) == small.rows_of(GEOMETRY, layer).view(np.uint16)).all()
    copied = writable(small.copy(archive, tmp_path / "copy"))
    flip(shard_path(copied, 2, 1), 500)  # in the mantissas of the first block, which no codec but crc32c can check
    with pytest.raises(Exception, match=r"(?i)digest|checksum"):
        read(copied, "layers/2/resid_post")


def test_changed_bytes_of_an_archive_are_found_by_verify_and_by_the_reader(archive, tmp_path):
    copied = writable(small.copy(archive, tmp_path / "copy"))
    files = [file for file in files_to_check(copied) if file.unit == 1]
    path = shard_path(copied, 0, 1)
    [shard] = [file for file in files if file.path == path]
    data = path.read_bytes()
    for position in range(0, len(data), 211):
        path.write_bytes(data[:position] + bytes([data[position] ^ 4]) + data[position + 1 :])
        assert [checked for checked in verify([shard]) if checked.problem], position
        with pytest.raises(CorruptError, match="unit 1"):
            open_cache(copied).layer(0)[256:512]
    path.write_bytes(data)
    flip(path, 500)
    assert [checked.problem for checked in verify([shard])] == ["unit 1, layer 0: damaged: 1 of its 2 blocks (0)"]
    path.write_bytes(data[:-1])
    with pytest.raises(CorruptError, match=r"unit 1.*expected"):
        open_cache(copied).layer(0)
    assert "expected" in next(verify([shard])).problem


def test_blocks_that_were_swapped_are_found_although_each_is_whole(archive, tmp_path):
    copied = writable(small.copy(archive, tmp_path / "copy"))
    one, other = shard_path(copied, 0, 0), shard_path(copied, 2, 0)
    a, b = read_records(copied, PASS_ID)[0].files[0], one.read_bytes()
    one.write_bytes(other.read_bytes().ljust(a.size, b"\0")[: a.size])
    other.write_bytes(b)
    with pytest.raises(CorruptError):
        open_cache(copied, verify="open").layer(0)
    assert len(problems(copied)) == 2


@pytest.mark.parametrize("position", [3, 8195, -1])
def test_a_damaged_source_stops_it_and_names_the_unit_and_mended_it_goes_on(source, whole, archive, tmp_path, position):
    if position == -1:
        path = source / GROUP / "layers/2/norm/c/1"
    else:
        path = shard_path(source, 2, 1)
    data = path.read_bytes()
    flip(path, position)
    with pytest.raises(CorruptError, match=r"unit 1\b") as caught:
        transcode(source, tmp_path / "archive", "archive", threads=2)
    assert caught.value.exit_code == 77
    assert read_records(tmp_path / "archive", PASS_ID).keys() == {0}
    assert problems(tmp_path / "archive") == []
    path.write_bytes(data)
    assert transcode(source, tmp_path / "archive", "archive", threads=2).units == GEOMETRY.num_units - 1
    assert promised(tmp_path / "archive") == promised(archive)


def test_a_damaged_plan_array_stops_it_before_there_is_a_cache(source, tmp_path):
    path = source / GROUP / "tokens/role/c/0"
    data = path.read_bytes()
    path.unlink()
    path.write_bytes(data[:-1] + b"x")
    with pytest.raises(CorruptError, match="tokens/role"):
        transcode(source, tmp_path / "archive", "archive", threads=1)
    assert not (tmp_path / "archive" / PLAN).exists()


def test_what_is_harvested_or_repaired_later_is_taken_over(tmp_path):
    source, target = tmp_path / "source", tmp_path / "archive"
    plan = small.make(source, GEOMETRY, units=[2])
    assert transcode(source, target, "archive", threads=1).units == 1
    assert transcode(source, target, "archive", threads=1).units == 0
    small.harvest_unit(source, plan, 0)
    assert transcode(source, target, "archive", threads=1).units == 1
    small.harvest_unit(source, plan, 2, seed=5, generation=1)
    assert transcode(source, target, "archive", threads=1).units == 1
    record = read_records(target, PASS_ID)[2]
    assert record.generation == 1
    rows = GEOMETRY.unit_rows(2)
    assert (open_cache(target).layer(0)[rows.start : rows.stop] == small.rows_of(GEOMETRY, 0, 5)[rows.start :]).all()
    assert problems(target) == []


def test_nonfinite_rows_skipped_rows_and_padding_go_along(source, tmp_path):
    path = record_path(source, PASS_ID, 1)
    path.write_bytes(seal(read_sealed(path) | {"nonfinite": {"2": [300, 301]}}))
    (source / SKIPPED).write_text('{"why": "no messages"}\n')
    transcode(source, tmp_path / "archive", "archive", threads=1)
    assert open_cache(tmp_path / "archive").layer(2).nonfinite_rows.tolist() == [300, 301]
    assert 300 not in open_cache(tmp_path / "archive").rows(layer=2)
    assert (tmp_path / "archive" / SKIPPED).read_text() == '{"why": "no messages"}\n'


def test_another_cache_a_foreign_folder_or_itself_is_no_place_for_an_archive(whole, archive, tmp_path):
    small.make(tmp_path / "other", Geometry(300, 200, 4, 256, 1))
    with pytest.raises(IdentityError, match="holds another cache"):
        transcode(whole, tmp_path / "other", "archive", threads=1)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("x")
    with pytest.raises(IdentityError, match=r"other files in it \(thesis.tex\)"):
        transcode(whole, tmp_path / "mine", "archive", threads=1)
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.tex"]
    for itself in (whole, whole / "archive"):
        with pytest.raises(RecipeError, match="the cache itself"):
            transcode(whole, itself, "archive", threads=1)
    for cache, tier, message in ((archive, "archive", "an archive already"), (whole, "mapped", "is no archive")):
        with pytest.raises(RecipeError, match=message):
            transcode(cache, tmp_path / "new", tier, threads=1)
    small.make_plan(tmp_path / "empty", GEOMETRY)
    with pytest.raises(RecipeError, match="no activations yet"):
        transcode(tmp_path / "empty", tmp_path / "new", "archive", threads=1)
    assert not (tmp_path / "new").exists()
    with pytest.raises(IdentityError, match="in the other tier"):
        transcode(whole, small.copy(whole, tmp_path / "mapped"), "archive", threads=1)


def test_a_full_disk_is_told_before_a_unit_is_begun(whole, tmp_path, monkeypatch):
    monkeypatch.setattr(storage, "free_bytes", lambda path: 1000)
    with pytest.raises(TryAgainError, match="for the next unit"):
        transcode(whole, tmp_path / "archive", "archive", threads=1)
    monkeypatch.undo()
    assert transcode(whole, tmp_path / "archive", "archive", threads=1).units == GEOMETRY.num_units


def test_the_tier_is_no_part_of_a_passes_id_and_an_unknown_one_is_refused(archive, tmp_path):
    [path] = (archive / PASSES).iterdir()
    content = read_sealed(path)
    assert content["tier"] == "archive"
    assert path.stem == PASS_ID
    copied = small.copy(archive, tmp_path / "copy")
    (copied / PASSES / path.name).chmod(0o644)
    (copied / PASSES / path.name).write_bytes(seal(content | {"tier": "cloud"}))
    with pytest.raises(CorruptError, match="not a valid pass"):
        open_cache(copied)


def test_more_files_are_open_than_a_process_usually_may(tmp_path):
    geometry = Geometry(128 * 64, 128 * 64, 2, 128, 64)
    small.make(tmp_path / "cache", geometry)
    transcode(tmp_path / "cache", tmp_path / "archive", "archive", threads=1)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(list(Path("/proc/self/fd").iterdir())) + 8, limits[1]))
    try:
        for name in ("cache", "archive"):
            layer = open_cache(tmp_path / name).layer(0)
            assert (layer[:] == small.rows_of(geometry, 0)).all()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def test_rows_of_an_archive_cannot_be_written_to_by_accident(archive):
    layer = open_cache(Path(archive)).layer(0)
    with pytest.raises(ValueError, match="read-only"):
        layer.block(0)[0, 0] = 1
    layer[[0]][0, 0] = 1  # a copy is one's own
