"""`status`, `verify`, `gc`, `doctor` and `diff` on caches that are whole, damaged and at work."""

import json
import os
import shutil
import signal
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from harvest.__main__ import main
from shared.errors import StorageError, UserError
from shared.format.commits import record_path
from shared.format.layout import GROUP, PLAN
from tests import tiny
from tests.harvest.test_repair import flip, norms, read_sealed, reseal, shard, status_of
from tests.warm import Ended

SET = [word for key in ("rows_per_shard=256", "batch_tokens=512", "plan_tokens=all")
       for word in ("--set", f"harvest.{key}")]

PAUSE = (
    "import os, signal, shared.storage as storage\n"
    "seen = []\n"
    "def pause(operation, path):\n"
    "    seen.append(operation)\n"
    "    if operation == 'fsync' and seen.count('rename') > 40:\n"
    "        os.kill(os.getpid(), signal.SIGSTOP)\n"
    "        storage._observer = None\n"
    "storage._observer = pause\n"
)
"""Stops itself, as SIGSTOP from outside would, in the middle of finishing a unit."""


@pytest.fixture
def copy(cache_folder, tmp_path):
    return Path(shutil.copytree(cache_folder, tmp_path / "copy"))


def arguments(llama, chat_file, cache, num_tokens=4096):
    return ["run", "--model", llama, "--dataset", chat_file, "--cache", cache, "--layers", "0 2", "--threads", 1,
            "--workers", 1, "--num-tokens", num_tokens, *SET]


def wait_until_stopped(pid):
    for _ in range(2000):
        if Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "T":
            return
        time.sleep(0.01)
    raise AssertionError("it was not stopped")


def run_here(*words):
    """A command in this process: the warm one waits for the command that it has started."""
    result = CliRunner().invoke(main, [str(word) for word in words])
    code = result.exception.exit_code if isinstance(result.exception, UserError) else result.exit_code
    return Ended(code, result.stdout, result.stderr)


def test_a_paused_writer_is_shown_with_what_it_holds_and_gc_leaves_it_alone(
    command, llama, chat_file, tmp_path
):
    cache = tmp_path / "cache"
    pid = command.start(*arguments(llama, chat_file, cache), prelude=PAUSE)
    wait_until_stopped(pid)
    [writer] = [path.name for path in (cache / "tmp").iterdir()]
    there = status_of(cache)
    shown = run_here("status", cache, "--json")
    [described] = json.loads(shown.out)
    [one] = described["writers"]
    [harvested] = described["passes"]
    assert (one["writer"], one["state"]) == (writer, "alive")
    assert one["units"][harvested["pass"]]
    assert 0 < harvested["units"] < described["units"]
    assert harvested["tokens_asked"] == 4096
    assert harvested["tokens_per_second"][writer] > 0
    assert harvested["seconds_left"] > 0
    text = run_here("status", cache).out
    assert f"{writer}: alive" in text.replace("\n", " ")
    assert "left for the 4,096 asked, about" in " ".join(text.split())
    collected = run_here("gc", cache)
    assert collected.code == 0, collected.err
    assert "0 leftovers, 0 bytes freed" in collected.out
    assert status_of(cache) == there
    os.kill(pid, signal.SIGCONT)
    assert command.wait().code == 0
    assert "0 leftovers" in run_here("gc", cache).out
    assert run_here("verify", cache).code == 0
    assert json.loads(run_here("status", cache, "--json").out)[0]["writers"] == []


def test_a_killed_writers_leftovers_are_listed_counted_and_removed(command, llama, chat_file, tmp_path):
    cache = tmp_path / "cache"
    pid = command.start(*arguments(llama, chat_file, cache), prelude=PAUSE)
    wait_until_stopped(pid)
    os.kill(pid, signal.SIGKILL)
    assert command.wait().code == -signal.SIGKILL
    assert ": dead" in command.run("status", cache).out
    there = status_of(cache)
    dry = command.run("gc", cache, "--dry-run")
    assert dry.code == 0, dry.err
    assert "temporaries of a writer that has ended" in dry.out
    assert status_of(cache) == there
    freed = int(dry.out.splitlines()[-1].split(" leftovers, ")[1].split()[0].replace(",", ""))
    before = sum(path.stat().st_size for path in cache.rglob("*") if path.is_file())
    ended = command.run("gc", cache)
    assert ended.code == 0, ended.err
    assert ended.out.splitlines()[-1] == dry.out.splitlines()[-1].replace("to free", "freed")
    assert before - sum(path.stat().st_size for path in cache.rglob("*") if path.is_file()) >= freed > 10_000
    assert not list((cache / "tmp").iterdir())
    assert "0 leftovers" in command.run("gc", cache).out
    assert command.run(*arguments(llama, chat_file, cache)).code == 0
    assert command.run("verify", cache).code == 0


def test_gc_keeps_writers_of_other_machines_unless_told_that_they_have_ended(command, copy):
    folder = copy / "tmp" / "otherhost-1-abcdef"
    folder.mkdir()
    (folder / "heartbeat").write_text(f"{folder.name} another-boot {3:012d}\n")
    assert f"{folder.name}: on another machine for 6 s" in " ".join(command.run("status", copy).out.split())
    kept = command.run("gc", copy)
    assert kept.code == 0
    assert f"Kept: {folder.name}" in kept.out
    prelude = "import sys, harvest.commands.gc\nsys.modules['harvest.commands.gc'].PATIENCE_SECONDS = 0.1\n"
    ended = command.run("gc", copy, "--stalled", prelude=prelude)
    assert ended.code == 0, ended.err
    assert not folder.exists()


def test_gc_of_a_damaged_cache_removes_nothing_and_of_no_cache_says_so(command, copy, tmp_path):
    (copy / "tmp" / "host-1-abcdef").mkdir()
    [record] = copy.glob("commits/*/000002.g0.json")
    record.write_text("{}")
    ended = command.run("gc", copy)
    assert ended.code == 77
    assert "Nothing is removed from a damaged cache" in ended.err
    assert (copy / "tmp" / "host-1-abcdef").exists()
    assert command.run("gc", tmp_path / "nosuch").code == 74


def test_status_fits_a_terminal_and_tells_scripts_the_same(command, cache_folder):
    ended = command.run("status", cache_folder)
    assert ended.code == 0, ended.err
    assert max(len(line) for line in ended.out.splitlines()[1:]) <= 100  # the first is the path
    assert "100.0 % of the plan" in " ".join(ended.out.split())
    [described] = json.loads(command.run("status", cache_folder, "--json").out)
    [harvested] = described["passes"]
    files = [path for path in (cache_folder / GROUP / "layers").glob("*/*/c/**/*") if path.is_file()]
    assert harvested["bytes"] == harvested["bytes_planned"] == sum(path.stat().st_size for path in files)
    assert harvested["units"] == described["units"] == 13
    assert harvested["tokens"] == described["train_tokens"] + described["held_out_tokens"]
    assert described["problems"] == harvested["repaired"] == []


@pytest.mark.parametrize("name", [PLAN, "passes/*.json", "commits/*/000004.g0.json"])
@pytest.mark.parametrize("how", ["flipped", "gone", "empty"])
def test_status_of_a_damaged_cache_says_what_can_be_said(command, copy, name, how):
    [path] = copy.glob(name)
    path.chmod(0o644)
    if how == "flipped":
        flip(path, 30)
    elif how == "empty":
        path.write_bytes(b"")
    else:
        path.unlink()
    ended = command.run("status", copy)
    assert "Traceback" not in ended.err
    assert "units" in ended.out
    if how == "gone" and name.startswith("commits"):
        assert ended.code == 0  # no record, no unit
        assert "12 of 13 units" in ended.out
        return
    assert ended.code == 77
    assert path.name in " ".join(ended.out.split())
    assert f"verify {copy}" in ended.err
    verified = command.run("verify", copy)
    assert verified.code == 77
    assert path.name in verified.err
    assert "Traceback" not in verified.err


def test_verify_names_file_unit_layer_and_blocks_and_what_to_type(command, copy):
    flip(shard(copy, 2, 3))
    flip(shard(copy, 0, 4), 128 * 32 * 2 + 4 + 5)
    flip(shard(copy, 0, 5), -1)
    norms(copy, 0, 6).unlink()
    ended = command.run("verify", copy)
    assert ended.code == 77
    lines = dict(line.split(": ", 1) for line in ended.err.splitlines() if line.startswith(str(copy)))
    assert lines == {
        str(shard(copy, 2, 3)): "unit 3, layer 2: damaged: 1 of its 2 blocks (0)",
        str(shard(copy, 0, 4)): "unit 4, layer 0: damaged: 1 of its 2 blocks (1)",
        str(shard(copy, 0, 5)): "unit 5, layer 0: damaged, its xxh3 is not the recorded one",
        str(norms(copy, 0, 6)): "unit 6, layer 0: No such file or directory",
    }
    assert "units 3-6 of pass" in ended.err
    assert f"python -m harvest repair {copy}" in ended.err
    assert command.run("verify", copy, "--unit", "0-2").code == 0
    assert command.run("verify", copy, "--units", "3", "--layer", 0).code == 0
    assert command.run("verify", copy, "--units", "3", "--layer", 2).code == 77
    assert command.run("verify", copy, "--units", "77").code == 2


def test_diff_tells_what_two_caches_were_made_from_and_hold(command, cache_folder, copy, llama, chat_file, tmp_path):
    same = command.run("diff", cache_folder, copy)
    assert (same.code, same.err) == (0, "")
    [gone] = copy.glob("commits/*/000004.g0.json")
    gone.unlink()
    ended = command.run("diff", cache_folder, copy)
    assert ended.code == 1
    assert f"units 4 only in {cache_folder}" in ended.out
    other = tiny.make_cache(tmp_path / "other", llama, chat_file, seed=5, num_tokens=300, layers=[1]).path
    ended = command.run("diff", cache_folder, other)
    assert ended.code == 1
    assert "seed" in ended.out
    assert f"layers [1] (float32, sdpa): only in {other}" in ended.out
    assert command.run("diff", cache_folder, tmp_path / "nosuch").code == 74


def test_diff_sees_other_rows_of_the_same_units(command, cache_folder, copy):
    [folder] = (copy / "commits").iterdir()
    path = record_path(copy, folder.name, 4)
    record = read_sealed(path)
    record["blocks"]["xxh3"] = "0" * 32
    reseal(path, blocks=record["blocks"], made_with=record["made_with"] | {"threads": 8})
    ended = command.run("diff", cache_folder, copy)
    assert ended.code == 1
    assert "units 4 have other rows" in ended.out
    assert "threads" in ended.out


def test_an_archive_is_the_same_cache_and_is_not_repaired_but_made_anew(command, copy, llama, tmp_path):
    archive = tmp_path / "archive"
    assert command.run("compress", copy, archive).code == 0
    assert command.run("diff", copy, archive).code == 0
    assert "(float32, sdpa, archive)" in command.run("status", archive).out
    flip(shard(archive, 2, 3), 100)
    verified = command.run("verify", archive)
    assert verified.code == 77
    assert "unit 3, layer 2" in verified.err
    for ended in (verified, command.run("repair", archive, "--model", llama)):
        assert f"python -m harvest compress SOURCE {archive}" in ended.err
        assert "harvest repair" not in ended.err
    assert ended.code == 2
    assert command.run("add-layers", archive, "--layers", "1", "--model", llama).code == 2


def test_doctor_leaves_nothing_behind_and_fails_where_something_needed_is_missing(command, tmp_path):
    ended = command.run("doctor", tmp_path)
    assert ended.code == 0, ended.err
    assert "ok    link" in ended.out
    assert not [path for path in tmp_path.iterdir() if "doctor" in path.name]
    prelude = (
        "import errno, shared.storage as storage\n"
        "def refuse(operation, path):\n"
        "    if operation == 'link':\n"
        "        raise OSError(errno.EOPNOTSUPP, 'Operation not supported', str(path))\n"
        "storage._observer = refuse\n"
    )
    broken = command.run("doctor", tmp_path / "new" / "folder", prelude=prelude)
    assert broken.code == StorageError.exit_code == 74
    assert "FAIL  link" in broken.out
    assert "CACHE=/scratch/name" in broken.err
    assert not list(tmp_path.iterdir())
