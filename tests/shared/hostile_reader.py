"""Reads caches that may be hostile, each in a child with a gigabyte of address space and ten seconds.

The parent imports once and reads nothing; a child is forked for every cache and tells by one line of JSON how each
step ended. Run as ``python -m tests.shared.hostile_reader``.
"""

import json
import os
import resource
import signal
import subprocess
import sys
import traceback
from pathlib import Path

STEPS = ("read", "verify", "status")
GIGABYTE = 1 << 30
SECONDS = 10


class Reader:
    """The parent, seen from a test."""

    def __init__(self) -> None:
        environment = os.environ | {"OPENBLAS_NUM_THREADS": "1", "RAYON_NUM_THREADS": "1"}
        self._process = subprocess.Popen([sys.executable, "-m", "tests.shared.hostile_reader"],
                                         stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
        assert self._process.stdout.readline() == "ready\n"

    def close(self) -> None:
        self._process.stdin.close()
        self._process.wait(10)

    def look_at(self, cache: Path, folder: Path) -> dict[str, list]:
        """What each of `STEPS` ended with, in a child at work in ``folder``: ["ok"], or [error, exit code, message]."""
        self._process.stdin.write(json.dumps([str(cache), str(folder)]) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())


def read(cache: str) -> None:
    """All that a notebook or a training does with a cache."""
    opened = open_cache(cache)
    rows = opened.rows(classes=["assistant", "user", "first", "bos"], types=["content", "first"], split="train")
    str(opened.tokens(rows[:50]))
    opened.text(rows[:50])
    for name in ("token_id", "token_class", "token_type", "role", "turn", "sequence_offset", "conversation_offset"):
        getattr(opened, name)
    for name in PLAN_ARRAYS:
        opened.array(name).read()
    for layer in opened.layers:
        rows = opened.rows(layer=layer)
        opened.layer(layer)[rows]
        opened.layer(layer).norm(rows)


def check(cache: str) -> None:
    """What `python -m harvest verify` does."""
    bad = [checked.problem for checked in verify(files_to_check(Path(cache))) if checked.problem]
    if bad:
        raise CorruptError("; ".join(bad))


def child(request: str, answer: int) -> None:
    """Never returns."""
    ended: dict[str, list] = {}
    try:
        cache, folder = json.loads(request)
        os.chdir(folder)
        for name, step in zip(STEPS, (read, check, lambda cache: describe(Path(cache))), strict=True):
            try:
                step(cache)
                ended[name] = ["ok"]
            except UserError as error:
                ended[name] = [type(error).__name__, error.exit_code, str(error)]
            except BaseException as error:
                ended[name] = [f"{type(error).__name__} is no UserError", 1, traceback.format_exc()]
    finally:
        os.write(answer, json.dumps(ended).encode())
        os._exit(0)


def serve() -> None:
    print("ready", flush=True)
    while request := sys.stdin.readline():
        reading, writing = os.pipe()
        pid = os.fork()
        if not pid:
            resource.setrlimit(resource.RLIMIT_AS, (GIGABYTE, GIGABYTE))
            signal.alarm(SECONDS)
            child(request, writing)
        os.close(writing)
        with os.fdopen(reading) as pipe:
            told = pipe.read()
        _, status = os.waitpid(pid, 0)
        code = os.waitstatus_to_exitcode(status)
        ended = json.loads(told) if told else {}
        print(json.dumps({name: ended.get(name, [f"died with {code}", 1, ""]) for name in STEPS}), flush=True)


if __name__ == "__main__":
    from shared.errors import CorruptError, UserError
    from shared.format.layout import PLAN_ARRAYS
    from shared.reading.cache import open_cache
    from shared.upkeep.description import describe
    from shared.upkeep.verify import files_to_check, verify

    serve()
