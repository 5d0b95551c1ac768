"""How commands end: exit codes, one line, the command to go on with, and the wait for SLURM."""

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from shared.errors import CorruptError, RecipeError, TryAgainError

ROOT = Path(__file__).parents[2]


def run(body, *words, slurm=False, before=""):
    """A program of ours whose command is ``body``; returns the process, running."""
    program = "\n".join([
        "import errno, os, signal, sys, time", "from shared import terminal", "from shared.errors import *", before,
        "def command():", *(f"    {line}" for line in body.splitlines()), "terminal.run_command(command)",
    ])
    variables = {name: value for name, value in os.environ.items() if not name.startswith("SLURM")}
    variables |= {"PYTHONPATH": str(ROOT)} | ({"SLURM_JOB_ID": "7"} if slurm else {})
    return subprocess.Popen([sys.executable, "-c", program, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                            text=True, env=variables)


def ended(*given, **options):
    process = run(*given, **options)
    out, err = process.communicate(timeout=30)
    return process.returncode, out, err


@pytest.mark.parametrize("kind", [RecipeError, CorruptError])
def test_an_error_of_the_users_is_one_message_and_its_exit_code(kind):
    code, out, err = ended(f"raise {kind.__name__}('It is so. Type: make it')")
    assert (code, out, err) == (kind.exit_code, "", "Error: It is so. Type: make it\n")


def test_to_try_again_says_the_command_without_what_starts_over():
    code, _, err = ended("raise TryAgainError('The disk is full.')", "run", "--fresh", "--yes", "--model", "a b")
    assert code == TryAgainError.exit_code
    assert err.splitlines()[0] == "Error: The disk is full."
    assert "\nTo go on: " in err
    assert err.endswith(" run --model 'a b'\n")


@pytest.mark.parametrize(("number", "code"), [(errno.ENOSPC, 75), (errno.EDQUOT, 75), (errno.EIO, 74)])
def test_a_disk_that_fails_anywhere_is_no_bug_of_ours(number, code):
    found, _, err = ended(f"raise OSError({number}, os.strerror({number}), '/x')")
    assert found == code
    assert "The file system failed" in err
    assert "Traceback" not in err


def test_a_bug_keeps_its_traceback():
    code, _, err = ended("raise ValueError('ours')")
    assert code == 1
    assert "Traceback" in err


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_a_command_with_128_and_its_number(number):
    process = run("print('here', flush=True)\ntime.sleep(60)")
    assert process.stdout.readline() == "here\n"
    process.send_signal(number)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 128 + number
    assert "The same command again goes on from here" in err
    assert "Traceback" not in err


FREED = """
def signalled(*_):
    os.kill(os.getpid(), signal.SIGTERM)
    for _ in range(1000):
        pass

class Freed:
    __del__ = signalled
"""
"""The signal's handler runs, and raises, where Python can hand nothing on."""


@pytest.mark.parametrize("body", [
    "Freed()",
    "import weakref\nheld = {1}\nreference = weakref.ref(held, signalled)\ndel held",
])
def test_a_signal_while_an_object_is_freed_is_not_lost(body):
    code, out, err = ended(f"{body}\ntime.sleep(20)\nprint('went on')", before=FREED)
    assert (code, out) == (128 + signal.SIGTERM, "")
    assert set(err.splitlines()) == {"", "Stopped by SIGTERM. The same command again goes on from here."}


def test_what_else_is_raised_while_an_object_is_freed_is_told():
    code, _, err = ended("Freed()", before="class Freed:\n    def __del__(self):\n        raise ValueError('ours')")
    assert code == 0
    assert "ValueError: ours" in err


LOOP = """
with terminal.StopSignal() as stop:
    print('here', flush=True)
    while stop.exit_code is None:
        time.sleep(0.01)
    print('tidied up', flush=True)
sys.exit(stop.exit_code)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_loop_ends_at_a_safe_point(number):
    process = run(LOOP)
    assert process.stdout.readline() == "here\n"
    process.send_signal(number)
    out, _ = process.communicate(timeout=30)
    assert (process.returncode, out) == (128 + number, "tidied up\n")


SOON = "terminal._ONE_SIGNAL = 0.2"
"""What comes later than this is a second signal."""


def stopped_under_slurm(before=SOON):
    """A loop that SLURM has told to stop, that has tidied up, and waits."""
    process = run(LOOP, slurm=True, before=before)
    assert process.stdout.readline() == "here\n"
    process.send_signal(signal.SIGTERM)
    assert process.stdout.readline() == "tidied up\n"
    while "Waiting for SLURM" not in process.stderr.readline():
        assert process.poll() is None
    return process


def test_under_slurm_it_waits_to_be_killed_so_that_it_is_requeued():
    process = stopped_under_slurm()
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(1.0)
    process.kill()
    process.communicate()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_that_come_close_together_are_one(number):
    process = run(LOOP.replace("    print('tidied up'", "    time.sleep(1)\n    print('tidied up'"))
    assert process.stdout.readline() == "here\n"
    for _ in range(3):
        process.send_signal(number)
        time.sleep(0.1)
    out, _ = process.communicate(timeout=30)
    assert (process.returncode, out) == (128 + number, "tidied up\n")


def test_a_second_signal_later_ends_it_at_once():
    process = run(LOOP.replace("    print('tidied up'", "    time.sleep(60)\n    print('tidied up'"), before=SOON)
    assert process.stdout.readline() == "here\n"
    process.send_signal(signal.SIGTERM)
    while "safe point" not in process.stderr.readline():
        assert process.poll() is None
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=30)
    assert (process.returncode, out) == (128 + signal.SIGINT, "")


def test_under_slurm_a_second_signal_ends_the_wait():
    process = stopped_under_slurm()
    time.sleep(0.5)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=30)
    assert process.returncode == 128 + signal.SIGTERM


def test_under_slurm_signals_that_come_close_together_end_no_wait():
    process = stopped_under_slurm(before="")
    process.send_signal(signal.SIGTERM)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(1.0)
    process.kill()
    process.communicate()


def test_under_slurm_it_does_not_wait_after_ctrl_c_or_an_error():
    for body in ("sys.exit(128 + signal.SIGINT)", "raise StorageError('It is so.')", "pass"):
        assert ended(body, slurm=True)[0] in {130, 74, 0}


def test_as_many_files_may_be_open_as_the_system_lets_us():
    before = "import resource\nresource.setrlimit(resource.RLIMIT_NOFILE, (64, 900))"
    code, out, _ = ended("import resource; print(resource.getrlimit(resource.RLIMIT_NOFILE))", before=before)
    assert (code, out) == (0, "(900, 900)\n")
