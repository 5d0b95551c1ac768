"""Python code that comes with a model is not run, unless a recipe says so for one commit of a hub model."""

import json
import shutil
from pathlib import Path

import pytest

from harvest.config import HarvestConfig
from harvest.device import find_device
from harvest.from_plan import find_planned_model
from harvest.job import prepare
from harvest.model import find_model
from harvest.opening import open_plan
from harvest.run import harvest
from shared.errors import IdentityError, RecipeError
from shared.format.layout import PROVENANCE
from tests import tiny
from tests.harvest import hub_cache
from tests.harvest.hub_cache import COMMIT

REPO = "org/planted"


@pytest.fixture
def canary(tmp_path):
    return tmp_path / "canary"


@pytest.fixture
def planted(llama, canary, tmp_path):
    """A local folder with code of its own, for model and tokenizer."""
    return hub_cache.plant_code(Path(shutil.copytree(llama, tmp_path / "planted")), canary)


@pytest.fixture
def hub(monkeypatch, planted, tmp_path):
    """A hub cache that holds it as one commit of a repository."""
    hub = hub_cache.use(monkeypatch, tmp_path)
    hub_cache.add_snapshot(hub, REPO, planted)
    return hub


def job(model, data, **settings):
    settings = {"model": str(model), "dataset": str(data)} | tiny.SETTINGS | {"num_tokens": 1024} | settings
    return prepare(HarvestConfig.model_validate(settings), find_device("cpu"))


@pytest.mark.usefixtures("hub")
def test_a_hub_models_code_is_not_run_and_the_message_says_how_it_would_be(chat_file, canary):
    with pytest.raises(RecipeError) as error:
        job(REPO, chat_file)
    assert f"--set harvest.trust_remote_code=true --set harvest.revision={COMMIT}" in str(error.value)
    assert not canary.exists()


def test_a_tokenizers_code_is_not_run(monkeypatch, llama, chat_file, canary, tmp_path):
    hub = hub_cache.use(monkeypatch, tmp_path)
    folder = hub_cache.plant_code(Path(shutil.copytree(llama, tmp_path / "model")), canary, model=False)
    hub_cache.add_snapshot(hub, REPO, folder)
    for model in (REPO, folder):
        with pytest.raises(RecipeError, match=r"Cannot read the tokenizer.*Python code that comes with it"):
            job(model, chat_file)
        assert not canary.exists()
    job(REPO, chat_file, trust_remote_code=True, revision=COMMIT)
    assert canary.read_text() == "tokenization "


@pytest.mark.usefixtures("hub")
def test_with_the_flag_and_the_commit_it_is_run_and_recorded(chat_file, canary, tmp_path):
    trusted = job(REPO, chat_file, trust_remote_code=True, revision=COMMIT)
    plan = open_plan(trusted, tmp_path / "cache")
    assert plan.identity["model"] == {
        "name": REPO, "revision": COMMIT, "weights": trusted.model.weights_digest(), "trust_remote_code": True}
    cache = harvest(trusted, tmp_path / "cache")
    assert {*canary.read_text().split()} == {"configuration", "modeling", "tokenization"}
    assert {record.made_with["remote_code"] for record in cache.records(0).values()} == {f"{REPO}@{COMMIT}"}
    lines = [json.loads(line) for line in (tmp_path / "cache" / PROVENANCE).read_text().splitlines()]
    assert {line["made_with"]["remote_code"] for line in lines if "unit" in line} == {f"{REPO}@{COMMIT}"}
    again = job(REPO, chat_file, trust_remote_code=True, revision=COMMIT)
    assert open_plan(again, tmp_path / "cache") == plan


def test_the_flag_is_part_of_the_identity_and_only_when_it_is_on(monkeypatch, llama, chat_file, tmp_path):
    hub_cache.add_snapshot(hub_cache.use(monkeypatch, tmp_path), REPO, llama)
    plain = open_plan(job(REPO, chat_file), tmp_path / "plain")
    assert "trust_remote_code" not in plain.identity["model"]
    with pytest.raises(IdentityError, match=r"model.trust_remote_code +\(not set\) +True"):
        open_plan(job(REPO, chat_file, trust_remote_code=True, revision=COMMIT), tmp_path / "plain")
    open_plan(job(REPO, chat_file, trust_remote_code=True, revision=COMMIT), tmp_path / "trusted")
    with pytest.raises(IdentityError, match=r"model.trust_remote_code +True +\(not set\)"):
        open_plan(job(REPO, chat_file, revision=COMMIT), tmp_path / "trusted")


@pytest.mark.usefixtures("hub")
def test_a_cache_does_not_get_code_run_by_saying_so(chat_file, canary, tmp_path):
    plan = open_plan(job(REPO, chat_file, trust_remote_code=True, revision=COMMIT), tmp_path / "cache")
    canary.unlink()
    for where in (None, REPO):
        with pytest.raises(RecipeError, match="--trust-remote-code"):
            find_planned_model(tmp_path / "cache", plan, where)
        source = find_planned_model(tmp_path / "cache", plan, where, trust_remote_code=True)
        assert (source.revision, source.trust_remote_code) == (COMMIT, True)
    assert not canary.exists()


@pytest.mark.usefixtures("hub")
@pytest.mark.parametrize(
    ("revision", "says"),
    [(None, "no revision is given"), ("main", "got revision 'main'"), ("v1.0", "got revision 'v1.0'"),
     (COMMIT[:12], f"got revision '{COMMIT[:12]}'"), (COMMIT + "\n", "got revision"), (COMMIT.upper(), "got revision")],
)
def test_without_the_commit_the_flag_is_refused(chat_file, canary, revision, says):
    with pytest.raises(RecipeError, match="40 hex digits") as error:
        job(REPO, chat_file, trust_remote_code=True, revision=revision)
    assert says in str(error.value)
    assert "--set harvest.revision=" in str(error.value)
    assert not canary.exists()


def test_code_of_a_local_folder_is_never_run(planted, chat_file, canary):
    with pytest.raises(RecipeError, match="that of a local folder is never run"):
        job(planted, chat_file)
    for revision in (COMMIT, None):
        with pytest.raises(RecipeError, match="is for hub models"):
            job(planted, chat_file, trust_remote_code=True, revision=revision)
    assert not canary.exists()


def test_the_embedded_model_has_no_code_to_trust():
    with pytest.raises(RecipeError, match="is for hub models"):
        find_model("smollm2-135m-instruct", COMMIT, None, trust_remote_code=True)


@pytest.mark.parametrize("parts", [{"model": True, "tokenizer": False}, {"model": False, "tokenizer": True}])
def test_code_of_another_repository_is_pinned_by_no_commit_and_refused(
    monkeypatch, llama, chat_file, canary, tmp_path, parts
):
    hub = hub_cache.use(monkeypatch, tmp_path)
    folder = Path(shutil.copytree(llama, tmp_path / "model"))
    hub_cache.add_snapshot(hub, REPO, hub_cache.plant_code(folder, canary, prefix="org/other--", **parts))
    hub_cache.add_snapshot(hub, "org/other", hub_cache.plant_code(folder, canary))
    with pytest.raises(RecipeError, match="takes code from another repository"):
        job(REPO, chat_file, trust_remote_code=True, revision=COMMIT)
    assert not canary.exists()


def test_weights_are_read_from_safetensors_alone(llama, chat_file, tmp_path):
    """A pickle beside them is not looked at, not even where the safetensors are no weights of the model."""
    folder = Path(shutil.copytree(llama, tmp_path / "model"))
    (folder / "model.safetensors").rename(folder / "other.safetensors")
    (folder / "pytorch_model.bin").write_bytes(b"a pickle")
    made = job(folder, chat_file)
    open_plan(made, tmp_path / "cache")
    with pytest.raises(RecipeError, match=r"Cannot load the model.*safetensors"):
        harvest(made, tmp_path / "cache")
