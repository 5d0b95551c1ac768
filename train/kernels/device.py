"""Where Triton's kernels run."""

import warnings
from functools import cache

from torch import Tensor


def on_triton(tensor: Tensor) -> bool:
    """Whether an operation on ``tensor`` has a Triton kernel: on CUDA, where Triton can run."""
    return tensor.is_cuda and triton_runs()


@cache
def triton_runs() -> bool:
    """Ask Triton for its driver, which it builds with the machine's C compiler; warn if it cannot."""
    try:
        import triton
        triton.runtime.driver.active.get_current_device()
    except Exception as error:  # no wheel for this system, no compiler, no headers of Python, a GPU too old
        warnings.warn(f"Triton cannot run here: {error}\nSteps on the GPU are slower without it.", stacklevel=2)
        return False
    return True
