"""Fixtures of the tests of shared/."""

import tempfile
from pathlib import Path

import pytest


@pytest.fixture
def memory_folder():
    """A folder in memory where there is one: thousands of files are made and removed in it."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as folder:
        yield Path(folder)
