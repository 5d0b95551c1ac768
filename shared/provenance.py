"""Who, when and with what: kept beside the data, outside every promise of equal bytes."""

import platform
import subprocess
from functools import cache
from importlib.metadata import PackageNotFoundError, version

TOOL = "sae-granary"
TOOL_VERSION = "0.1.0"

_PACKAGES = ("torch", "transformers", "tokenizers", "datasets", "zarr", "numpy", "ml_dtypes", "safetensors")


@cache
def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide numbers, and the checkout's commit."""
    found = {TOOL: TOOL_VERSION, "python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    commit = _git("rev-parse", "HEAD")
    if commit:
        found["commit"] = commit + ("-dirty" if _git("status", "--porcelain", "--untracked-files=no") else "")
    return found


def _git(*arguments: str) -> str:
    try:
        done = subprocess.run(["git", *arguments], capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
