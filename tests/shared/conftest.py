"""Fixtures of the tests of shared/."""

import tempfile
from pathlib import Path

import pytest

from tests.shared import hostile
from tests.shared.hostile_reader import Reader


@pytest.fixture
def memory_folder():
    """A folder in memory where there is one: thousands of files are made and removed in it."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as folder:
        yield Path(folder)


@pytest.fixture(scope="session")
def reader():
    """Reads caches that nobody trusts, in processes of little memory and time."""
    one = Reader()
    yield one
    one.close()


@pytest.fixture(scope="module")
def honest(tmp_path_factory):
    """A small whole cache, to be copied and spoilt."""
    path = tmp_path_factory.mktemp("honest") / "cache"
    hostile.make(path)
    return path
