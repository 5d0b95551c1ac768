"""Which n-grams occur in which samples, in bounded memory: sorted runs, on disk where they do not fit.

An external sort. Pairs of an n-gram's hash and a sample's number are collected into runs that are sorted by hash;
runs go to temporary files (12 bytes a pair, removed by the system when the process ends, however it ends) as soon as
they take more than the memory that is given. One range of hashes after the other is then read from all runs, and
what is left of it is the lists of samples that share an n-gram. Most n-grams of a passage that several samples share
have the same list: it is kept once, so that what stays in memory follows from how many samples are alike, not from
how long they are.
"""

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from harvest.ngrams import I64, U64, mix
from shared.storage import translate_errors

U32 = npt.NDArray[np.uint32]

_BYTES_PER_PAIR = 80
"""Peak memory for a pair while its range of hashes is looked through, or its run is sorted."""

_RUN_PAIRS = 1 << 22
"""Pairs of a run at most: sorting more of them at once takes longer and saves few reads."""

_BUCKETS = 1024
"""Equal parts of hash space; a range that is read at once is some of them."""


def stable_order(hashes: U64) -> I64:
    """``np.argsort(hashes, kind="stable")`` of random values, five times as fast.

    Sorts the upper bits with the places in the lower ones, which numpy does with vector instructions, and then
    those few again that differ in the lower bits alone.
    """
    places = np.arange(len(hashes), dtype=np.uint64)
    lower = np.uint64((1 << len(hashes).bit_length()) - 1)
    packed = hashes & ~lower
    packed |= places
    packed.sort()
    order = (packed & lower).astype(np.int64)
    packed &= ~lower
    ordered = hashes[order]
    is_alike = packed[1:] == packed[:-1]
    if (mixed := is_alike & (ordered[1:] != ordered[:-1])).any():
        of = np.cumsum(np.concatenate([[False], ~is_alike]))
        again = np.flatnonzero(np.isin(of, of[1:][mixed]))
        order[again] = order[again[np.argsort(ordered[again], kind="stable")]]
    return order


@dataclass(frozen=True)
class SharedLists:
    """Lists of samples that share at least one n-gram, each of at least two, no two lists equal."""

    signature: U64
    """[lists, 2]: a 128-bit hash of each list."""
    ngram: U64
    """[lists]: the lowest hash of an n-gram that just these samples have."""
    size: I64
    """[lists]: samples of each list."""
    samples: U32
    """[sum of size]: the lists one after the other, each ascending."""

    @staticmethod
    def of(hashes: U64, samples: U32) -> "SharedLists":
        """The lists of pairs sorted by hash and then by sample, without repeated pairs."""
        is_first = np.ones(len(hashes), np.bool_)
        np.not_equal(hashes[1:], hashes[:-1], out=is_first[1:])
        first = np.flatnonzero(is_first)
        size = np.diff(first, append=len(hashes))
        shared = size > 1
        members = samples[np.repeat(shared, size)]
        size = size[shared]
        signature = np.empty((len(size), 2), np.uint64)
        if len(size):
            start = np.cumsum(size) - size
            for column in range(2):  # sums, which no order of members changes, of random values
                signature[:, column] = np.add.reduceat(mix(members + np.uint64((column + 1) << 32)), start)
        return SharedLists(signature, hashes[first[shared]], size, members)

    @staticmethod
    def together(parts: list["SharedLists"]) -> "SharedLists":
        """All lists of several, equal ones once."""
        signature = np.concatenate([part.signature for part in parts])
        ngram = np.concatenate([part.ngram for part in parts])
        size = np.concatenate([part.size for part in parts])
        samples = np.concatenate([part.samples for part in parts])
        if not len(size):
            return SharedLists(signature, ngram, size, samples)
        order = stable_order(signature[:, 0])
        is_first = np.ones(len(order), np.bool_)
        is_first[1:] = (signature[order[1:]] != signature[order[:-1]]).any(axis=1)
        first = np.flatnonzero(is_first)
        lowest = np.minimum.reduceat(ngram[order], first)
        kept = order[first]
        return SharedLists(signature[kept], lowest, size[kept], _pick(samples, size, kept))


def _pick(values: U32, size: I64, kept: I64) -> U32:
    """Those of the lists, which stand one after the other in ``values``, that are kept, in their order."""
    start = (np.cumsum(size) - size)[kept]
    length = size[kept]
    shift = start - (np.cumsum(length) - length)
    picked: U32 = values[np.repeat(shift, length) + np.arange(length.sum())]
    return picked


class Occurrences:
    """Collects (hash, sample) pairs, sample by sample, and then finds the lists of samples that share a hash.

    Args:
        memory_bytes: what pairs may take. It changes how often the disk is used, never the result.
        folder: where temporary files go; None: the system's folder for them.
    """

    def __init__(self, memory_bytes: int, folder: Path | None) -> None:
        self._range_pairs = max(1, memory_bytes // 2 // _BYTES_PER_PAIR)
        self._run_pairs = min(_RUN_PAIRS, self._range_pairs)
        self._where = folder or Path(tempfile.gettempdir())
        # Half the memory is for runs that are kept there, 8 bytes of 12 for hashes; the other half is for sorting.
        self._hashes, self._samples = (
            tempfile.SpooledTemporaryFile(max_size=max(1, share * memory_bytes // 6), dir=str(self._where))  # noqa: SIM115
            for share in (2, 1)
        )
        self._open: list[tuple[U64, U32]] = []
        self._num_open = 0
        self._runs: list[I64] = []
        """Of each run where each bucket begins, [_BUCKETS + 1], in pairs from the files' beginning."""
        self.num_pairs = 0
        """Pairs in runs, each once. All that were added, once `shared` was called."""

    def add(self, hashes: U64, samples: I64) -> None:
        """Take in the pairs of whole samples, whose numbers are above those of all earlier ones.

        Raises:
            TryAgainError: no space left for temporary files. StorageError: they cannot be written.
        """
        assert not len(samples) or samples[-1] < 2**32
        self._open.append((hashes, samples.astype(np.uint32)))
        self._num_open += len(hashes)
        if self._num_open >= self._run_pairs:
            self._close_run()

    def shared(self) -> Iterator[tuple[int, SharedLists]]:
        """The lists of each range of hashes, with the number of pairs it had. Lists of two ranges may be equal."""
        self._close_run()
        return self._ranges()

    def _ranges(self) -> Iterator[tuple[int, SharedLists]]:
        runs = np.array(self._runs, np.int64).reshape(-1, _BUCKETS + 1)
        per_bucket = np.diff(runs, axis=1).sum(axis=0)
        begin = 0
        while begin < _BUCKETS:
            end, total = begin + 1, per_bucket[begin]
            while end < _BUCKETS and total + per_bucket[end] <= self._range_pairs:
                total += per_bucket[end]
                end += 1
            if total:
                pieces = [(int(run[begin]), int(run[end])) for run in runs if run[begin] < run[end]]
                hashes = np.concatenate([self._read_hashes(*piece) for piece in pieces])
                samples = np.concatenate([self._read_samples(*piece) for piece in pieces])
                order = stable_order(hashes)  # a later run has later samples
                yield int(total), SharedLists.of(hashes[order], samples[order])
            begin = end

    def close(self) -> None:
        """Remove the temporary files."""
        self._hashes.close()
        self._samples.close()

    def _close_run(self) -> None:
        if not self._num_open:
            return
        hashes = np.concatenate([pair[0] for pair in self._open])
        samples = np.concatenate([pair[1] for pair in self._open])
        self._open, self._num_open = [], 0
        order = stable_order(hashes)
        hashes, samples = hashes[order], samples[order]
        is_new = np.ones(len(hashes), np.bool_)
        is_new[1:] = (hashes[1:] != hashes[:-1]) | (samples[1:] != samples[:-1])
        hashes, samples = hashes[is_new], samples[is_new]
        bounds = np.arange(1, _BUCKETS, dtype=np.uint64) << np.uint64(64 - 10)
        inner = np.searchsorted(hashes, bounds)
        self._runs.append(self.num_pairs + np.concatenate([[0], inner, [len(hashes)]]).astype(np.int64))
        self.num_pairs += len(hashes)
        with translate_errors(self._where):
            self._hashes.write(memoryview(hashes))
            self._samples.write(memoryview(samples))

    def _read_hashes(self, start: int, stop: int) -> U64:
        self._hashes.seek(8 * start)
        return np.frombuffer(self._hashes.read(8 * (stop - start)), np.uint64)

    def _read_samples(self, start: int, stop: int) -> U32:
        self._samples.seek(4 * start)
        return np.frombuffer(self._samples.read(4 * (stop - start)), np.uint32)
