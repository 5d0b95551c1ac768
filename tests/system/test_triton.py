"""The kernels for CUDA compute what torch's operations compute: told by Triton's interpreter, which needs no GPU.

SAE_LENS_PYTHON names the interpreter of an environment that has triton; `make test-system` makes one. What only a GPU
can show is in `tests.test_cuda`.
"""

import os
import subprocess
from pathlib import Path

import pytest

pytestmark = pytest.mark.system

SCRIPT = Path(__file__).with_name("triton_interpreter.py")


def test_every_kernel_computes_what_torch_computes():
    interpreter = os.environ.get("SAE_LENS_PYTHON")
    if not interpreter:
        pytest.skip("SAE_LENS_PYTHON is not set: no interpreter with triton")
    path = os.pathsep.join(map(str, (SCRIPT.parents[2], Path(interpreter).parents[1] / "triton")))
    done = subprocess.run([interpreter, str(SCRIPT)], capture_output=True, text=True, check=False, timeout=280,
                          env=os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": path})
    if "No module named 'triton'" in done.stderr:
        pytest.skip("there is no triton for this system")
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stdout.strip() == "120 comparisons hold"
