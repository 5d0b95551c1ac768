"""Functions run in several processes that hold an SAE between them, over gloo."""

import multiprocessing
import os
import socket
from multiprocessing.connection import Connection

import torch

from train.shards import open_shards

_processes = multiprocessing.get_context("forkserver")  # it imports once and never runs torch before it forks
_processes.set_forkserver_preload(["tests.train.tiny_run", "torch._dynamo"])


def _member(rank: int, size: int, port: int, answer: Connection, function: object, arguments: tuple) -> None:
    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), RANK=str(rank), WORLD_SIZE=str(size))
    with open_shards(size, "cpu") as shards:
        answer.send(function(shards, *arguments))
        answer.recv()  # tensors are in shared memory, for as long as this process is there


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def run_team(size, function, *arguments):
    """``function(shards, *arguments)`` in ``size`` processes: what each gives, or the exit code of one that fails.

    The function must be one of a module, and what it gives is pickled.
    """
    port, started = free_port(), []
    for rank in range(size):
        ours, theirs = _processes.Pipe()
        process = _processes.Process(target=_member, args=(rank, size, port, theirs, function, arguments))
        process.start()
        theirs.close()
        started.append((process, ours))
    found = []
    for process, answer in started:
        try:
            found.append(answer.recv())
            answer.send(None)
        except EOFError:
            process.join()
            found.append(SystemExit(process.exitcode))
        process.join()
    return found
