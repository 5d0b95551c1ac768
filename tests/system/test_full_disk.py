"""A disk that fills up stops a harvest or a training cleanly, whatever its size, and with more room it goes on.

A disk of every size is a file system in memory; to mount one takes a superuser.
"""

import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from shared.errors import TryAgainError
from tests import tiny
from tests.harvest.test_run import arguments
from tests.train import tiny_run
from tests.train.test_run import metrics, weights
from tests.warm import Warm

pytestmark = pytest.mark.system


@pytest.fixture(scope="module")
def command(tmp_path_factory):
    warm = Warm("harvest", tmp_path_factory.mktemp("commands"), "transformers.models.llama.modeling_llama",
                "zarr.codecs")
    yield warm
    warm.close()


@pytest.fixture
def disk(tmp_path):
    """A file system of its own that holds a megabyte; its folder."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder], capture_output=True).returncode:
        pytest.skip("not a superuser: cannot mount a small disk")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def resize(folder: Path, size: int) -> None:
    subprocess.run(["mount", "-o", f"remount,size={size}", folder], check=True)


def test_twenty_sizes_of_disk_stop_it_with_75_and_the_command_that_goes_on(command, llama, chat_file, tmp_path, disk):
    whole = tmp_path / "whole"
    assert command.run(*arguments(llama, chat_file, whole)).code == 0
    promised = tiny.promised(whole)
    size = sum(path.stat().st_blocks * 512 for path in whole.rglob("*"))
    stops = set()
    for share in np.linspace(0.03, 0.85, 20):
        cache = disk / "cache"
        shutil.rmtree(cache, ignore_errors=True)
        resize(disk, int(share * size))
        # The check before the work would see most of it coming: without it, every write has to.
        blind = "import harvest.run; harvest.run.check_space = lambda *_: None"
        ended = command.run(*arguments(llama, chat_file, cache), prelude=blind)
        assert ended.code == 75, (share, ended.err)
        assert "Traceback" not in ended.err
        assert "No space left" in ended.err
        assert "To go on: " in ended.err
        stops.add(len(list(cache.glob("commits/*/*.json"))) if (cache / "plan.json").exists() else -1)
        resize(disk, 4 * size)
        ended = command.run(*arguments(llama, chat_file, cache))
        assert ended.code == 0, (share, ended.err)
        assert tiny.promised(cache) == promised
    assert len(stops) > 4, f"the disk was always full at the same point: {stops}"


def test_a_disk_of_any_size_stops_a_training_with_75_and_it_ends_with_the_same_weights_and_figures(tmp_path, disk):
    recipe = {"train": {**tiny_run.RECIPE["train"], "num_tokens": 64 * 40, "log_steps": 1},
              "sae": [{**table, "d_sae": 480} for table in tiny_run.RECIPE["sae"][:2]]}
    _, whole = tiny_run.train(tmp_path / "whole", recipe)
    stops = set()
    for size in range(8 << 10, 1800 << 10, 100 << 10):
        runs = disk / "runs"
        shutil.rmtree(runs, ignore_errors=True)
        resize(disk, size)
        with pytest.raises(TryAgainError, match="No space left"):
            tiny_run.train(runs, recipe)
        stops.add((len(list(runs.rglob("step-*"))), len(list(runs.rglob("*.safetensors")))))
        assert not list(runs.rglob("tmp-*"))
        resize(disk, 16 << 20)
        _, folders = tiny_run.train(runs, recipe)
        assert weights(folders) == weights(whole), size
        assert list(map(metrics, folders)) == list(map(metrics, whole)), size
    assert len(stops) > 2, f"the disk was always full at the same point: {stops}"


def test_what_will_not_fit_is_told_before_the_work_with_the_tokens_that_do(command, llama, chat_file, disk):
    resize(disk, 64 << 20)
    cache = disk / "cache"
    words = arguments(llama, chat_file, cache)
    assert command.run("plan", *[word for word in words[1:] if word not in {"--threads", 1}]).code == 0
    used = sum(path.stat().st_blocks * 512 for path in cache.rglob("*"))
    resize(disk, used + (400 << 10))
    ended = command.run(*words)
    assert ended.code == 75, ended.err
    assert "Not enough disk" in ended.err
    tokens = re.search(r"TOKENS=(\d+)", ended.err)
    assert tokens, ended.err
    fits = [*words[: words.index("--num-tokens") + 1], tokens[1], *words[words.index("--num-tokens") + 2 :]]
    assert command.run(*fits).code == 0
