"""Encoding conversations batch by batch, over processes; what was encoded is kept on disk, so that a plan is
never held in memory and goes on where it was killed.

Batches are handed over in the order of reading. A result is taken in when `LAG` more batches have been handed
over, however many processes there are: what the plan decides in between is then the same for any number of them.
"""

import json
import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, Self

import numpy as np
import numpy.typing as npt

from harvest.conversation import Conversation, Skipped
from harvest.order import TOKEN, Tokens
from harvest.template import Encoded
from shared import storage
from shared.digests import canonical_json, hex_digest
from shared.errors import TryAgainError

BATCH = 256
"""Conversations that are encoded together."""

LAG = 64
"""Batches between handing one over and taking its result in; more processes than this are of no use."""

_ALONE = 16
"""Batches that are encoded in this process before others are started, which takes them some seconds."""


_DIGEST_BYTES, _HEAD_BYTES = 16, 8


class Encoder(Protocol):
    """What turns conversations into tokens; it must pickle."""

    def encode(self, conversations: Sequence[Conversation]) -> list[Encoded | Skipped]:
        """Tokens of conversations, in order."""


@dataclass(frozen=True)
class EncodedBatch:
    """A batch's conversations as tokens; arrays have an entry for each."""

    length: npt.NDArray[np.int64]
    """Tokens; 0 for one that the template refused."""
    truncated: npt.NDArray[np.bool_]
    """Whether it was cut at the longest length allowed."""
    first_id: npt.NDArray[np.int32]
    skipped: list[Skipped]
    tokens: Tokens
    """`harvest.order.TOKEN` of all, one conversation after the other."""

    @property
    def start(self) -> npt.NDArray[np.int64]:
        """Where each one's tokens begin."""
        return np.cumsum(self.length) - self.length

    def to_bytes(self, keys: str) -> bytes:
        """Everything in one piece: digest, length of a head of JSON, head, tokens.

        Args:
            keys: says which conversations they are.
        """
        head = canonical_json({
            "keys": keys, "length": self.length.tolist(), "truncated": self.truncated.tolist(),
            "first_id": self.first_id.tolist(),
            "skipped": [[one.place, one.reason, one.detail] for one in self.skipped],
        })
        data = len(head).to_bytes(_HEAD_BYTES, "little") + head + self.tokens.tobytes()
        return bytes.fromhex(hex_digest(data)) + data


def parse(data: bytes, keys: str) -> EncodedBatch | None:
    """What `EncodedBatch.to_bytes` gave; None if it is damaged or of other conversations."""
    if bytes.fromhex(hex_digest(data[_DIGEST_BYTES:])) != data[:_DIGEST_BYTES]:
        return None
    tokens = _tokens_start(data)
    head = json.loads(data[_DIGEST_BYTES + _HEAD_BYTES : tokens])
    if head["keys"] != keys:
        return None
    return EncodedBatch(
        np.array(head["length"], np.int64), np.array(head["truncated"], bool), np.array(head["first_id"], np.int32),
        [Skipped(*skip) for skip in head["skipped"]], np.frombuffer(data, TOKEN, offset=tokens),
    )


def _tokens_start(data: bytes) -> int:
    """Where the tokens begin in a batch's bytes."""
    size = data[_DIGEST_BYTES : _DIGEST_BYTES + _HEAD_BYTES]
    return _DIGEST_BYTES + _HEAD_BYTES + int.from_bytes(size, "little")


class Batches:
    """Encoded batches in a folder, one file each; without a folder only their lengths are known.

    Files are written whole and fsynced, and carry a digest: one that a killed plan left is used if it is right.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._starts: dict[int, int] = {}
        """Where the tokens begin in a batch's file."""

    def save(self, number: int, data: bytes) -> None:
        """Keep a batch (`EncodedBatch.to_bytes`)."""
        if self._folder is not None:
            storage.write_file(self._path(number), data)

    def load(self, number: int, keys: str) -> EncodedBatch | None:
        """The batch of this number, if it is there, whole, and of the same conversations."""
        if self._folder is None:
            return None
        try:
            data = self._path(number).read_bytes()
        except OSError:
            return None
        return parse(data, keys)

    def tokens(self, number: int, start: int, length: int) -> Tokens:
        """Tokens of one conversation of a batch."""
        with storage.translate_errors(self._path(number)), self._path(number).open("rb") as file:
            if number not in self._starts:
                self._starts[number] = _tokens_start(file.read(_DIGEST_BYTES + _HEAD_BYTES))
            file.seek(self._starts[number] + start * TOKEN.itemsize)
            data = file.read(length * TOKEN.itemsize)
        return np.frombuffer(data, TOKEN)

    def _path(self, number: int) -> Path:
        assert self._folder is not None
        return self._folder / f"{number:08d}"


def encode_batch(encoder: Encoder, conversations: Sequence[Conversation], max_length: int) -> EncodedBatch:
    """Encode conversations and cut each at ``max_length`` tokens."""
    length = np.zeros(len(conversations), np.int64)
    truncated = np.zeros(len(conversations), bool)
    first_id = np.zeros(len(conversations), np.int32)
    skipped: list[Skipped] = []
    rows = [np.zeros(0, TOKEN)]
    for number, encoded in enumerate(encoder.encode(conversations)):
        if isinstance(encoded, Skipped):
            skipped.append(encoded)
            continue
        truncated[number] = len(encoded) > max_length
        cut = np.zeros(min(len(encoded), max_length), TOKEN)
        for name in TOKEN.names or ():
            cut[name] = getattr(encoded, name)[:max_length]
        length[number], first_id[number] = len(cut), cut["token_id"][0]
        rows.append(cut)
    return EncodedBatch(length, truncated, first_id, skipped, np.concatenate(rows))


class Encoding:
    """Hands batches to processes and gives their results back in order, `LAG` batches later."""

    def __init__(self, encoder: Encoder, max_length: int, batches: Batches, processes: int = 1) -> None:
        self._encoder = encoder
        self._max_length = max_length
        self._batches = batches
        self._processes = processes
        self._waiting: deque[tuple[int, str, EncodedBatch | Future[bytes]]] = deque()
        self._pool: ProcessPoolExecutor | None = None
        self._num_put = self._num_encoded = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)

    def put(self, conversations: Sequence[Conversation]) -> Iterator[tuple[int, EncodedBatch]]:
        """Hand over the next batch; gives the number and result of the one that was handed over `LAG` before."""
        number, self._num_put = self._num_put, self._num_put + 1
        keys = hex_digest(np.array([one.key for one in conversations], "<u8").tobytes())
        there = self._batches.load(number, keys)
        self._waiting.append((number, keys, there or self._encode(number, keys, conversations)))
        if len(self._waiting) > LAG:
            yield self._take()

    def rest(self) -> Iterator[tuple[int, EncodedBatch]]:
        """The results that are left."""
        while self._waiting:
            yield self._take()

    def _encode(self, number: int, keys: str, conversations: Sequence[Conversation]) -> EncodedBatch | Future[bytes]:
        self._num_encoded += 1
        if self._processes > 1 and self._num_encoded > _ALONE:
            return self._workers().submit(_encode, list(conversations), keys)
        batch = encode_batch(self._encoder, conversations, self._max_length)
        self._batches.save(number, batch.to_bytes(keys))
        return batch

    def _take(self) -> tuple[int, EncodedBatch]:
        number, keys, batch = self._waiting.popleft()
        if not isinstance(batch, Future):
            return number, batch
        try:
            data = batch.result()
        except BrokenProcessPool:
            raise TryAgainError("A process that encodes conversations was killed (out of memory?). What is encoded is "
                                "kept: the same command goes on; with fewer at once: --processes 1") from None
        self._batches.save(number, data)
        encoded = parse(data, keys)
        assert encoded is not None
        return number, encoded

    def _workers(self) -> ProcessPoolExecutor:
        if self._pool is None:
            self._pool = ProcessPoolExecutor(
                min(self._processes, LAG), multiprocessing.get_context("spawn"), _start,
                (self._encoder, self._max_length),
            )
        return self._pool


# -- in the processes ----------------------------------------------------------------------------------

_worker: tuple[Encoder, int]


def _start(encoder: Encoder, max_length: int) -> None:
    """Prepare a process: it ends with the one that started it, and leaves signals to it."""
    global _worker
    _worker = encoder, max_length
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # there is a process for every core
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None
    threading.Thread(target=_end_with, args=(parent.sentinel,), daemon=True).start()


def _end_with(sentinel: int) -> None:
    multiprocessing.connection.wait([sentinel])
    os._exit(1)


def _encode(conversations: Sequence[Conversation], keys: str) -> bytes:
    encoder, max_length = _worker
    return encode_batch(encoder, conversations, max_length).to_bytes(keys)
