"""Damage of every kind, at random and at scale: all of it is found, and nothing is found where there is none.

`verify` has to name the damaged file. A reader must refuse what is damaged when it first touches it; where
only bytes are damaged that it does not use (a shard's own index and checksums), it must give the right rows.
"""

import os
import random
from contextlib import contextmanager
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

from shared.errors import CorruptError, StorageError, UserError
from shared.format.layout import BLOCK_ROWS, COMMITS, GROUP, PASSES, PLAN, Geometry
from shared.reading.cache import open_cache
from shared.upkeep.verify import files_to_check, verify
from tests.crash.oracle import damage
from tests.crash.small_harvest import THREE_UNITS, harvest_alone, norms_of, rows_of
from tests.shared import small

GEOMETRY = Geometry(num_rows=5000, num_train_rows=4000, d_model=256, rows_per_shard=1024, shards_per_unit=1)
"""Five units of two layers: 5 MB of rows."""

PAGE = 4096


class Damaged:
    """A cache whose files may be written, and how a reader meets each of them."""

    def __init__(self, path, geometry):
        self.path, self.geometry = path, geometry
        small.make_plan(path, geometry)
        harvest_alone(path)
        for file in path.rglob("*"):
            if file.is_file():
                file.chmod(0o644)
        self.files = files_to_check(path)
        self.sealed = [path / PLAN, *path.glob(f"{PASSES}/*.json"), *path.glob(f"{COMMITS}/*/*.json")]
        self.rows = {layer: rows_of(geometry, layer) for layer in small.LAYERS}

    def choose(self, rng):
        """A file and a byte of it, every byte of the cache as likely as any other."""
        file = rng.choices(self.files, [self.size(file.path) for file in self.files])[0]
        return file, rng.randrange(self.size(file.path))

    def size(self, path):
        return path.stat().st_size

    def found_by_verify(self, file):
        [checked] = verify([file])
        return checked.problem is not None

    def found_by_reader(self, path, position):
        """Whether a fresh reader refuses the byte; what it gives for it otherwise must be right."""
        parts = path.relative_to(self.path).parts
        try:
            cache = open_cache(self.path)
            if parts[0] == COMMITS:
                unit = int(path.name.split(".")[0])
                for layer in small.LAYERS:
                    cache.layer(layer).block(self.geometry.unit_rows(unit).start // BLOCK_ROWS)
            elif parts[1] != "layers":
                cache.array("/".join(parts[1:3])).read()
            elif parts[3] == "norm":
                layer, rows = int(parts[2]), self.geometry.shard_rows(int(parts[5]))
                norms = cache.layer(layer).norm(np.arange(rows.start, rows.stop))
                assert np.array_equal(norms, norms_of(self.rows[layer][rows.start : rows.stop]))
            else:
                layer, shard = int(parts[2]), int(parts[5])
                in_shard = min(position // self.geometry.block_stride, self.geometry.shard_blocks(shard) - 1)
                block = shard * self.geometry.blocks_per_shard + in_shard
                there = cache.layer(layer).block(block).view(np.uint16)
                assert np.array_equal(there, self.rows[layer][block * BLOCK_ROWS :][: len(there)])
        except (CorruptError, StorageError):
            return True
        return False

    def is_used(self, path, position):
        """Whether a reader of rows uses a byte: not a shard's own checksums, nor its index."""
        parts = path.relative_to(self.path).parts
        if parts[0] == GROUP and parts[1] == "layers" and parts[3] == "resid_post":
            in_blocks = position < self.geometry.shard_blocks(int(parts[5])) * self.geometry.block_stride
            return in_blocks and position % self.geometry.block_stride < self.geometry.block_bytes
        return True


@contextmanager
def changed(path, position, data):
    """A file with other bytes at a position, as long as the context lasts."""
    descriptor = os.open(path, os.O_RDWR)
    try:
        before = os.pread(descriptor, len(data), position)
        os.pwrite(descriptor, data, position)
        yield
    finally:
        os.pwrite(descriptor, before, position)
        os.close(descriptor)


@pytest.fixture(scope="module")
def large(memory):
    return Damaged(memory / "large", GEOMETRY)


@pytest.fixture(scope="module")
def tiny(memory):
    return Damaged(memory / "small", THREE_UNITS)


def is_array_metadata(path):
    return path.name == "zarr.json"


def test_random_bit_flips_are_found(large, share, counts):
    rng = random.Random(1)
    with counts.timed("damage"):
        for _ in range(share.number(10_000, at_least=60)):
            file, position = large.choose(rng)
            byte = file.path.read_bytes()[position]
            with changed(file.path, position, bytes([byte ^ 1 << rng.randrange(8)])):
                assert large.found_by_verify(file), (file.path, position)
                if not is_array_metadata(file.path):  # no reader of ours looks at it
                    found = large.found_by_reader(file.path, position)
                    assert found == large.is_used(file.path, position), (file.path, position)
            counts.add("damage", "bit flips")


def test_files_cut_short_or_too_long_are_found(large, share, counts):
    rng = random.Random(2)
    with counts.timed("damage"):
        for trial in range(share.number(2_700, at_least=20)):
            file, length = large.choose(rng)
            data = file.path.read_bytes()
            file.path.write_bytes(data[:length] if trial % 4 else data + rng.randbytes(rng.randrange(1, PAGE)))
            assert large.found_by_verify(file), (file.path, length)
            assert is_array_metadata(file.path) or large.found_by_reader(file.path, 0), (file.path, length)
            file.path.write_bytes(data)
            counts.add("damage", "files cut short" if trial % 4 else "files too long")
    assert damage(large.path) == []


def test_zeroed_pages_are_found(large, share, counts):
    rng = random.Random(3)
    with counts.timed("damage"):
        for _ in range(share.number(1_000, at_least=20)):
            file, position = large.choose(rng)
            page = position // PAGE * PAGE
            there = file.path.read_bytes()[page : page + PAGE]
            lost = [page + at for at, byte in enumerate(there) if byte]
            if not lost:
                continue  # zeros already
            with changed(file.path, page, bytes(len(there))):
                assert large.found_by_verify(file), (file.path, page)
                used = [at for at in lost if large.is_used(file.path, at)]
                if used and not is_array_metadata(file.path):
                    assert large.found_by_reader(file.path, used[0]), (file.path, page)
            counts.add("damage", "zeroed pages")


def test_swapped_blocks_are_found(large, share, counts):
    rng = random.Random(4)
    stride = GEOMETRY.block_stride
    shards = [file for file in large.files if file.blocks is not None]
    with counts.timed("damage"):
        for _ in range(share.number(500, at_least=10)):
            one, other = rng.choice(shards), rng.choice(shards)
            first, second = rng.randrange(one.blocks.count) * stride, rng.randrange(other.blocks.count) * stride
            if (one, first) == (other, second):
                continue
            here, there = (file.path.read_bytes()[at : at + stride] for file, at in ((one, first), (other, second)))
            with changed(one.path, first, there), changed(other.path, second, here):
                for file, at in ((one, first), (other, second)):
                    assert large.found_by_verify(file)
                    assert large.found_by_reader(file.path, at)
            counts.add("damage", "pairs of blocks swapped")


def test_swapped_files_are_found(large, share, counts):
    """Of equal size, both whole, each with its own checksums right: only the record tells."""
    pairs = [
        (one, other) for one, other in combinations(large.files, 2)
        if one.unit is not None and other.unit is not None and large.size(one.path) == large.size(other.path)
    ]
    with counts.timed("damage"):
        for one, other in share.of(pairs, at_least=10):
            swap(one.path, other.path)
            for file in (one, other):
                assert large.found_by_verify(file), (one.path, other.path)
                assert large.found_by_reader(file.path, 0), (one.path, other.path)
            swap(one.path, other.path)
            counts.add("damage", "pairs of files swapped")
    assert damage(large.path) == []


def swap(one: Path, other: Path) -> None:
    aside = one.with_name("aside")
    one.rename(aside)
    other.rename(one)
    aside.rename(other)


def test_every_byte_of_every_promised_file_counts(tiny, share, counts):
    rng = random.Random(5)
    with counts.timed("damage"):
        for file in tiny.files:
            data = file.path.read_bytes()
            for position in share.of(range(len(data)), at_least=4):
                with changed(file.path, position, bytes([data[position] ^ rng.randrange(1, 256)])):
                    assert tiny.found_by_verify(file), (file.path, position)
                counts.add("damage", "bytes of data files changed, one by one")
        for path in tiny.sealed:
            data = path.read_bytes()
            for position in share.of(range(len(data))):
                with changed(path, position, bytes([data[position] ^ 1 << rng.randrange(8)])):
                    with pytest.raises(UserError):
                        files_to_check(tiny.path)
                    with pytest.raises(UserError):
                        open_cache(tiny.path).layer(0)
                counts.add("damage", "bytes of plan, passes and records changed, one by one")


def test_a_whole_cache_never_raises_an_alarm(large, share, counts):
    with counts.timed("damage"):
        for _ in range(share.number(1_000, at_least=5)):
            cache = open_cache(large.path, verify="open")
            for layer, rows in large.rows.items():
                assert np.array_equal(cache.layer(layer)[:].view(np.uint16), rows)
            assert damage(large.path) == []
            counts.add("damage", "opens without an alarm")
