"""TensorBoard, W&B and Trackio themselves take the figures of several SAEs at once, without a network or an account.

`make test-system` installs them. What is asked of each is told in `tests.train.test_watchers`, without them.
"""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.system

SCRIPT = Path(__file__).with_name("watchers_writer.py")


def test_every_service_keeps_the_figures_of_runs_that_are_open_at_once_and_go_on(tmp_path):
    missing = [name for name in ("tensorboard", "wandb", "trackio") if importlib.util.find_spec(name) is None]
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)}")
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(tmp_path)], capture_output=True, text=True, check=False, timeout=200,
        env=os.environ | {"PYTHONPATH": str(SCRIPT.parents[2]), "WANDB_MODE": "offline", "WANDB_SILENT": "true",
                          "TRACKIO_DIR": str(tmp_path / "trackio"), "HF_HUB_OFFLINE": "1"})
    assert done.returncode == 0, done.stderr[-4000:]
    kept = json.loads(done.stdout.splitlines()[-1])
    lines = {name: [[step, step + number] for step in (10, 20, 30)] for number, name in enumerate(("one", "two"))}
    assert kept["tensorboard"] == {name: {"l0": rows} for name, rows in lines.items()}
    # Trackio keeps the line that was logged once more.
    assert kept["trackio"] == {f"{name}-ab12": [*rows[:2], *rows[1:]] for name, rows in lines.items()}
    for name in ("one", "two"):
        # Offline each start is a file, and `wandb sync` puts them together by the id.
        files = list((tmp_path / name / "wandb").glob(f"offline-run-*/run-{name}-ab12.wandb"))
        assert files
        assert all(b"l0" in path.read_bytes() for path in files)
