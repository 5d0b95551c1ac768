"""A pytest plugin (pyproject.toml loads it): counts of what the crash suite really did, over all of its processes.

Tests that pytest-xdist spreads over processes count in each; what each has counted comes to the one that was started.
"""

import os
from pathlib import Path

import pytest

from tests.crash.counts import Counts

FILE = "GRANARY_CRASH_COUNTS"
"""Variable that names a file for the counts, from which `tests.crash.report` writes its page."""

counted = Counts()
_OUTPUT = "crash_counts"


def _is_worker(config: pytest.Config) -> bool:
    return hasattr(config, "workeroutput")


class Counting:
    """Hooks of the process that was started, and of one that runs a part of the tests."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config

    def pytest_runtest_logreport(self, report: pytest.TestReport):
        """Note what of the suite did not run, and what failed."""
        if not _is_worker(self._config) and "tests/crash/" in report.nodeid:
            counted.failed += report.failed
            if report.skipped:
                counted.not_run.append(str(report.longrepr[2]).removeprefix("Skipped: "))

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node, error):
        """Take in what another process has counted."""
        if (found := getattr(node, "workeroutput", {}).get(_OUTPUT)) is not None:
            counted.add_all(found)

    def pytest_sessionfinish(self, session, exitstatus):
        """Hand the counts on, or keep them where they are asked for."""
        if _is_worker(self._config):
            self._config.workeroutput[_OUTPUT] = counted.as_json()
        elif path := os.environ.get(FILE):
            Path(path).write_text(counted.as_json())

    def pytest_terminal_summary(self, terminalreporter):
        """Say what was counted."""
        for piece, numbers in counted.numbers.items():
            listed = ", ".join(f"{number} {what}" for what, number in numbers.items())
            terminalreporter.write_line(f"crash tests, {piece}: {listed}")
        for line in sorted(set(counted.not_run)):
            terminalreporter.write_line(f"crash tests, not done: {line}")


def pytest_configure(config):
    """Register the hooks."""
    config.pluginmanager.register(Counting(config))
