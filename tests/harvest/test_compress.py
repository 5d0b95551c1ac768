"""`python -m harvest compress` and `expand` as a user meets them."""

import re
import shutil
import signal

import pytest

from shared.format.layout import COMMITS, GROUP, PLAN
from shared.reading.cache import open_cache
from tests import tiny


@pytest.fixture
def archive(command, cache_folder, tmp_path):
    path = tmp_path / "archive"
    ended = command.run("compress", cache_folder, path, "--threads", 1)
    assert ended.code == 0, ended.err
    return path


def test_there_and_back_with_ratio_and_speed_told(command, cache_folder, tmp_path):
    ended = command.run("compress", cache_folder, tmp_path / "archive", "--threads", 2)
    assert ended.code == 0, ended.err
    match = re.search(r"([\d.]+) GB -> .* ([\d.]+) GB, ([\d.]+)x smaller; rows equal bit for bit", ended.out)
    assert match
    sizes = [sum(path.stat().st_size for name in ("resid_post/c/*/0", "norm/c/*")
                 for path in (cache / GROUP / "layers").glob(f"*/{name}"))
             for cache in (cache_folder, tmp_path / "archive")]
    assert float(match[3]) == pytest.approx(sizes[0] / sizes[1], abs=0.001)
    assert re.search(r"\d+ units in [\d.]+ s, [\d.]+ GB/s of rows on 2 threads", ended.out)
    assert re.search(r"compress: ([\d,]+)/\1 rows", ended.err)
    ended = command.run("expand", tmp_path / "archive", tmp_path / "back")
    assert ended.code == 0, ended.err
    assert "larger; rows equal" in ended.out
    assert tiny.promised(tmp_path / "back") == tiny.promised(cache_folder)


def test_the_same_command_again_has_nothing_left_to_do(command, cache_folder, archive):
    ended = command.run("compress", cache_folder, archive)
    assert ended.code == 0, ended.err
    assert "nothing was left to do" in ended.out


def test_verify_and_status_take_an_archive_as_they_take_a_cache(command, archive):
    ended = command.run("verify", archive)
    assert ended.code == 0, ended.err
    assert "all as committed" in ended.out
    assert command.run("status", archive).code == 0
    path = archive / GROUP / "layers/2/resid_post/c/1/0"
    data = path.read_bytes()
    path.chmod(0o644)
    path.write_bytes(data[:400] + bytes([data[400] ^ 1]) + data[401:])
    ended = command.run("verify", archive)
    assert ended.code == 77
    assert "unit 0, layer 2: damaged: 1 of its 2 blocks (0)" in ended.err


def test_a_damaged_block_of_the_cache_is_exit_77_and_names_unit_and_command(command, cache_folder, tmp_path):
    shutil.copytree(cache_folder, tmp_path / "cache")
    unit = 3
    shard = open_cache(cache_folder).geometry.unit_shards(unit)[0]
    path = tmp_path / "cache" / GROUP / f"layers/0/resid_post/c/{shard}/0"
    data = path.read_bytes()
    path.chmod(0o644)
    path.write_bytes(bytes([data[0] ^ 1]) + data[1:])
    ended = command.run("compress", tmp_path / "cache", tmp_path / "archive")
    assert ended.code == 77
    assert f"unit {unit}" in ended.err
    assert "python -m harvest verify" in ended.err
    assert len([*(tmp_path / "archive" / COMMITS).glob("*/*.json")]) == unit


def test_nothing_is_harvested_into_an_archive(command, cache_folder, archive, llama, chat_file):
    sizes = [word for size in ("rows_per_shard=256", "batch_tokens=512", "plan_tokens=all")
             for word in ("--set", f"harvest.{size}")]
    before = tiny.promised(archive)
    ended = command.run("run", "--model", llama, "--dataset", chat_file, "--cache", archive, "--layers", "0 2",
                        "--num-tokens", 1000, "--threads", 1, *sizes)
    assert ended.code == 76, ended.err
    assert "is an archive" in ended.err
    assert "python -m harvest expand" in ended.err
    assert tiny.promised(archive) == before


def test_sigterm_stops_between_two_pieces_and_the_same_command_goes_on(command, cache_folder, tmp_path):
    prelude = ("import os, signal, shared.upkeep.transcode_unit as unit; write = unit.UnitTranscoder.write; seen = [];"
               "unit.UnitTranscoder.write = lambda self, work, advance: (seen.append(work), len(seen) == 3 and "
               "os.kill(os.getpid(), signal.SIGTERM), write(self, work, advance))[-1]")
    ended = command.run("compress", cache_folder, tmp_path / "archive", prelude=prelude)
    assert ended.code == 128 + signal.SIGTERM
    assert len([*(tmp_path / "archive" / COMMITS).glob("*/*.json")]) == 2
    assert command.run("compress", cache_folder, tmp_path / "archive").code == 0
    units = open_cache(cache_folder).committed_units(2)
    assert open_cache(tmp_path / "archive", verify="open").committed_units(2) == units


@pytest.mark.parametrize(("arguments", "code", "said"), [
    (("nosuch", "new"), 74, "no cache at caches/nosuch"),
    ((), 2, "CACHE"),
])
def test_what_is_wrong_with_the_arguments_is_told(command, arguments, code, said):
    ended = command.run("compress", *arguments)
    assert ended.code == code
    assert said in ended.err
    assert "Traceback" not in ended.err


def test_a_cache_that_is_no_archive_cannot_be_expanded(command, cache_folder, tmp_path):
    ended = command.run("expand", cache_folder, tmp_path / "new")
    assert ended.code == 2
    assert "is no archive" in ended.err
    assert not (tmp_path / "new" / PLAN).exists()
