"""Killed at any time and started again, a harvest ends with the bytes of one that was never stopped."""

import os
import random
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest

from harvest.opening import open_plan
from harvest.run import harvest
from shared.format.plan import read_plan
from shared.reading.cache import open_cache
from shared.upkeep.verify import files_to_check, verify
from shared.writing.writers import recover
from tests import tiny

SET = [f"harvest.{key}={value!r}" for key, value in tiny.SETTINGS.items() if key not in {"layers", "num_tokens"}]


def arguments(model, data, cache, num_tokens=4096):
    options = ["--model", model, "--dataset", data, "--cache", cache, "--num-tokens", num_tokens, "--layers", "0 2"]
    return ["run", *options, "--threads", 1, *(word for item in SET for word in ("--set", item))]


def promised_by_command(command, llama, chat_file, cache):
    ended = command.run(*arguments(llama, chat_file, cache))
    assert ended.code == 0, ended.err
    return tiny.promised(cache)


def units_there(cache: Path) -> int:
    """Committed units; -1 before there is a plan, -2 before there is a folder."""
    if not cache.exists():
        return -2
    return len(list(cache.glob("commits/*/*.json"))) if (cache / "plan.json").exists() else -1


@pytest.fixture(scope="module")
def undisturbed(command, llama, chat_file, tmp_path_factory):
    """What an uninterrupted command leaves."""
    return promised_by_command(command, llama, chat_file, tmp_path_factory.mktemp("whole") / "cache")


def test_killed_at_random_times_and_run_again_it_leaves_the_same_bytes(
    command, llama, chat_file, tmp_path, undisturbed
):
    rng = random.Random(1)
    states = []
    for trial in range(3):
        cache = tmp_path / f"cache{trial}"
        for wanted in sorted(rng.sample(range(-2, 9), 4)):  # units there when it is killed, or a little more
            pid = command.start(*arguments(llama, chat_file, cache))
            deadline = time.monotonic() + 60
            while units_there(cache) < wanted and time.monotonic() < deadline:
                time.sleep(0.001)
            time.sleep(rng.uniform(0, 0.05))
            os.kill(pid, signal.SIGKILL)
            ended = command.wait()
            states.append(units_there(cache))
            assert ended.code in {-signal.SIGKILL, 0}, ended.err
        assert promised_by_command(command, llama, chat_file, cache) == undisturbed
        left = [path for path in (cache / "tmp").rglob("*") if path.is_file()]
        assert {path.name for path in left} <= {"heartbeat.new"}  # of one killed in the middle of its birth: for gc
        assert not [checked for checked in verify(files_to_check(cache)) if checked.problem]
        shutil.rmtree(cache)
    assert len(set(states)) > 2, f"the kills all landed in the same state: {states}"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_it_with_its_own_exit_code_and_nothing_half_done(
    command, llama, chat_file, tmp_path, undisturbed, number
):
    cache = tmp_path / "cache"
    seconds, ended = 0.3, None
    while ended is None or (ended.code == 128 + number and units_there(cache) < 1 and seconds < 2):
        ended = command.kill_after(seconds, *arguments(llama, chat_file, cache), number=number)
        seconds += 0.1
    assert ended.code in {128 + number, 0}, ended.err
    assert "Traceback" not in ended.err
    assert promised_by_command(command, llama, chat_file, cache) == undisturbed


def test_the_command_and_the_functions_make_the_same_cache(llama, chat_file, tmp_path, undisturbed):
    tiny.make_cache(tmp_path / "cache", llama, chat_file)
    assert tiny.promised(tmp_path / "cache") == undisturbed


def test_a_larger_number_of_tokens_goes_on_and_touches_nothing_there(llama, chat_file, tmp_path):
    cache = tmp_path / "cache"
    job = tiny.make_job(llama, chat_file, num_tokens=2048)
    open_plan(job, cache)
    small = harvest(job, cache)
    held_out = small.rows(layer=0, split="held_out")
    assert len(held_out) == small.num_rows - small.num_train_rows > 0  # held-out units come first
    assert 2048 <= len(small.rows(layer=0, split="train")) < small.num_train_rows
    before = {path: path.stat() for path in cache.rglob("*") if path.is_file()}
    more = harvest(tiny.make_job(llama, chat_file, num_tokens=5000), cache)
    assert len(more.rows(layer=0, split="train")) >= 5000
    for path, was in before.items():
        if path.name != "provenance.jsonl":
            assert (path.stat().st_ino, path.stat().st_mtime_ns) == (was.st_ino, was.st_mtime_ns)

    at_once = tmp_path / "at_once"
    open_plan(tiny.make_job(llama, chat_file, num_tokens=2048), at_once)
    harvest(tiny.make_job(llama, chat_file, num_tokens=5000), at_once)
    assert tiny.promised(at_once) == tiny.promised(cache)


def test_asked_for_what_is_there_it_runs_no_model(llama, chat_file, cache_folder, tmp_path, monkeypatch):
    cache = Path(shutil.copytree(cache_folder, tmp_path / "cache"))
    monkeypatch.setattr("harvest.run.load_model", None)
    assert tiny.promised(cache) == tiny.promised(cache_folder)
    harvest(tiny.make_job(llama, chat_file, num_tokens=3000), cache)


def test_more_layers_are_a_second_pass_over_the_same_rows(llama, chat_file, tmp_path, cache_folder):
    cache = Path(shutil.copytree(cache_folder, tmp_path / "cache"))
    opened = harvest(tiny.make_job(llama, chat_file, layers=[1, 3], num_tokens=1024), cache)
    assert opened.layers == (0, 1, 2, 3)
    rows = opened.rows(layer=1)
    assert 1024 < len(rows) < opened.num_rows
    alone = tiny.make_cache(tmp_path / "alone", llama, chat_file, layers=[1])
    assert (alone.layer(1)[rows].view(np.uint16) == opened.layer(1)[rows].view(np.uint16)).all()


def test_a_copied_cache_is_whole(cache_folder, tmp_path):
    copy = Path(shutil.copytree(cache_folder, tmp_path / "elsewhere"))
    here, there = open_cache(cache_folder, verify="open"), open_cache(copy, verify="open")
    rows = here.rows(layer=2)
    assert (here.layer(2)[rows].view(np.uint16) == there.layer(2)[rows].view(np.uint16)).all()
    assert recover(copy) == 0


def test_a_batch_of_every_unit_is_computed_in_the_same_way_whatever_was_done_before(llama, chat_file, tmp_path):
    """A unit follows from the plan alone: without its neighbours it has the same bytes."""
    cache = tmp_path / "cache"
    job = tiny.make_job(llama, chat_file)
    open_plan(job, cache)
    harvest(job, cache)
    whole = tiny.promised(cache)
    unit = read_plan(cache).geometry.fill_order(4096)[4]
    for path in cache.glob(f"commits/*/{unit:06d}.*"):
        path.unlink()
    for shard in read_plan(cache).geometry.unit_shards(unit):
        for path in cache.glob(f"activations.zarr/layers/*/*/c/{shard}*"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    harvest(job, cache)
    assert tiny.promised(cache) == whole
