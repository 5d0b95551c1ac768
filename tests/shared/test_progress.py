"""Progress: lines where nobody watches, a bar on a terminal."""

import io
import os
import pty

import pytest

from shared import progress as module
from shared.progress import Progress


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands until it is set."""
    now = [100.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    return now


def test_elsewhere_it_is_a_line_every_thirty_seconds_and_one_at_the_end(clock, capsys):
    with Progress("train layer 9", total=1000, unit="tokens", done=200) as progress:
        for seconds in range(0, 80, 10):
            clock[0] = 100.0 + seconds
            progress.advance(100, l0=32.0, loss=seconds)
    assert capsys.readouterr().err.splitlines() == [
        "train layer 9: 600/1,000 tokens  13/s  l0 32  loss 30  30 s left",
        "train layer 9: 900/1,000 tokens  12/s  l0 32  loss 60  9 s left",
        "train layer 9: 1,000/1,000 tokens  11/s  l0 32  loss 70",
    ]


def test_of_several_processes_all_but_one_are_silent(clock, capsys):
    with Progress("train", total=10, unit="tokens", shown=False) as progress:
        clock[0] += 60
        progress.advance(10)
    assert capsys.readouterr().err == ""


def on_terminal(monkeypatch, columns):
    """What a terminal gets of the progress of a training."""
    leader, follower = pty.openpty()
    with io.TextIOWrapper(io.FileIO(follower, "w")) as terminal:
        monkeypatch.setattr("sys.stderr", terminal)
        monkeypatch.setenv("TERM", "xterm")
        monkeypatch.setenv("COLUMNS", str(columns))
        with Progress("train layer 9", total=512_000, unit="tokens") as progress:
            progress.advance(283_904, loss=3.5, l0=32.0, ev=0.5, dead=0.0012, stall=0.001)
            progress.advance(228_096, loss=3.436, l0=32.0, ev=0.8752, dead=0.0012, stall=0.0012)
        terminal.write("the end")
        terminal.flush()
        written = b""
        while not written.endswith(b"the end"):  # a terminal hands on what was written in pieces
            written += os.read(leader, 1 << 16)
    os.close(leader)
    return written.decode()


def test_on_a_terminal_it_is_a_bar_with_the_latest_figures(monkeypatch):
    shown = on_terminal(monkeypatch, 160)
    assert "━" in shown
    assert "512,000/512,000 tokens" in shown
    assert "ev 0.8752  dead 0.0012  stall 0.0012" in shown


def test_on_a_narrow_terminal_it_is_two_lines_with_all_of_it(monkeypatch):
    shown = on_terminal(monkeypatch, 80)
    assert "…" not in shown
    assert "train layer 9  100%  512,000/512,000 tokens" in shown
    assert "  loss 3.436  l0 32  ev 0.8752  dead 0.0012  stall 0.0012" in shown
    assert "0:00:00" in shown
