"""A file that is cut short or gone after it was opened is an error that says whose it was, and no bus error."""

import mmap
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from shared.errors import CorruptError
from shared.format.layout import GROUP, Geometry
from shared.reading import mapped_file
from shared.reading.cache import open_cache
from shared.reading.mapped_file import MappedFile
from tests.shared import small

SHARD = f"{GROUP}/layers/2/resid_post/c/1/0"


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Two units of a shard of 64 blocks of half a page each."""
    path = tmp_path_factory.mktemp("mapped") / "cache"
    small.make(path, Geometry(16_384, 16_384, 8, 8192, 1))
    for file in path.rglob("*"):
        file.chmod(0o755)
    return path


@pytest.fixture
def cache(whole, tmp_path):
    return Path(shutil.copytree(whole, tmp_path / "cache"))


@pytest.mark.parametrize("verify", ["first-touch", "never", "open"])
@pytest.mark.parametrize("touched", [False, True])
@pytest.mark.parametrize("read", [lambda layer: layer.block(127), lambda layer: layer[[16_383]]], ids=["block", "rows"])
def test_a_shard_cut_short_after_opening_is_an_error_with_the_units_name(cache, verify, touched, read):
    layer = open_cache(cache, verify=verify).layer(2)
    if touched:
        read(layer)
    os.truncate(cache / SHARD, 5000)
    with pytest.raises(CorruptError, match=r"unit 1\D") as caught:
        np.array(read(layer))
    assert "5000 bytes" in str(caught.value)
    np.array(layer.block(0))  # the other unit is as it was


def test_a_shard_gone_before_its_first_touch_is_an_error_with_the_units_name(cache):
    layer = open_cache(cache).layer(2)
    (cache / SHARD).unlink()
    with pytest.raises(CorruptError, match=r"of unit 1 is missing"):
        layer.block(127)


def test_a_shard_gone_after_its_first_touch_is_still_mapped(cache):
    layer = open_cache(cache).layer(2)
    layer.block(64)
    (cache / SHARD).unlink()
    assert (layer.block(127) == small.rows_of(Geometry(16_384, 16_384, 8, 8192, 1), 2)[-128:]).all()


@pytest.mark.parametrize("spoil", [lambda path: os.truncate(path, 10), Path.unlink], ids=["short", "gone"])
def test_other_files_cut_short_or_gone_after_opening_are_errors_too(cache, spoil):
    opened = open_cache(cache)
    layer = opened.layer(2)
    spoil(cache / GROUP / "layers/2/norm/c/1")
    with pytest.raises(CorruptError, match="unit 1"):
        layer.norm([16_000])
    spoil(cache / GROUP / "tokens/role/c/0")
    with pytest.raises(CorruptError, match="tokens/role"):
        opened.rows(roles=["user"])


def test_where_the_kernel_cannot_be_asked_the_size_is_looked_at(cache, monkeypatch):
    monkeypatch.setattr("shared.reading.mapped_file._MADV_POPULATE_READ", 9999)  # as an older kernel
    layer = open_cache(cache).layer(2)
    layer.block(64)
    os.truncate(cache / SHARD, 5000)
    with pytest.raises(CorruptError, match="unit 1"):
        layer.block(127)


def test_a_map_lives_as_long_as_an_array_of_it_and_is_never_written_to(cache):
    def maps():
        return Path("/proc/self/maps").read_text().count(str(cache / SHARD))

    size = (cache / SHARD).stat().st_size
    file = MappedFile(cache / SHARD, size, "unit 1")
    part = file.bytes[100:200]
    with pytest.raises(ValueError, match=r"WRITEABLE|read-only"):
        file.bytes.flags.writeable = True
    del file
    assert maps() == 1
    assert bytes(part) == (cache / SHARD).read_bytes()[100:200]
    del part
    assert maps() == 0


def test_mapped_shards_need_no_open_file_each(tmp_path):
    geometry = Geometry(38_400, 38_400, 2, 128, 300)
    small.make(tmp_path / "cache", geometry)
    opened = open_cache(tmp_path / "cache")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(list(Path("/proc/self/fd").iterdir())) + 8, hard))
    try:
        layers = [opened.layer(layer) for layer in small.LAYERS]
        rows = [layer[:] for layer in layers]
        blocks = [layer.block(number) for layer in layers for number in range(300)]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert len(blocks) == 600
    for layer, found in zip(small.LAYERS, rows, strict=True):
        assert (found == small.rows_of(geometry, layer)).all()


def test_a_bus_error_that_comes_all_the_same_says_in_which_line(cache):
    """Between the kernel's answer and the touch a file can still be cut short: then faulthandler speaks."""
    code = (
        "import os, sys\n"
        "from shared.terminal import run_command\n"
        "from shared.reading.cache import open_cache\n"
        "def command():\n"
        "    block = open_cache(sys.argv[1]).layer(2).block(127)\n"
        "    os.truncate(sys.argv[2], 5000)\n"
        "    block.copy()\n"
        "run_command(command)\n"
    )
    ended = subprocess.run([sys.executable, "-c", code, cache, cache / SHARD], capture_output=True, text=True,
                           check=False)
    assert ended.returncode == -7
    assert "Bus error" in ended.stderr
    assert "in command" in ended.stderr


def test_what_was_given_back_is_read_again_and_the_advice_is_for_those_blocks_of_both_shards(cache, monkeypatch):
    layer, advised = open_cache(cache).layer(2), []
    rows = np.array(layer[:])

    def advise(descriptor, offset, length, advice):
        assert advice == os.POSIX_FADV_DONTNEED
        advised.append((os.fstat(descriptor).st_ino, offset, offset + length))

    monkeypatch.setattr("os.posix_fadvise", advise)
    layer.release(62, 65)
    stride = 128 * 8 * 2 + 4
    first, second = ((cache / GROUP / f"layers/2/resid_post/c/{shard}/0").stat().st_ino for shard in (0, 1))
    assert advised == [(first, 62 * stride, 64 * stride), (second, 0, 2 * stride)]
    assert (layer[:] == rows).all()


def test_what_is_asked_for_beforehand_is_those_blocks_of_both_shards(cache, monkeypatch):
    layer, advised = open_cache(cache).layer(2), []
    rows = np.array(layer[:])
    monkeypatch.setattr(mapped_file._libc, "madvise", lambda *arguments: advised.append(arguments) or 0)
    layer.prefetch([62, 64])
    stride, page = 128 * 8 * 2 + 4, mmap.PAGESIZE
    starts = [62 * stride // page * page, 0]
    mapped = [layer._shard(shard)._file._address for shard in (0, 1)]
    assert advised == [(address + start, block * stride + 128 * 8 * 2 - start, mmap.MADV_WILLNEED)
                       for address, start, block in zip(mapped, starts, (62, 0), strict=True)]
    monkeypatch.undo()
    assert (layer[:] == rows).all()


def test_bytes_are_asked_for_in_pieces_that_no_disks_readahead_cuts_short(tmp_path, monkeypatch):
    path, page, piece, advised = tmp_path / "file", mmap.PAGESIZE, 128 << 10, []
    path.write_bytes(bytes(1 << 20))
    file = MappedFile(path, 1 << 20, "unit 0")
    monkeypatch.setattr(mapped_file._libc, "madvise", lambda *arguments: advised.append(arguments) or 0)
    file.prefetch(page + 10, 420_000)
    monkeypatch.undo()
    at = file._address + page
    assert advised == [(at, piece, mmap.MADV_WILLNEED), (at + piece, piece, mmap.MADV_WILLNEED),
                       (at + 2 * piece, piece, mmap.MADV_WILLNEED),
                       (at + 3 * piece, 420_000 - page - 3 * piece, mmap.MADV_WILLNEED)]


@pytest.mark.parametrize("spoil", [lambda path: os.truncate(path, 10), Path.unlink], ids=["short", "gone"])
def test_asking_beforehand_is_advice_and_fails_nothing(cache, spoil):
    layer = open_cache(cache).layer(2)
    layer.block(127)
    spoil(cache / SHARD)
    layer.prefetch([64, 127])


@pytest.mark.parametrize("spoil", [lambda path: os.truncate(path, 10), Path.unlink], ids=["short", "gone"])
def test_giving_back_is_advice_and_fails_nothing(cache, spoil):
    layer = open_cache(cache).layer(2)
    layer.release(0, 127)  # before any file is open
    layer.block(127)
    spoil(cache / SHARD)
    layer.release(0, 127)


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="looks at Linux's list of pages")
def test_pages_that_were_given_back_are_out_of_this_process(cache):
    def resident():
        lines = Path("/proc/self/smaps").read_text().splitlines()
        start = next(i for i, line in enumerate(lines) if line.endswith(str(cache / SHARD)))
        return int(next(line.split()[1] for line in lines[start:] if line.startswith("Rss:")))

    layer = open_cache(cache).layer(2)
    for block in range(64, 128):
        layer.block(block)
    before = resident()
    layer.release(64, 127)
    assert before > 100
    assert resident() <= 8  # KiB: the page of the index
