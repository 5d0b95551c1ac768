"""A read-only mirror of a folder in which every request takes a while to answer, as on a network disk.

It stands between the kernel and the files (FUSE), so what the kernel asks for at once, and in pieces of what size, is
what it would ask of a server. Needs Linux, root, libfuse (Debian: `apt-get install libfuse2`) and
`pip install mfusepy`.
"""

import contextlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def slow_mount(folder: Path, seconds: float) -> Iterator[Path]:
    """Where a mirror of ``folder`` is mounted for the duration of the context, answers taking ``seconds``."""
    mountpoint = Path(tempfile.mkdtemp())
    command = [sys.executable, "-m", "benchmarks.slow_mount", str(folder.resolve()), str(mountpoint), str(seconds)]
    server = subprocess.Popen(command)
    try:
        for _ in range(100):
            if os.path.ismount(mountpoint) or server.poll() is not None:
                break
            time.sleep(0.1)
        if not os.path.ismount(mountpoint):
            raise SystemExit(f"{folder} could not be mounted at {mountpoint}.")
        yield mountpoint
    finally:
        subprocess.run(["umount", "--lazy", str(mountpoint)], check=False)  # files may still be mapped
        server.terminate()
        server.wait()
        mountpoint.rmdir()


def serve(folder: Path, mountpoint: Path, seconds: float) -> None:
    """Answer the kernel until the mirror is unmounted."""
    from mfusepy import FUSE, FuseOSError, Operations

    class Mirror(Operations):
        use_ns = True

        def getattr(self, path: str, fh: int | None = None) -> dict[str, int]:
            try:
                found = os.lstat(f"{folder}{path}")
            except OSError as error:
                raise FuseOSError(error.errno) from None
            times = {f"st_{kind}time": getattr(found, f"st_{kind}time_ns") for kind in "acm"}
            return {key: getattr(found, key) for key in ("st_mode", "st_nlink", "st_size", "st_uid", "st_gid")} | times

        def readdir(self, path: str, fh: int) -> list[str]:
            return [".", "..", *(entry.name for entry in Path(f"{folder}{path}").iterdir())]

        def open(self, path: str, flags: int) -> int:
            return os.open(f"{folder}{path}", os.O_RDONLY)

        def read(self, path: str, size: int, offset: int, fh: int) -> bytes:
            due = time.perf_counter() + seconds
            data = os.pread(fh, size, offset)
            time.sleep(max(0.0, due - time.perf_counter()))
            return data

        def release(self, path: str, fh: int) -> None:
            os.close(fh)

    # Without kernel_cache the pages of a file are dropped when it is opened again.
    FUSE(Mirror(), str(mountpoint), foreground=True, ro=True, kernel_cache=True)


if __name__ == "__main__":
    serve(Path(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3]))
