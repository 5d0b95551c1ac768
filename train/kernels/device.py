"""Where Triton's kernels run."""

from importlib.util import find_spec

from torch import Tensor

_INSTALLED = find_spec("triton") is not None


def on_triton(tensor: Tensor) -> bool:
    """Whether an operation on ``tensor`` has a Triton kernel: on CUDA, where Triton comes with torch on Linux."""
    return tensor.is_cuda and _INSTALLED
