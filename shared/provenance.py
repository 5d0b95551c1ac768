"""Who, when and with what: kept beside the data, outside every promise of equal bytes."""

import platform
import subprocess
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

TOOL = "sae-granary"
TOOL_VERSION = "0.1.0"

_PACKAGES = ("torch", "transformers", "tokenizers", "datasets", "zarr", "numpy", "ml_dtypes", "safetensors")

_CHECKOUT = Path(__file__).resolve().parent.parent


@cache
def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide numbers, and the checkout's commit."""
    found = {TOOL: TOOL_VERSION, "python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    top, _, commit = _git("rev-parse", "--show-toplevel", "HEAD").partition("\n")
    if commit and Path(top).samefile(_CHECKOUT):  # not of a repository that we are merely installed within
        found["commit"] = commit + ("-dirty" if _git("status", "--porcelain", "--untracked-files=no") else "")
    return found


def _git(*arguments: str) -> str:
    try:
        done = subprocess.run(["git", "-C", str(_CHECKOUT), *arguments], capture_output=True, text=True, timeout=10,
                              check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
