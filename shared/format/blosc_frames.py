"""Compressed blocks: a block's rows as one frame of Blosc 1, the inner codec of archived shards. The door to numcodecs.

Of bfloat16's two bytes the one with sign and exponent compresses to about a third, the one with the mantissa is
noise. A frame therefore keeps the two byte planes apart, each compressed by zstd for itself, or as it is where that
is no smaller: what Blosc calls a split block. Every Blosc decodes such a frame, numcodecs' too, but numcodecs has no
way to ask for one with zstd. In one zstd stream the planes share their statistics: the residual stream of
SmolLM2-135M then takes level 7 for 1.40x, where apart level 1 gives 1.43x, twenty times faster
(benchmarks/cache_tiers.py); other levels up to 12 are slower and no smaller. So the frame, a header of 20 bytes and
two streams, is put together here.

The format is that of c-blosc's README_CHUNK_FORMAT, for one block. All numbers are little endian:

    0   version 2, version of zstd's format 1, flags (shuffled 1, copied 2, zstd 4 << 5), type size 2
    4   bytes of the rows, bytes of a Blosc block (the same: there is one), bytes of the frame
    16  where the block starts: 20
    20  for the low plane, then for the high one: length of its stream, the stream
"""

import struct

import numpy as np
import numpy.typing as npt
from numcodecs import blosc, zstd

from shared.format.layout import BLOSC

_HEADER = struct.Struct("<4B3I")
_NUMBER = struct.Struct("<I")
_VERSION = 2
_ZSTD_VERSION = 1
_SHUFFLED = 0x01
_COPIED = 0x02
_ZSTD = 4 << 5
_PLANES = 2
_BLOCK = _HEADER.size + _NUMBER.size

HEADER_BYTES = _HEADER.size

blosc.use_threads = False  # else threads of ours would wait for each other

Bits = npt.NDArray[np.uint16]
Bytes = npt.NDArray[np.uint8]


def encode(rows: Bits) -> bytes:
    """The frame of a block's rows: bfloat16 bits, C-contiguous. At most `HEADER_BYTES` larger than they are."""
    raw = rows.reshape(-1).view(np.uint8)
    streams = [_compress(raw[plane::_PLANES]) for plane in range(_PLANES)]
    body = _NUMBER.pack(_BLOCK) + b"".join(_NUMBER.pack(len(stream)) + stream for stream in streams)
    flags = _SHUFFLED | _ZSTD
    if len(body) >= raw.nbytes:
        body, flags = raw.tobytes(), flags | _COPIED
    size = HEADER_BYTES + len(body)
    return _HEADER.pack(_VERSION, _ZSTD_VERSION, flags, _PLANES, raw.nbytes, raw.nbytes, size) + body


def decode(frame: Bytes, rows: Bits) -> None:
    """Decode a frame into ``rows``, C-contiguous.

    Where every part of it lies is checked first, against the sizes of both. So Blosc takes no more memory than
    a few times ``rows``, whatever the frame says.

    Raises:
        ValueError: it is no frame of ours of that many bytes, or its streams cannot be decoded.
    """
    _check(frame, rows.nbytes)
    try:
        blosc.decompress(frame, rows)
    except RuntimeError as error:
        raise ValueError(str(error)) from None


def _compress(plane: Bytes) -> bytes:
    """A plane compressed, or as it is where that is no smaller: Blosc tells the two by their length."""
    plane = np.ascontiguousarray(plane)
    compressed: bytes = zstd.compress(plane, BLOSC["clevel"])
    return compressed if len(compressed) < len(plane) else plane.tobytes()


def _check(frame: Bytes, rows_bytes: int) -> None:
    if len(frame) < _BLOCK:
        raise ValueError(f"a frame of {len(frame)} bytes")
    version, _, flags, *sizes = _HEADER.unpack_from(frame)
    typesize, sizes = sizes[0], sizes[1:]
    if (version, flags | _COPIED, typesize) != (_VERSION, _SHUFFLED | _COPIED | _ZSTD, _PLANES):
        raise ValueError("not the header of a frame of ours")
    if sizes != [rows_bytes, rows_bytes, len(frame)]:
        raise ValueError(f"its header says {sizes}; expected {[rows_bytes, rows_bytes, len(frame)]}")
    if flags & _COPIED:
        end = HEADER_BYTES + rows_bytes
    else:
        [end] = _NUMBER.unpack_from(frame, HEADER_BYTES)
        if end != _BLOCK:
            raise ValueError("its block does not start where it must")
        for _ in range(_PLANES):
            if end + _NUMBER.size > len(frame):
                raise ValueError("a stream starts after its end")
            [length] = _NUMBER.unpack_from(frame, end)
            end += _NUMBER.size + length
    if end != len(frame):
        raise ValueError(f"its streams end at {end}, the frame at {len(frame)}")
