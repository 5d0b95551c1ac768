"""A harvest that SLURM preempts is requeued, goes on and ends with the same bytes."""

import shlex
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests import tiny
from tests.harvest.test_run import arguments, units_there
from tests.system import slurm

pytestmark = pytest.mark.system

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    if slurm.missing():
        pytest.skip(f"not installed: {', '.join(slurm.missing())}")
    with ExitStack() as stack:
        try:
            running = stack.enter_context(slurm.running(tmp_path_factory.mktemp("slurm")))
        except (AssertionError, OSError) as error:
            pytest.skip(f"SLURM is installed and does not start here: {error}")
        yield running


@pytest.mark.timeout(1200)
def test_a_preempted_harvest_is_requeued_and_ends_with_the_same_bytes(cluster, llama, tmp_path):
    chats = tiny.write_jsonl(tmp_path / "chats.jsonl", tiny.chats(1500))
    cache = tmp_path / "cache"
    # Slow enough that it is met at work: half a second a batch.
    slow = ("import time, harvest.forward as f; run = f.Forward.run; "
            "f.Forward.run = lambda *a: (time.sleep(0.5), run(*a))[1]; "
            "from shared.terminal import run_command; from harvest.__main__ import main; run_command(main)")
    words = map(str, arguments(llama, chats, cache, num_tokens=60_000))
    command = shlex.join([sys.executable, "-c", slow, *words])
    job = cluster.submit("low", f"cd {shlex.quote(str(ROOT))}\nexport OMP_NUM_THREADS=1\nexec {command}\n")
    slurm.wait_for(lambda: cache.exists() and units_there(cache) >= 2)
    other = cluster.submit("high", "sleep 3\n")
    slurm.wait_for(lambda: "Waiting for SLURM" in cluster.output(job))
    assert "Traceback" not in cluster.output(job)
    stopped_at = units_there(cache)
    assert not [path for path in (cache / "tmp").rglob("*") if path.is_file()]  # all is cleaned up before it waits
    slurm.wait_for(lambda: cluster.state(other)["JobState"] == "COMPLETED")
    slurm.wait_for(lambda: cluster.state(job)["JobState"] == "RUNNING")  # SLURM waits two minutes itself
    assert int(cluster.state(job)["Restarts"]) == 1
    slurm.wait_for(lambda: units_there(cache) > stopped_at)
    cluster.run("scancel", job)
    slurm.wait_for(lambda: cluster.state(job)["JobState"] == "CANCELLED")  # and is not brought back
    time.sleep(2)
    assert cluster.state(job)["JobState"] == "CANCELLED"
    tiny.make_cache(cache, llama, chats, num_tokens=60_000)
    whole = tmp_path / "whole"
    tiny.make_cache(whole, llama, chats, num_tokens=60_000)
    assert tiny.promised(cache) == tiny.promised(whole)
