"""The real command with the real embedded model, killed at random times, again and again, until it is done."""

import os
import random
import shutil
import signal
import time
from collections import Counter
from itertools import islice

import pytest

from harvest import embedded
from shared.format.plan import read_plan
from tests import tiny
from tests.crash.oracle import damage, leftovers
from tests.warm import Warm

pytestmark = [pytest.mark.crash, pytest.mark.real_model]

KILLS = 55
"""Of each harvest; a few may come after its end."""
HARVESTS = 4
UNIT = 128
TOKENS = 100 * UNIT

# The child writes down every batch that goes through the model, so that work can be counted.
COUNT_WORK = """
from pathlib import Path
import harvest.run
run = harvest.run.Forward.run
def counted(self, batch, ids):
    with Path({log!r}).open("a") as log:
        log.write(f"{{sum(piece.stop - piece.keep for piece in batch)}}\\n")
    return run(self, batch, ids)
harvest.run.Forward.run = counted
"""


@pytest.fixture(scope="module")
def command(tmp_path_factory):
    """Runs `python -m harvest ...` in processes of their own."""
    warm = Warm("harvest", tmp_path_factory.mktemp("commands"), "transformers.models.llama.modeling_llama",
                "zarr.codecs", "torch._dynamo")
    yield warm
    warm.close()


@pytest.fixture(scope="module")
def options(tmp_path_factory):
    """A harvest of layer 1 of SmolLM2 over short chats, without the cache and the number of tokens."""
    short = (chat.as_dicts() for chat in embedded.read_chats() if sum(len(m.content) for m in chat.messages) < 300)
    data = tiny.write_jsonl(tmp_path_factory.mktemp("data") / "chats.jsonl", islice(short, 150))
    settings = ["rows_per_shard=128", "batch_tokens=512", "plan_tokens='all'"]
    return ["run", "--model", "smollm2-135m-instruct", "--dataset", data, "--layers", 1, "--threads", 1,
            *(word for item in settings for word in ("--set", f"harvest.{item}"))]


def words_for(options, cache):
    """The command for a cache. A plan for few tokens has small units: it is written first, and then extended."""
    return [*options, "--cache", cache, "--num-tokens", TOKENS if (cache / "plan.json").exists() else 8 * UNIT]


@pytest.fixture(scope="module")
def undisturbed(command, options, memory):
    """What the command leaves when it is not killed: the promised bytes, and the number of rows."""
    for _ in range(2):
        ended = command.run(*words_for(options, memory / "real"))
        assert ended.code == 0, ended.err
    geometry = read_plan(memory / "real").geometry
    assert geometry.rows_per_unit == UNIT
    return tiny.promised(memory / "real"), sum(len(geometry.unit_rows(u)) for u in geometry.fill_order(TOKENS))


def lines(path):
    return path.read_text().splitlines() if path.exists() else []


def kill_somewhere(command, words, prelude, log, rng):
    """Start the command and kill it: while it starts, or a moment after so many batches."""
    before = len(lines(log))
    batches = rng.choice([0, 0, 1, 2, 3])
    pid = command.start(*words, prelude=prelude)
    if batches == 0:
        time.sleep(rng.uniform(0, 1.5))
    started = time.monotonic()
    while len(lines(log)) < before + batches and time.monotonic() - started < 60:
        time.sleep(0.002)
    time.sleep(rng.uniform(0, 0.05))
    os.kill(pid, signal.SIGKILL)  # one that has ended is a zombie until the warm process waits for it
    return command.wait()


def test_killed_fifty_times_it_ends_bit_identical_and_has_done_little_twice(
    command, options, undisturbed, memory, tmp_path, share, counts
):
    for seed in range(share.number(HARVESTS)):
        harvest_under_kills(command, options, undisturbed, memory / f"real{seed}", tmp_path, share, counts, seed)


def harvest_under_kills(command, options, undisturbed, cache, folder, share, counts, seed):
    promised, rows = undisturbed
    rng = random.Random(seed)
    log, kills, states = folder / f"batches{seed}", 0, Counter()
    prelude = COUNT_WORK.format(log=str(log))
    with counts.timed("random kills"):
        for _ in range(share.number(KILLS, at_least=10)):
            ended = kill_somewhere(command, words_for(options, cache), prelude, log, rng)
            assert ended.code in {-signal.SIGKILL, 0}, ended.err
            kills += ended.code == -signal.SIGKILL
            there = len(list(cache.glob("commits/*/*.json"))) if (cache / "plan.json").exists() else -1
            states[there, any(cache.glob("tmp/*/unit-*/*"))] += 1
        ended = command.run(*words_for(options, cache), prelude=prelude)
    assert ended.code == 0, ended.err
    assert tiny.promised(cache) == promised
    assert damage(cache) == []
    assert leftovers(cache) == []
    counts.add("random kills", f"harvest {seed + 1}: kills", kills)
    work = sum(map(int, lines(log)))
    assert rows <= work <= rows + UNIT * kills, "a kill costs a unit at most"
    counts.add("random kills", f"harvest {seed + 1}: rows computed again", work - rows)
    counts.add("random kills", f"harvest {seed + 1}: rows", rows)
    assert len({units for units, _ in states}) > kills // 5, f"the kills all landed in the same state: {states}"
    assert sum(count for (_, open_unit), count in states.items() if open_unit) > kills // 5
    shutil.rmtree(cache)
