"""The CUDA tests hold on a CPU too, but for what only a GPU has: so that they can be trusted when a GPU is there."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.system

ROOT = Path(__file__).parents[2]


def test_the_cuda_tests_hold_on_a_cpu():
    done = subprocess.run([sys.executable, "-m", "pytest", "-q", "-m", "gpu", "tests/test_cuda.py"], cwd=ROOT,
                          env=os.environ | {"GRANARY_TEST_DEVICE": "cpu", "OMP_NUM_THREADS": "1"},
                          capture_output=True, text=True, check=False, timeout=290)
    assert done.returncode == 0, done.stdout[-4000:]
