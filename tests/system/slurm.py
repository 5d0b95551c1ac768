"""A SLURM of one node for tests: controller, node and munge started for a while, with a preemptible partition."""

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

NEEDED = ("slurmctld", "slurmd", "munged", "sbatch")

_PATIENCE_S = 300
"""How long anything is waited for: long enough on a machine that does much else."""

_CONFIG = """
ClusterName=granary
SlurmctldHost={host}(127.0.0.1)
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CryptoType=crypto/munge
SlurmUser=root
SlurmdUser=root
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
SlurmctldPort={port}
SlurmdPort={node_port}
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
JobRequeue=1
KillWait=5
MpiDefault=none
ReturnToService=2
SchedulerParameters=sched_interval=1,bf_interval=1
NodeName={host} NodeAddr=127.0.0.1 CPUs=2 State=UNKNOWN
PartitionName=low Nodes={host} Default=YES State=UP PriorityTier=1 PreemptMode=REQUEUE GraceTime=3
PartitionName=high Nodes={host} State=UP PriorityTier=2 PreemptMode=OFF
"""


def missing() -> list[str]:
    """What of SLURM is not installed."""
    return [name for name in NEEDED if not shutil.which(name, path=_path())]


def _path() -> str:
    return os.environ.get("PATH", "") + ":/usr/sbin:/sbin"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Slurm:
    """A running one."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._environment = os.environ | {"SLURM_CONF": str(folder / "slurm.conf"), "PATH": _path()}

    def run(self, *command: object) -> str:
        """Run one of SLURM's commands; what it printed."""
        done = subprocess.run([str(word) for word in command], env=self._environment, text=True, check=True,
                              capture_output=True, timeout=30)
        return done.stdout.strip()

    def submit(self, partition: str, script: str, tasks: int = 1) -> int:
        """Submit a batch script that may be requeued and takes so many of two CPUs; its job id."""
        path = self.folder / f"job-{time.monotonic_ns()}.sh"
        path.write_text("#!/bin/bash\n" + script)
        return int(self.run("sbatch", "--parsable", "-p", partition, f"-n{tasks}", "--requeue", "-o",
                            self.folder / "%j.out", "--open-mode=append", path))

    def state(self, job: int) -> dict[str, str]:
        """What SLURM says of a job."""
        words = self.run("scontrol", "show", "job", "-o", job).split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def output(self, job: int) -> str:
        """What a job wrote."""
        path = self.folder / f"{job}.out"
        return path.read_text() if path.exists() else ""


@contextmanager
def running(folder: Path) -> Iterator[Slurm]:
    """Start munge, the controller and the node in the foreground; stop them at the end."""
    for name in ("state", "spool"):
        (folder / name).mkdir()
    host = socket.gethostname().split(".")[0]
    (folder / "slurm.conf").write_text(
        _CONFIG.format(host=host, folder=folder, port=_free_port(), node_port=_free_port())
    )
    key = folder / "munge.key"
    key.write_bytes(os.urandom(1024))
    key.chmod(0o400)
    environment = os.environ | {"SLURM_CONF": str(folder / "slurm.conf"), "PATH": _path()}
    slurm = Slurm(folder)
    processes = []

    def start(*command: object) -> None:
        with (folder / "daemons.log").open("ab") as log:
            processes.append(subprocess.Popen([str(word) for word in command], env=environment, stdout=log, stderr=log))

    try:
        start("munged", "--foreground", "--force", f"--key-file={key}", f"--socket={folder}/munge.socket",
              f"--pid-file={folder}/munge.pid", f"--seed-file={folder}/munge.seed", f"--log-file={folder}/munge.log")
        wait_for(lambda: (folder / "munge.socket").exists())
        start("slurmctld", "-D", "-c", "-f", folder / "slurm.conf")
        start("slurmd", "-D", "-c", "-f", folder / "slurm.conf", "-N", host)
        wait_for(lambda: "idle" in _quietly(lambda: slurm.run("sinfo", "-h", "-o", "%T")))
        yield slurm
    finally:
        for process in reversed(processes):
            process.terminate()
        for process in processes:
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()


def _quietly(ask) -> str:
    try:
        return ask()
    except (subprocess.SubprocessError, OSError):
        return ""


def wait_for(condition) -> None:
    """Wait until ``condition`` holds.

    Raises:
        AssertionError: it did not.
    """
    deadline = time.monotonic() + _PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.2)
