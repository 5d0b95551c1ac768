"""docs/cache-format.md: its readers read real caches without any module of ours, and what it says of bytes is so."""

import json
import re
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest

from shared.digests import hex_digest
from shared.format.commits import read_records
from shared.format.layout import GROUP, PLAN, Geometry, shard_file
from shared.reading.cache import open_cache
from shared.upkeep.transcode import transcode
from tests.shared import small

GOLDEN = Path(__file__).parent / "golden"
PAGE = (Path(__file__).parent.parent / "docs" / "cache-format.md").read_text(encoding="utf-8")
CODE = dict(re.findall(r"^```python (\w+)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL))
GEOMETRY = Geometry(700, 600, 12, 256, 2)
WANTED = small.rows_of(GEOMETRY, 2).astype(np.float32)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """A cache whose unit 0 was repaired."""
    path = tmp_path_factory.mktemp("format") / "cache"
    plan = small.make(path, GEOMETRY)
    small.harvest_unit(path, plan, 0, seed=9, generation=1)
    return path


@pytest.fixture(scope="module")
def wanted():
    rows = GEOMETRY.unit_rows(0)
    values = WANTED.copy()
    values[: rows.stop] = small.rows_of(GEOMETRY, 2, seed=9)[: rows.stop]
    return values


@pytest.fixture(scope="module")
def archive(cache):
    transcode(cache, cache.parent / "archive", "archive", threads=1)
    return cache.parent / "archive"


def run(name, folder, *lines, more=""):
    """Run a code block of the page and some lines, in a folder without ours; float32 rows that they save."""
    program = "\n".join([CODE[name], *lines, more])
    assert "shared" not in CODE[name]
    run = subprocess.run([sys.executable, "-c", program], cwd=folder, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    return np.load(folder / "rows.npy")


def test_the_reader_in_numpy_alone_gives_every_committed_row(cache, wanted, tmp_path):
    rows = run("numpy", tmp_path, f"units = read_layer({str(cache)!r}, 2)",
               "np.save('rows.npy', np.concatenate([units[unit] for unit in sorted(units)]))",
               "import sys; assert not {'zarr', 'tensorstore', 'ml_dtypes'} & sys.modules.keys()")
    assert rows.dtype == np.float32
    assert (rows == wanted).all()
    assert len(CODE["numpy"].strip().splitlines()) <= 24


def test_the_reader_in_numpy_alone_reads_what_is_committed_and_still_temporary(tmp_path):
    with tarfile.open(GOLDEN / "format-1.mapped.tar.xz") as packed:
        packed.extractall(tmp_path / "golden", filter="data")
    rows = run("numpy", tmp_path, "units = read_layer('golden', 2)",
               "np.save('rows.npy', np.concatenate([units[unit] for unit in sorted(units)]))")
    expected = json.loads((GOLDEN / "format-1.expected.json").read_text())
    assert hex_digest((rows.view(np.uint32) >> 16).astype(np.uint16).tobytes()) == expected["layers"]["2"]["rows"]


def test_the_reader_of_an_archives_block_gives_its_rows(archive, wanted, tmp_path):
    path = archive / GROUP / shard_file(2, 1)
    plan = json.loads((archive / PLAN).read_text())
    index = 16 * (plan["rows_per_shard"] // 128) + 4
    rows = run("archive", tmp_path, f"shard = open({str(path)!r}, 'rb').read()",
               f"np.save('rows.npy', np.concatenate([read_block(shard, {index}, i, 12) for i in range(2)]))")
    assert (rows == wanted[256:512]).all()


@pytest.mark.parametrize("tier", ["cache", "archive"])
@pytest.mark.parametrize("name", ["tensorstore", "zarr"])
def test_the_readers_of_zarr_open_both_tiers(request, wanted, tmp_path, name, tier):
    read = ".read().result()" if name == "tensorstore" else ""
    rows = run(name, tmp_path, "import numpy as np",
               f"rows = open_layer({str(request.getfixturevalue(tier))!r}, 2)[:]{read}",
               "assert rows.dtype.name == 'bfloat16'", "np.save('rows.npy', rows.astype('float32'))")
    assert (rows == wanted).all()


def test_the_seal_is_as_the_page_says(cache, tmp_path):
    paths = [str(path) for path in cache.rglob("*.json") if path.name != "zarr.json"]
    assert len(paths) > 3
    run("seal", tmp_path, f"for path in {paths!r}: read_sealed(path)", "import numpy; numpy.save('rows.npy', 0)")


def test_every_file_of_a_cache_is_one_that_the_page_names(cache, archive):
    known = re.compile(r"activations\.zarr/((tokens|conversations|sequences)/)?(\w+/)?(zarr\.json|c/\d+)"
                       r"|activations\.zarr/layers/(zarr\.json|\d+/(zarr\.json|(resid_post|norm)/(zarr\.json|c/\d+(/0)?)))"
                       r"|plan\.json|passes/[0-9a-f]{12}\.json|commits/[0-9a-f]{12}/\d{6}\.g\d+(\.json|\..+\.crc32c)"
                       r"|tokenizer/.+|skipped\.jsonl|provenance\.jsonl|(claims|tmp)/.+")
    for path in (cache, archive):
        names = [str(file.relative_to(path)) for file in path.rglob("*") if file.is_file()]
        assert not [name for name in names if not known.fullmatch(name)]


def test_the_keys_of_plan_pass_and_record_are_those_that_the_page_names(cache):
    said = set(re.findall(r"`(\w+)`", PAGE))
    records = [*cache.glob("commits/*/*.json")]
    for path in (cache / PLAN, *cache.glob("passes/*.json"), records[0]):
        assert set(json.loads(path.read_text())) <= said, path
    assert {"path", "temporary", "size", "xxh3"} <= said


def test_sizes_are_as_the_page_says(cache, archive):
    block, m = 256 * GEOMETRY.d_model, GEOMETRY.rows_per_shard // 128
    for shard, b in enumerate((2, 2, 2)):
        path = cache / GROUP / shard_file(2, shard)
        assert path.stat().st_size == b * (block + 4) + 16 * m + 4
    for path in (cache, archive):
        [pass_id] = (file.stem for file in path.glob("passes/*.json"))
        for unit, record in read_records(path, pass_id).items():
            blocks = sum(GEOMETRY.shard_blocks(shard) for shard in GEOMETRY.unit_shards(unit))
            assert record.blocks.size == 4 * blocks * len(small.LAYERS)
    assert open_cache(archive).cache_id == open_cache(cache).cache_id
