"""How much of the suite runs, and the caches that it attacks.

GRANARY_CRASH_SHARE is the share of every list of crash points that is tried: 0.005 where it is not set
(`make test`), 0.05 in `make test-system`, 1 in `make test-crash`, whose counts become docs/reliability.md.
"""

import os
import shutil
import tempfile
from pathlib import Path

import pytest

from tests.crash.counting import counted
from tests.crash.counts import Counts
from tests.crash.oracle import Oracle
from tests.crash.share import Share
from tests.crash.small_harvest import THREE_UNITS, harvest_alone, new_process
from tests.shared import small

_SHARE = "GRANARY_CRASH_SHARE"


def pytest_collection_modifyitems(items):
    """With a share set, all of this folder belongs to the crash tests, and may take its time."""
    if _SHARE in os.environ:
        for item in items:
            if Path(__file__).parent in item.path.parents:
                item.add_marker(pytest.mark.crash)
                item.add_marker(pytest.mark.timeout(3600))


@pytest.fixture(scope="session")
def share() -> Share:
    """Chooses the crash points that are tried."""
    return Share(float(os.environ.get(_SHARE, "0.005")))


@pytest.fixture(scope="session")
def counts() -> Counts:
    """Collects what really ran."""
    return counted


@pytest.fixture(scope="session")
def memory():
    """A folder in memory where there is one: thousands of caches are made and removed in it."""
    shm = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=shm if shm.is_dir() else None) as folder:
        yield Path(folder)


@pytest.fixture(scope="session")
def planned(memory) -> Path:
    """A plan of three units and its pass; nothing is harvested."""
    path = memory / "planned"
    small.make_plan(path, THREE_UNITS)
    return path


@pytest.fixture(scope="session")
def undisturbed(planned, memory) -> Path:
    """The cache that a harvest leaves when nothing happens to it."""
    path = small.copy(planned, memory / "undisturbed")
    harvest_alone(path)
    return path


@pytest.fixture(scope="session")
def oracle(undisturbed) -> Oracle:
    """Judges crashed caches against the undisturbed one."""
    return Oracle(undisturbed)


@pytest.fixture
def fresh(planned, memory):
    """Copies of the plan, one after the other; each call removes the copy before."""
    folder = Path(tempfile.mkdtemp(dir=memory))

    def copy() -> Path:
        shutil.rmtree(folder / "cache", ignore_errors=True)
        new_process(folder / "cache")
        return small.copy(planned, folder / "cache")

    yield copy
    shutil.rmtree(folder)

