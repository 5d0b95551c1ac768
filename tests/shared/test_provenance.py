"""What is written beside the data of who made it: the commit is our checkout's, wherever a command is given."""

import subprocess

import pytest

from shared import provenance


@pytest.fixture
def repository(tmp_path):
    """A repository of one commit, which holds a folder."""
    folder = tmp_path / "repository"
    (folder / "inner").mkdir(parents=True)
    (folder / "inner/file.py").write_text("first")
    git(folder, "init", "--quiet")
    git(folder, "add", ".")
    git(folder, "-c", "user.name=t", "-c", "user.email=t@t", "commit", "--quiet", "--message", "first")
    return folder


def git(folder, *arguments):
    return subprocess.run(["git", "-C", folder, *arguments], check=True, capture_output=True, text=True).stdout.strip()


def commit_of(checkout, monkeypatch):
    monkeypatch.setattr(provenance, "_CHECKOUT", checkout)
    return provenance.versions.__wrapped__().get("commit")


def test_the_commit_is_the_checkouts_and_says_when_files_were_changed(repository, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert commit_of(repository, monkeypatch) == git(repository, "rev-parse", "HEAD")
    (repository / "inner/file.py").write_text("second")
    assert commit_of(repository, monkeypatch) == git(repository, "rev-parse", "HEAD") + "-dirty"


def test_a_repository_that_holds_our_folder_or_is_the_working_folder_is_not_ours(repository, tmp_path, monkeypatch):
    monkeypatch.chdir(repository)
    assert commit_of(repository / "inner", monkeypatch) is None
    assert commit_of(tmp_path, monkeypatch) is None


def test_a_repository_without_a_commit_has_none(tmp_path, monkeypatch):
    git(tmp_path, "init", "--quiet")
    assert commit_of(tmp_path, monkeypatch) is None
