"""Caches that older versions wrote are opened for ever, and those that newer ones write are refused as such."""

import json
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest

from shared.digests import hex_digest
from shared.errors import IdentityError
from shared.format.commits import read_records, record_path
from shared.format.layout import FORMAT_VERSION, GROUP, PASSES, PLAN, TMP
from shared.format.plan import read_passes
from shared.reading.cache import open_cache
from shared.sealed_json import read_sealed, seal
from shared.upkeep.transcode import transcode
from shared.upkeep.verify import files_to_check, verify
from shared.writing.writers import recover
from tests.shared.upkeep.test_transcode import by_tensorstore, by_zarr

GOLDEN = Path(__file__).parent.parent / "golden"
PACKED = sorted(GOLDEN.glob("*.tar.xz"))


@pytest.fixture(scope="module", params=PACKED, ids=lambda path: path.name.removesuffix(".tar.xz"))
def golden(request, tmp_path_factory):
    """A golden cache and what must be read from it."""
    path = tmp_path_factory.mktemp("golden") / "cache"
    with tarfile.open(request.param) as packed:
        packed.extractall(path, filter="data")
    version = request.param.name.split(".")[0]
    return path, json.loads((GOLDEN / f"{version}.expected.json").read_text())


def test_there_is_a_golden_cache_of_every_format_and_tier():
    wanted = {f"format-{version}.{tier}.tar.xz" for version in range(1, FORMAT_VERSION + 1)
              for tier in ("mapped", "archive")}
    assert {path.name for path in PACKED} == wanted


def assert_reads_as_expected(cache, expected):
    assert cache.num_rows == expected["num_rows"]
    assert cache.text(range(20)) == expected["text"]
    for name, digest in expected["arrays"].items():
        assert hex_digest(cache.array(name).read().tobytes()) == digest, name
    assert cache.layers == tuple(map(int, expected["layers"]))
    for number, wanted in expected["layers"].items():
        layer = cache.layer(int(number))
        assert hex_digest(layer[:].tobytes()) == wanted["rows"]
        assert layer[[0, 300]].view(np.uint16).tolist() == [wanted["row 0"], wanted["row 300"]]
        assert hex_digest(layer.norm(range(cache.num_rows)).tobytes()) == wanted["norms"]
        assert layer.nonfinite_rows.tolist() == wanted["nonfinite"]
        assert set(cache.rows(layer=int(number))) == set(range(cache.num_rows)) - set(wanted["nonfinite"])


@pytest.mark.parametrize("mode", [0o444, 0o644])
def test_a_golden_cache_reads_as_it_was_written(golden, mode):
    path, expected = golden
    files = [file for file in path.rglob("*") if file.is_file()]
    for file in files:
        file.chmod(mode)
    assert_reads_as_expected(open_cache(path, verify="open"), expected)
    assert [checked.problem for checked in verify(files_to_check(path)) if checked.problem] == []
    assert sorted(files) == sorted(file for file in path.rglob("*") if file.is_file())  # a reader writes nothing


def test_its_repaired_unit_and_its_files_that_are_still_temporary_are_among_it(golden, tmp_path):
    path, expected = golden
    [(pass_id, entry)] = read_passes(path).items()
    records = read_records(path, pass_id)
    if entry.tier == "mapped":
        assert [record.generation for record in records.values()] == [0, 1, 0]
        assert (path / records[2].files[0].temporary).is_file()
        copied = Path(shutil.copytree(path, tmp_path / "copy"))
        assert recover(copied) == 1
        assert not any(file.is_file() for file in (copied / TMP).rglob("*"))
        assert_reads_as_expected(open_cache(copied), expected)


def test_other_readers_read_it_too(golden, tmp_path):
    path, expected = golden
    copied = Path(shutil.copytree(path, tmp_path / "copy"))
    recover(copied)  # they look for final names only
    for number, wanted in expected["layers"].items():
        for read in (by_tensorstore, by_zarr):
            assert hex_digest(read(copied, f"layers/{number}/resid_post").tobytes()) == wanted["rows"]


def test_it_can_be_written_in_the_other_tier_today(golden, tmp_path):
    path, expected = golden
    tier = "mapped" if "archive" in {entry.tier for entry in read_passes(path).values()} else "archive"
    transcode(path, tmp_path / "other", tier, threads=1)
    assert_reads_as_expected(open_cache(tmp_path / "other", verify="open"), expected)


@pytest.mark.parametrize("what", ["plan", "pass", "record"])
def test_a_newer_version_is_another_identity_and_says_what_to_do(golden, tmp_path, what):
    copied = Path(shutil.copytree(golden[0], tmp_path / "copy"))
    [pass_id] = read_passes(copied)
    path = {"plan": copied / PLAN, "pass": copied / PASSES / f"{pass_id}.json",
            "record": record_path(copied, pass_id, 0)}[what]
    path.chmod(0o644)
    content = read_sealed(path)
    path.write_bytes(seal(content | {"format_version": FORMAT_VERSION + 1, "field_of_the_future": [1]}))
    message = rf"{path.name}.* format {FORMAT_VERSION + 1}.*Update the checkout"
    with pytest.raises(IdentityError, match=message) as caught:
        open_cache(copied).layer(0)
    assert caught.value.exit_code == 76
    with pytest.raises(IdentityError):
        files_to_check(copied)


def test_the_group_says_its_version_to_other_readers(golden):
    attributes = json.loads((golden[0] / GROUP / "zarr.json").read_text())["attributes"]
    assert attributes["format_version"] == golden[1]["format_version"]
