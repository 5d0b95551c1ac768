"""Every byte that a cache promises: changed, cut off or gone, it is found."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from shared.errors import CorruptError, IdentityError, StorageError
from shared.format.commits import record_path
from shared.format.layout import GROUP, PASSES, PLAN, Geometry
from shared.format.plan import make_cache_id, read_plan
from shared.reading.cache import open_cache
from shared.sealed_json import read_sealed, seal
from shared.upkeep.verify import files_to_check, verify
from tests.shared import small

GEOMETRY = Geometry(300, 250, 2, 256, 2)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A whole cache of 300 rows whose files may be written."""
    path = tmp_path_factory.mktemp("verify") / "cache"
    small.make(path, GEOMETRY)
    for file in path.rglob("*"):
        if file.is_file():
            file.chmod(0o644)
    return path


@pytest.fixture
def copy(whole, tmp_path):
    return Path(shutil.copytree(whole, tmp_path / "cache"))


class Flipped:
    """A file with one byte changed, as long as the context lasts."""

    def __init__(self, path, position, mask):
        self.path, self.position, self.mask = path, position, mask

    def __enter__(self):
        with self.path.open("r+b") as file:
            file.seek(self.position)
            self.byte = file.read(1)
            file.seek(self.position)
            file.write(bytes([self.byte[0] ^ self.mask]))

    def __exit__(self, *_):
        with self.path.open("r+b") as file:
            file.seek(self.position)
            file.write(self.byte)


def problems(files):
    return [checked for checked in verify(files) if checked.problem]


def masks(size, seed=0):
    return np.random.default_rng(seed).integers(1, 256, size).tolist()


def test_a_whole_cache_has_no_problem(whole):
    files = files_to_check(whole)
    assert problems(files) == []
    promised = {str(path.relative_to(whole)) for path, *_ in files}
    there = {str(path.relative_to(whole)) for path in whole.rglob("*") if path.is_file()}
    sealed = {name for name in there if name.startswith((PLAN, PASSES, "commits/")) and name.endswith(".json")}
    assert there == promised | sealed  # every file is vouched for, by a digest or by itself


def test_every_flipped_byte_of_a_units_files_is_found(whole):
    units = [entry for entry in files_to_check(whole) if entry[3].startswith("unit")]
    assert len(units) == 2 * 2 * 2 + 1  # layers, shards, rows and norms; and the block checksums
    for entry in units:
        path = entry[0]
        for position, mask in enumerate(masks(path.stat().st_size)):
            with Flipped(path, position, mask):
                assert problems([entry]), (path, position)
        assert not problems([entry])


def test_flipped_bytes_of_the_plans_files_are_found(whole):
    plan = [entry for entry in files_to_check(whole) if not entry[3].startswith("unit")]
    for entry in plan:
        size = entry[0].stat().st_size
        for position in np.unique(np.linspace(0, size - 1, 12).astype(int)).tolist():
            with Flipped(entry[0], position, 1):
                assert problems([entry])


def test_every_flipped_byte_of_plan_pass_and_record_is_found(whole):
    for path in (whole / PLAN, record_path(whole, small.PASS.pass_id, 0), *(whole / PASSES).iterdir()):
        for position in range(path.stat().st_size):
            mask = (0x01, 0x40, 0x80)[position % 3]
            with Flipped(path, position, mask), pytest.raises(CorruptError):
                files_to_check(whole)


def test_the_reader_finds_every_flipped_byte_of_a_block_on_first_touch(whole):
    stride = GEOMETRY.block_stride
    for shard in range(2):
        path = whole / GROUP / f"layers/2/resid_post/c/{shard}/0"
        for block in range(GEOMETRY.shard_blocks(shard)):
            number = shard * GEOMETRY.blocks_per_shard + block
            for offset, mask in enumerate(masks(GEOMETRY.block_bytes, block)):
                with Flipped(path, block * stride + offset, mask):
                    layer = open_cache(whole).layer(2)
                    with pytest.raises(CorruptError, match=f"block {number} of layer 2"):
                        layer.block(number)
                    other = (number + 1) % 3
                    layer.block(other)  # the damage is where it is


@pytest.mark.parametrize("touch", [lambda layer: layer[[299]], lambda layer: layer[:], lambda layer: layer.block(2)])
def test_damage_is_met_by_every_way_to_read(copy, touch):
    path = copy / GROUP / "layers/0/resid_post/c/1/0"
    with Flipped(path, 3, 8):
        with pytest.raises(CorruptError):
            touch(open_cache(copy).layer(0))
        with pytest.raises(CorruptError):
            open_cache(copy, verify="open").layer(0)
        touch(open_cache(copy, verify="never").layer(0))  # as asked


def test_damaged_norms_and_block_checksums_are_met(copy):
    with Flipped(copy / GROUP / "layers/0/norm/c/0", 100, 1), pytest.raises(CorruptError, match="norms"):
        open_cache(copy).layer(0).norm([5])
    [checksums] = copy.glob("commits/*/*.crc32c")
    with Flipped(checksums, 0, 1), pytest.raises(CorruptError, match="block checksums"):
        open_cache(copy).layer(0).block(0)
    checksums.unlink()
    with pytest.raises(CorruptError, match="missing"):
        open_cache(copy).layer(0).block(0)


def test_shards_that_were_swapped_are_found(copy):
    one, other = (copy / GROUP / f"layers/{layer}/resid_post/c/0/0" for layer in small.LAYERS)
    one.rename(copy / "x")
    other.rename(one)
    (copy / "x").rename(other)
    assert len(problems(files_to_check(copy))) == 2
    with pytest.raises(CorruptError):
        open_cache(copy).layer(0).block(0)


@pytest.mark.parametrize("size", [0, 1, -1, None])
def test_a_file_cut_short_or_gone_is_found_before_it_is_mapped(copy, size):
    for path in sorted(copy.glob(f"{GROUP}/layers/*/*/c/**/*")):
        if path.is_dir():
            continue
        data = path.read_bytes()
        if size is None:
            path.unlink()
        else:
            path.write_bytes(data[:size])
        layer = int(path.relative_to(copy / GROUP / "layers").parts[0])
        with pytest.raises(CorruptError):
            open_cache(copy).layer(layer)
        assert [checked.path for checked in problems(files_to_check(copy))] == [path]
        path.write_bytes(data + b"x")
        with pytest.raises(CorruptError):
            open_cache(copy).layer(layer)
        path.write_bytes(data)
    open_cache(copy, verify="open").layer(2)


def test_a_damaged_missing_or_short_array_of_the_plan_is_found(copy):
    path = copy / GROUP / "tokens/role/c/0"
    with Flipped(path, 10, 1), pytest.raises(CorruptError, match="damaged"):
        _ = open_cache(copy).role
    data = path.read_bytes()
    path.write_bytes(data[:-1])
    with pytest.raises(CorruptError, match="expected"):
        _ = open_cache(copy).role
    path.unlink()
    with pytest.raises(CorruptError, match="missing"):
        _ = open_cache(copy).role


def test_a_newer_format_is_another_identity_and_not_damage(copy):
    content = read_sealed(copy / PLAN) | {"format_version": 2, "new_field": "x"}
    (copy / PLAN).write_bytes(seal(content))
    with pytest.raises(IdentityError, match=r"format 2.*reads format 1") as caught:
        open_cache(copy)
    assert caught.value.exit_code == 76


@pytest.mark.parametrize(
    "change",
    [{"format": "other"}, {"num_rows": -1}, {"num_rows": "many"}, {"rows_per_shard": 100}, {"identity": {}},
     {"surprise": 1}, {"d_model": None}],
)
def test_a_plan_that_is_sealed_and_still_impossible_is_corrupt(copy, change):
    content = read_sealed(copy / PLAN) | change
    (copy / PLAN).write_bytes(seal(content))
    with pytest.raises(CorruptError):
        read_plan(copy)


def test_the_cache_id_is_the_identitys(copy):
    content = read_sealed(copy / PLAN)
    assert content["cache_id"] == make_cache_id(content["identity"])


def test_a_folder_without_a_plan_is_no_cache(tmp_path):
    with pytest.raises(StorageError, match="no cache at"):
        open_cache(tmp_path)
