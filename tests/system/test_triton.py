"""The kernels for CUDA compute what torch's operations compute: told by Triton's interpreter, which needs no GPU.

SAE_LENS_PYTHON names an environment's interpreter beside which triton lies; `make test-system` makes one. What only a
GPU can show is in `tests.test_cuda`.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.system

SCRIPT = Path(__file__).with_name("triton_interpreter.py")


def test_every_kernel_computes_what_torch_computes():
    peers = os.environ.get("SAE_LENS_PYTHON")
    if not peers:
        pytest.skip("SAE_LENS_PYTHON is not set: no triton")
    path = os.pathsep.join(map(str, (SCRIPT.parents[2], Path(peers).parents[1] / "triton")))
    done = subprocess.run([sys.executable, str(SCRIPT)], capture_output=True, text=True, check=False, timeout=280,
                          env=os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": path})
    if "No module named 'triton'" in done.stderr:
        pytest.skip("there is no triton for this system")
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stdout.strip() == "127 comparisons hold"
