"""Archived blocks: bit-equal, decodable by others, and harmless whatever their bytes say."""

import struct
import threading

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numcodecs import blosc

from shared.digests import crc32c_bytes
from shared.errors import CorruptError
from shared.format.blosc_frames import HEADER_BYTES, decode, encode
from shared.format.layout import Geometry
from shared.reading.archive_shard import ArchiveShard, DecodedBlocks

WIDTHS = st.sampled_from([1, 2, 3, 8, 40])


def residuals(d_model, seed=0):
    """Something like a residual stream: bfloat16 bits ``[128, d_model]`` of numbers of like size."""
    values = np.random.default_rng(seed).standard_normal((128, d_model)) * 3
    return values.astype(ml_dtypes.bfloat16).view(np.uint16)


def bytes_of(frame):
    return np.frombuffer(frame, np.uint8)


@given(rows=WIDTHS.flatmap(lambda width: arrays(np.uint16, (128, width))))
def test_any_bits_come_back_as_they_were_by_ours_and_by_numcodecs(rows):
    frame = encode(rows)
    assert len(frame) <= rows.nbytes + HEADER_BYTES
    back = np.empty_like(rows)
    decode(bytes_of(frame), back)
    assert (back == rows).all()
    assert bytes(blosc.decompress(frame)) == rows.tobytes()


def test_numbers_of_like_size_get_a_third_smaller_and_noise_no_larger_than_a_header():
    rows = residuals(576)
    assert len(encode(rows)) < rows.nbytes / 1.35
    noise = np.random.default_rng(0).integers(0, 1 << 16, (128, 64)).astype(np.uint16)
    assert len(encode(noise)) == noise.nbytes + HEADER_BYTES


def test_the_planes_are_apart_as_the_format_says():
    rows = residuals(8)
    frame = encode(rows)
    assert struct.unpack("<4B3I", frame[:16]) == (2, 1, 0x81, 2, 2048, 2048, len(frame))
    start, low = struct.unpack("<2I", frame[16:24])
    assert (start, low) == (20, 1024)  # the mantissas are noise, stored as they are
    assert frame[24 : 24 + low] == rows.reshape(-1).view(np.uint8)[::2].tobytes()
    [high] = struct.unpack("<I", frame[24 + low : 28 + low])
    assert 28 + low + high == len(frame)


@pytest.mark.parametrize("kind", ["zeros", "residuals", "noise"])
def test_a_frame_with_any_byte_changed_or_cut_off_is_refused_or_decodes_to_as_many_bytes(kind):
    noise = np.random.default_rng(0).integers(0, 1 << 16, (128, 4)).astype(np.uint16)
    rows = {"zeros": np.zeros((128, 4), np.uint16), "residuals": residuals(4), "noise": noise}[kind]
    frame = encode(rows)
    guarded = np.full(rows.size + 2000, 0xABCD, np.uint16)
    out = guarded[1000:-1000].reshape(rows.shape)
    refused = 0
    for position in range(len(frame)):
        for mask in (0x01, 0x80, 0xFF) if position > 30 else (1 << bit for bit in range(8)):
            changed = bytearray(frame)
            changed[position] ^= mask
            try:
                decode(bytes_of(bytes(changed)), out)
            except ValueError:
                refused += 1
        with pytest.raises(ValueError, match=r"."):
            decode(bytes_of(frame[:position]), out)
    assert refused > 100  # everything in the header, and most of what zstd reads
    assert (guarded[:1000] == 0xABCD).all()
    assert (guarded[-1000:] == 0xABCD).all()


@pytest.mark.parametrize("size", [0, 2047, 4096, 2**31 - 1, 2**32 - 1])
@pytest.mark.parametrize("field", [4, 8, 12, 16, 20])
def test_sizes_that_lie_are_refused_before_anything_is_decoded(field, size):
    changed = bytearray(encode(residuals(8)))
    struct.pack_into("<I", changed, field, size)
    with pytest.raises(ValueError, match=r"header says|start|end"):
        decode(bytes_of(bytes(changed)), np.empty((128, 8), np.uint16))


def test_frames_of_other_codecs_are_refused():
    rows = residuals(8)
    for codec in (b"lz4", b"zlib", b"blosclz"):
        with pytest.raises(ValueError, match="not the header"):
            decode(bytes_of(blosc.compress(rows, codec, 5, 1, 0, 2)), np.empty_like(rows))


def write_shard(path, geometry, blocks):
    """Write an archived shard; returns its size."""
    stored = [frame + crc32c_bytes(frame) for frame in map(encode, blocks)]
    data = b"".join(stored) + geometry.shard_index(0, [len(block) for block in stored])
    path.write_bytes(data)
    return len(data)


def test_a_changed_byte_of_a_shard_is_found_when_it_is_opened_or_its_block_is_loaded(tmp_path):
    geometry = Geometry(300, 300, 4, 512, 1)
    size = write_shard(tmp_path / "0", geometry, [residuals(4, seed) for seed in range(3)])
    data = (tmp_path / "0").read_bytes()
    shard = ArchiveShard(tmp_path / "0", geometry, 0, size, "unit 0, layer 9")
    assert all((shard.load(seed) == residuals(4, seed)).all() for seed in range(3))
    positions = [*range(0, size - geometry.index_bytes, 11), *range(size - geometry.index_bytes, size, 2)]
    damaged = []
    for position in positions:
        (tmp_path / "1").write_bytes(data[:position] + bytes([data[position] ^ 0x41]) + data[position + 1 :])
        if position >= size - geometry.index_bytes:
            with pytest.raises(CorruptError, match=r"index of .*unit 0, layer 9"):
                ArchiveShard(tmp_path / "1", geometry, 0, size, "unit 0, layer 9")
            continue
        shard = ArchiveShard(tmp_path / "1", geometry, 0, size, "unit 0, layer 9")
        bad = [block for block in range(3) if not loads(shard, block)]
        assert len(bad) == 1
        damaged += bad
    assert sorted(damaged) == damaged
    assert set(damaged) == {0, 1, 2}


def loads(shard, block):
    try:
        shard.load(block)
    except CorruptError:
        return False
    return True


@pytest.mark.parametrize("sizes", [[2**63, 2**63, 0], [2**64 - 1] * 3, [0, 0, 0], [10, 10, 10], [1, 1, None]])
def test_an_index_that_is_sealed_and_lies_is_refused(tmp_path, sizes):
    geometry = Geometry(300, 300, 4, 512, 1)
    size = write_shard(tmp_path / "0", geometry, [residuals(4)] * 3)
    if sizes[-1] is None:
        sizes = [*sizes[:-1], size - geometry.index_bytes - 2]
    body = (tmp_path / "0").read_bytes()[: -geometry.index_bytes]
    table = np.full((4, 2), 2**64 - 1, np.uint64)
    table[:3, 1] = sizes
    table[:3, 0] = np.cumsum(table[:3, 1]) - table[:3, 1]
    (tmp_path / "0").write_bytes(body + table.tobytes() + crc32c_bytes(table.tobytes()))
    with pytest.raises(CorruptError, match="index"):
        ArchiveShard(tmp_path / "0", geometry, 0, size, "unit 0, layer 9")


def test_a_shard_cut_short_while_it_is_open_is_an_error_and_no_bus_error(tmp_path):
    geometry = Geometry(12_800, 12_800, 64, 12_800, 1)
    size = write_shard(tmp_path / "0", geometry, [residuals(64, seed) for seed in range(100)])
    shard = ArchiveShard(tmp_path / "0", geometry, 0, size, "unit 0, layer 9")
    shard.block(99)
    with (tmp_path / "0").open("r+b") as file:
        file.truncate(size // 2)
    shard.block(0)
    with pytest.raises(CorruptError, match="unit 0, layer 9"):
        shard.block(99)


def test_decoded_blocks_are_kept_up_to_a_number_of_bytes_and_the_oldest_go():
    kept = DecodedBlocks(limit=10 * 256)
    for number in range(20):
        kept.put(number, np.full((128, 1), number, np.uint16))
        kept.get(3)
    assert [number for number in range(20) if kept.get(number) is not None] == [3, *range(11, 20)]
    kept.put(99, np.zeros((128, 11), np.uint16))
    assert kept.get(99) is None  # larger than all that may be kept
    assert (kept.get(19) == 19).all()


def test_decoded_blocks_are_right_from_several_threads():
    kept = DecodedBlocks(limit=16 * 256)
    wrong = []

    def work(seed):
        for number in np.random.default_rng(seed).integers(0, 40, 3000).tolist():
            rows = kept.get(number)
            if rows is None:
                kept.put(number, np.full((128, 1), number, np.uint16))
            elif not (rows == number).all():
                wrong.append(number)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert sum(kept.get(number) is not None for number in range(40)) == 16
