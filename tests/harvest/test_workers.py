"""Several processes fill one cache, started, stopped and killed at will; the bytes are those of one."""

import json
import os
import signal
import time

import pytest
import torch

from harvest.device import Device
from harvest.workers import default_threads, worker_commands
from shared.upkeep.verify import files_to_check, verify
from shared.writing.claims import holders
from shared.writing.writers import living_writers
from tests import tiny
from tests.harvest.test_run import arguments, units_there


def computed(cache):
    """The units that were computed, as often as they were."""
    lines = [json.loads(line) for line in (cache / "provenance.jsonl").read_text().splitlines()]
    return sorted(line["unit"] for line in lines if "unit" in line)


@pytest.fixture(scope="module")
def undisturbed(llama, chat_file, tmp_path_factory):
    path = tmp_path_factory.mktemp("whole") / "cache"
    tiny.make_cache(path, llama, chat_file)
    return tiny.promised(path)


def test_two_workers_make_the_cache_that_one_makes_and_do_nothing_twice(
    command, llama, chat_file, tmp_path, undisturbed
):
    cache = tmp_path / "cache"
    ended = command.run(*arguments(llama, chat_file, cache), "--workers", 2)
    assert ended.code == 0, ended.err
    assert tiny.promised(cache) == undisturbed
    assert len(computed(cache)) == len(set(computed(cache))) == units_there(cache)
    assert "harvest (2 workers)" in ended.err
    assert not list((cache / "tmp").iterdir())
    assert holders(cache) == {}
    again = command.run(*arguments(llama, chat_file, cache), "--workers", 2)
    assert again.code == 0
    assert len(computed(cache)) == units_there(cache)


@pytest.mark.system
def test_eight_workers_make_the_cache_that_one_makes(command, llama, chat_file, tmp_path, undisturbed):
    cache = tmp_path / "cache"
    ended = command.run(*arguments(llama, chat_file, cache), "--workers", 8)
    assert ended.code == 0, ended.err
    assert tiny.promised(cache) == undisturbed
    assert len(set(computed(cache))) == units_there(cache)


def test_commands_that_know_nothing_of_each_other_share_a_cache(command, llama, chat_file, tmp_path, undisturbed):
    cache = tmp_path / "cache"
    words = arguments(llama, chat_file, cache)
    ends = command.run_together([words] * 3)
    assert [ended.code for ended in ends] == [0, 0, 0], [ended.err for ended in ends]
    assert tiny.promised(cache) == undisturbed
    assert not [checked for checked in verify(files_to_check(cache)) if checked.problem]


SLOW = ("import time, harvest.forward as f; run = f.Forward.run; "
        "f.Forward.run = lambda *a: (time.sleep(0.05), run(*a))[1]")
"""Prelude of a command whose batches take a while, so that it is met at work."""


def wait_for(condition, seconds=120.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.01)


def test_a_killed_worker_is_not_missed(command, llama, chat_file, tmp_path, undisturbed):
    cache = tmp_path / "cache"
    words = arguments(llama, chat_file, cache)
    killed = command.start(*words, prelude=SLOW)
    wait_for(lambda: units_there(cache) >= 1)
    os.kill(killed, signal.SIGKILL)
    assert command.wait().code == -signal.SIGKILL
    assert holders(cache)  # it held a unit, which the next one takes over at once
    ended = command.run(*words)
    assert ended.code == 0, ended.err
    assert tiny.promised(cache) == undisturbed


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_workers_stop_when_their_parent_is_told_to_or_is_gone(command, llama, chat_file, tmp_path, number):
    cache = tmp_path / "cache"
    parent = command.start(*arguments(llama, chat_file, cache), "--workers", 2)
    wait_for(lambda: holders(cache))
    os.kill(parent, number)
    ended = command.wait()
    assert ended.code == (143 if number == signal.SIGTERM else -signal.SIGKILL), ended.err
    assert "Traceback" not in ended.err
    wait_for(lambda: not living_writers(cache))
    assert holders(cache) == {}


def test_the_cores_are_shared_out_and_starting_over_is_not_passed_on():
    assert default_threads(1) == torch.get_num_threads()
    assert default_threads(1000) == 1
    commands = worker_commands(["--model", "x", "--fresh", "--yes"], 2, 3, Device(torch.device("cpu")))
    assert len(commands) == 2
    for words in commands:
        assert words[1:6] == ["-m", "harvest", "run", "--model", "x"]
        assert words[6:] == ["--workers", "1", "--threads", "3", "--device", "cpu", "--worker", str(os.getpid())]
