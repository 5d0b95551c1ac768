"""The commands on caches from anybody: one line and an exit code, in a gigabyte more than they have and in seconds."""

import os
import shutil
from pathlib import Path

import pytest

from shared.format.layout import COMMITS, GROUP, PLAN, TMP
from tests.shared import hostile, small
from tests.shared.hostile import change_pass, change_plan, change_record, change_zarr, link_away, truncate

HUGE = 1 << 43
LIMITS = (
    "import resource, signal\n"
    "size = next(int(line.split()[1]) for line in open('/proc/self/status') if line.startswith('VmSize')) << 10\n"
    "resource.setrlimit(resource.RLIMIT_AS, (size + (1 << 30), size + (1 << 30)))\n"
    "signal.alarm(10)\n"
)

CACHES = {
    "a link": (lambda cache: link_away(cache / GROUP / "tokens/role/c/0", cache.parent / "moved"), 77, "is a link"),
    "a pipe": (lambda cache: os.mkfifo(cache / TMP / "heartbeat"), 77, "neither a file nor a folder"),
    "an endless plan": (lambda cache: truncate(cache / PLAN, HUGE), 77, "larger than"),
    "rows without end": (lambda cache: change_plan(cache, lambda plan: plan.update(
        num_rows=1 << 39, rows_per_shard=1 << 24, shards_per_unit=1 << 20, units=[(0, 1 << 39)])), 77, "vouches for"),
    "a file outside": (lambda cache: change_record(cache, lambda record: record["files"][0].update(
        temporary="../../etc/passwd")), 77, "not a valid record"),
    "a newer plan": (lambda cache: change_plan(cache, lambda plan: plan.update(format_version=2)), 76, "format 2"),
    "a newer pass": (lambda cache: change_pass(cache, lambda entry: entry.update(format_version=2)), 76, "format 2"),
    "nothing": (shutil.rmtree, 74, "no cache"),
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    path = tmp_path_factory.mktemp("whole") / "cache"
    hostile.make(path)
    return path


@pytest.mark.parametrize("name", CACHES)
@pytest.mark.parametrize("verb", ["status", "verify"])
def test_a_hostile_cache_ends_a_command_with_one_line_and_its_exit_code(command, verb, name, whole, tmp_path):
    cache = Path(shutil.copytree(whole, tmp_path / "cache"))
    spoil, code, says = CACHES[name]
    spoil(cache)
    ended = command.run(verb, cache, prelude=LIMITS)
    assert ended.code == code, ended
    assert says in " ".join(ended.err.split())
    assert "Traceback" not in ended.err


def test_a_codec_that_others_would_run_is_found_by_verify(command, whole, tmp_path):
    cache = Path(shutil.copytree(whole, tmp_path / "cache"))
    change_zarr(cache, "tokens/role", codecs=[{"name": "numcodecs.pickle"}])
    ended = command.run("verify", cache, prelude=LIMITS)
    assert ended.code == 77, ended
    assert "numcodecs.pickle" in ended.err


@pytest.mark.parametrize("name", ["layers", "layers/0/resid_post/c/0"])
def test_a_harvest_does_not_follow_a_link_out_of_the_cache(
    command, name, cache_folder, llama, chat_file, tmp_path
):
    """A folder of shards that leads elsewhere: harvesting its units again neither reads nor writes there."""
    cache = Path(shutil.copytree(cache_folder, tmp_path / "cache"))
    link_away(cache / GROUP / name, tmp_path / "elsewhere")
    shutil.rmtree(cache / COMMITS)
    before = [(path, path.stat().st_mtime_ns) for path in sorted((tmp_path / "elsewhere").rglob("*"))]
    ended = command.run(
        "run", "--model", llama, "--dataset", chat_file, "--cache", cache, "--layers", "0 2", "--num-tokens", 100_000,
        "--threads", 1, *(word for size in ("rows_per_shard=256", "batch_tokens=512", "plan_tokens=all")
                          for word in ("--set", f"harvest.{size}")),
    )
    assert ended.code == 77, ended
    assert "is a link" in ended.err
    assert [(path, path.stat().st_mtime_ns) for path in sorted((tmp_path / "elsewhere").rglob("*"))] == before


def test_status_without_a_name_goes_on_to_the_caches_that_are_well(command, whole, tmp_path):
    (tmp_path / "caches").mkdir()
    bad, good = (Path(shutil.copytree(whole, tmp_path / "caches" / name)) for name in ("bad", "good"))
    truncate(bad / PLAN, HUGE)
    ended = command.run("status", cwd=tmp_path, prelude=LIMITS)
    assert ended.code == 77
    assert f"layers {small.LAYERS}" in ended.out
    assert good.name in ended.out
