"""Commands in processes of their own, without paying for the imports each time.

A warm process imports a stage once and never runs torch; for every command it forks a child that calls the
stage's own ``__main__``, exit code, signals, stderr and all. Children can be killed like any process.
"""

import importlib
import io
import json
import os
import signal
import subprocess
import sys
import time
import traceback
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    """Exit code; negative for a signal."""
    out: str
    err: str


class Warm:
    """Runs ``python -m <stage>`` again and again."""

    def __init__(self, stage: str, folder: Path, *preload: str, variables: dict[str, str] | None = None) -> None:
        self._folder = folder
        self._count = 0
        environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONFAULTHANDLER": "1"}
        environment |= variables or {}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.warm", f"{stage}.__main__", *preload],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment,
        )
        assert self._answer() == "ready"

    def close(self) -> None:
        self._process.stdin.close()
        self._process.wait(60)

    def start(self, *arguments: object, prelude: str = "", cwd: Path | None = None) -> int:
        """Start a command; returns its process id. ``prelude`` is Python that the child runs before it."""
        self._count += 1
        request = {
            "arguments": [str(argument) for argument in arguments], "prelude": prelude, "cwd": str(cwd or Path.cwd()),
            "out": str(self._folder / f"{self._count}.out"), "err": str(self._folder / f"{self._count}.err"),
        }
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        self._last = int(self._answer())
        return self._last

    def wait(self, pid: int | None = None, number: int | None = None) -> Ended:
        """Wait for the command that was started last, or for the one with this process id and number."""
        self._process.stdin.write(f"wait {pid or self._last}\n")
        self._process.stdin.flush()
        code = int(self._answer())
        out, err = (self._folder / f"{number or self._count}.{name}" for name in ("out", "err"))
        return Ended(code, out.read_text(), err.read_text())

    def run_together(self, commands: list[list[object]]) -> list[Ended]:
        """Run commands at the same time, to their ends."""
        started = [(self.start(*arguments), self._count) for arguments in commands]
        return [self.wait(pid, number) for pid, number in started]

    def run(self, *arguments: object, prelude: str = "", cwd: Path | None = None) -> Ended:
        """Run a command to its end."""
        self.start(*arguments, prelude=prelude, cwd=cwd)
        return self.wait()

    def kill_after(self, seconds: float, *arguments: object, number: int = signal.SIGKILL) -> Ended:
        """Start a command and send it a signal after a while, unless it has ended by then."""
        pid = self.start(*arguments)
        time.sleep(seconds)
        os.kill(pid, number)  # one that has ended is a zombie until the warm process waits for it
        return self.wait()

    def _answer(self) -> str:
        line = self._process.stdout.readline()
        assert line, "the warm process has ended"
        return line.strip()


def _child(request: dict, main: object) -> None:
    """Never returns."""
    from shared.terminal import run_command

    code = 70
    try:
        for descriptor, name in ((1, "out"), (2, "err")):
            file = os.open(request[name], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(file, descriptor)
        os.chdir(request["cwd"])
        sys.argv = ["command", *request["arguments"]]
        sys.stdin = io.StringIO()  # nobody answers questions
        exec(request["prelude"], {})
        run_command(main)
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _serve() -> None:
    module, *preload = sys.argv[1:]
    main = importlib.import_module(module).main
    for name in preload:
        importlib.import_module(name)
    print("ready", flush=True)
    while line := sys.stdin.readline():
        if not line.startswith("wait "):
            pid = os.fork()
            if not pid:
                _child(json.loads(line), main)
            print(pid, flush=True)
        else:
            _, status = os.waitpid(int(line.split()[1]), 0)
            print(os.waitstatus_to_exitcode(status), flush=True)


if __name__ == "__main__":
    _serve()
