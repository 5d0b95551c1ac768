"""What is resolved on the hub is kept: a branch that moves on changes no cache that is there."""

import shutil
from pathlib import Path

import pytest

from harvest.config import HarvestConfig
from harvest.device import find_device
from harvest.hub import kept_commit
from harvest.job import prepare
from harvest.opening import open_plan
from harvest.run import harvest
from harvest.sources import find_source
from shared.errors import IdentityError, RecipeError, TryAgainError
from shared.format.plan import read_plan
from tests import tiny
from tests.harvest import hub_cache

REPO, FIRST, SECOND = "org/model", "1" * 40, "2" * 40


@pytest.fixture
def hub(monkeypatch, llama, tmp_path):
    """A hub cache with a model at its first commit."""
    hub = hub_cache.use(monkeypatch, tmp_path)
    hub_cache.add_snapshot(hub, REPO, llama, FIRST)
    return hub


def move_on(hub, llama, tmp_path):
    """The branch moves to a commit with other weights."""
    other = Path(shutil.copytree(llama, tmp_path / "other"))
    weights = other / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\0")
    hub_cache.add_snapshot(hub, REPO, other, SECOND)


def start(cache, data, plan=None, **settings):
    """What `harvest run` does."""
    settings = {"model": REPO, "dataset": str(data)} | tiny.SETTINGS | {"num_tokens": 1024} | settings
    job = prepare(HarvestConfig.model_validate(settings), find_device("cpu"), plan)
    open_plan(job, cache)
    return harvest(job, cache)


def test_a_branch_that_moved_on_does_not_change_a_cache_that_is_there(hub, llama, chat_file, tmp_path):
    before = start(tmp_path / "cache", chat_file)
    done = {*before.committed_units(0)}
    assert before.identity["model"]["revision"] == FIRST
    move_on(hub, llama, tmp_path)
    after = start(tmp_path / "cache", chat_file, read_plan(tmp_path / "cache"), num_tokens=3000)
    assert done < {*after.committed_units(0)}
    assert start(tmp_path / "first", chat_file, revision=FIRST, num_tokens=3000).plan == after.plan
    assert tiny.promised(tmp_path / "first") == tiny.promised(tmp_path / "cache")  # all from the first commit
    assert start(tmp_path / "new", chat_file).identity["model"]["revision"] == SECOND


@pytest.mark.parametrize("revision", ["main", SECOND])
def test_a_revision_that_is_asked_for_comes_before_the_one_that_is_kept(hub, llama, chat_file, tmp_path, revision):
    start(tmp_path / "cache", chat_file)
    move_on(hub, llama, tmp_path)
    with pytest.raises(IdentityError, match=f"model.revision +{FIRST} +{SECOND}"):
        start(tmp_path / "cache", chat_file, read_plan(tmp_path / "cache"), revision=revision)


def test_another_models_commit_is_not_kept():
    kept = {"name": REPO, "revision": FIRST}
    assert kept_commit(REPO, None, kept) == FIRST
    assert kept_commit("org/other", None, kept) is None
    assert kept_commit(REPO, "main", kept) is None
    assert kept_commit(REPO, None, None) is None
    assert kept_commit(REPO, None, {"name": REPO, "revision": None}) is None


def test_a_data_sets_commit_is_kept_too(monkeypatch, tmp_path):
    root = hub_cache.use(monkeypatch, tmp_path) / "datasets--org--chats"
    for commit in FIRST, SECOND:
        (root / "snapshots" / commit).mkdir(parents=True)
        (root / "snapshots" / commit / "README.md").write_text("chats")
        (root / "refs").mkdir(exist_ok=True)
        (root / "refs" / "main").write_text(commit)
    made = find_source("org/chats", revision=FIRST).identity
    assert made == {"name": "org/chats", "revision": FIRST, "split": "train"}
    assert find_source("org/chats").identity["revision"] == SECOND
    assert find_source("org/chats", kept=made).identity == made
    assert find_source("org/chats", revision="main", kept=made).identity["revision"] == SECOND


def test_a_commit_that_is_not_in_the_cache_needs_the_hub(hub, chat_file, tmp_path):
    with pytest.raises(TryAgainError, match=r"Cannot reach the model hub for 'org/model'.*MODEL=path/to/folder"):
        start(tmp_path / "cache", chat_file, revision="3" * 40)


@pytest.mark.parametrize("name", ["bad name/x", "user:pass@org/name", "org/na?me", "-org/name"])
def test_a_name_that_is_no_hub_id_is_refused(name):
    with pytest.raises(RecipeError, match="is no hub id"):
        find_source(name)
