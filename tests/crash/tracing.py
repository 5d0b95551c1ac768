"""Faults from outside: strace attaches to a process that waits for it, and kills it or fails its n-th call."""

import os
import re
import shutil
import signal
import subprocess
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from tests.warm import Ended, Warm

CALLS = [
    "openat", "close", "write", "pwrite64", "pwritev", "pwritev2", "fsync", "fdatasync", "fallocate", "ftruncate",
    "rename", "renameat", "renameat2", "link", "linkat", "unlink", "unlinkat", "mkdir", "mkdirat", "rmdir", "chmod",
    "fchmod", "fchmodat", "fchmodat2", "flock",
]
"""System calls that change a file system, or that stand between those that do. Machines differ in which they use."""

_HOLD = "from tests.crash.filler.__main__ import hold; hold()"
_CALL = re.compile(r"^\d+ +(\w+)\(")
_WAIT_SECONDS = 20.0


@dataclass(frozen=True)
class Traced:
    """How a traced command ended."""

    ended: Ended
    calls: Counter
    """Calls that were seen, by name."""
    injected: int
    """Faults that really happened."""

    @property
    def was_killed(self) -> bool:
        return self.ended.code == -signal.SIGKILL

    @property
    def acknowledged(self) -> list[int]:
        """The units that it said ACK for."""
        return [int(line.split()[1]) for line in self.ended.out.splitlines() if line.startswith("ACK")]


def strace_works() -> bool:
    """Whether strace is there and may trace."""
    if shutil.which("strace") is None:
        return False
    return subprocess.run(["strace", "-qq", "-o", os.devnull, "true"], capture_output=True).returncode == 0


def run_traced(warm: Warm, log: Path, arguments: list[object], fault: str = "", calls: list[str] = CALLS) -> Traced:
    """Run a command of a warm process under strace.

    Args:
        log: where strace writes the calls that it sees.
        fault: an expression of strace's ``-e inject=``.
        calls: the system calls that are traced.
    """
    pid = warm.start(*arguments, prelude=_HOLD)
    _wait_for(lambda: _status(pid, "State").startswith("T"))
    words = ["strace", "-f", "-qq", "-o", str(log), "-e", "trace=" + ",".join(f"?{call}" for call in calls)]
    words += ["-e", "signal=none", *(["-e", f"inject={fault}"] if fault else []), "-p", str(pid)]
    tracer = subprocess.Popen(words, stderr=subprocess.PIPE, text=True)
    try:
        _wait_for(lambda: _status(pid, "TracerPid") != "0" or tracer.poll() is not None)
        assert tracer.poll() is None, f"strace does not attach: {tracer.stderr.read()}"
    finally:
        os.kill(pid, signal.SIGCONT)
    ended = warm.wait()
    tracer.communicate(timeout=_WAIT_SECONDS)
    lines = log.read_text(errors="replace").splitlines()
    seen = Counter(match[1] for line in lines if (match := _CALL.match(line)))
    return Traced(ended, seen, sum("(INJECTED)" in line for line in lines))


def _status(pid: int, field: str) -> str:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return line.split(":")[1].strip()
    return ""


def _wait_for(condition) -> None:
    started = time.monotonic()
    while not condition():
        assert time.monotonic() - started < _WAIT_SECONDS, "the process does not get there"
        time.sleep(0.001)
