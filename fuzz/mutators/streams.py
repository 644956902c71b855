"""Bytes changed as bytes."""

from __future__ import annotations

from random import Random

import zstandard

__all__ = ["INTERESTING", "changed_bytes", "changed_frame", "changed_number", "is_frame"]

INTERESTING = tuple(
    sorted({sign * ((1 << bits) + step) for bits in (0, 3, 7, 8, 15, 16, 20, 31, 32, 48, 53, 62, 63, 64) for step in (-1, 0, 1) for sign in (1, -1)})
)
"""Numbers at which something ends: widths of types, a chunk, the limit of elements, exact integers of a double."""
_FRAME = b"\x28\xb5\x2f\xfd"
_MOST = 1 << 18


def changed_number(number: int, rng: Random) -> int:
    """A number near this one, a multiple of it, or one at which something ends."""
    ways = (
        number + rng.choice((-1, 1)) * rng.choice((1, 1, 1, 2, 8, 64, 255, 256, 65535, 65536)),
        number * rng.choice((-1, 2, 3, 16, 1 << 16, 1 << 32)),
        number // rng.choice((2, 3, 8)),
        rng.choice(INTERESTING),
        rng.randrange(0, 300),
        0,
    )
    return rng.choice(ways)


def changed_bytes(data: bytes, rng: Random, other: bytes = b"") -> bytes:
    """A few changes of the kinds that fuzzers of bytes make.

    Args:
        data: The bytes.
        rng: Where chance comes from.
        other: Bytes of which pieces may be taken.
    """
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 3, 8))):
        at = rng.randrange(len(out) + 1)
        length = min(len(out) - at, rng.choice((1, 1, 2, 4, 8, 32, 200)))
        way = rng.randrange(10)
        if way == 0 and at < len(out):
            out[at] ^= 1 << rng.randrange(8)
        elif way == 1 and at < len(out):
            out[at] = rng.choice((0, 1, 127, 128, 254, 255, rng.randrange(256)))
        elif way == 2:
            del out[at : at + length]
        elif way == 3:
            out[at:at] = bytes(rng.choice((0, 255, rng.randrange(256))) for _ in range(rng.choice((1, 2, 7, 64))))
        elif way == 4 and length:
            out[at:at] = out[at : at + length] * rng.choice((1, 1, 2, 16))
        elif way == 5:
            out[at : at + length] = rng.randbytes(length)
        elif way == 6:
            out[at : at + length] = bytes([rng.choice((0, 255, rng.randrange(256)))]) * length
        elif way == 7:
            size = rng.choice((1, 2, 4, 8))
            number = int.from_bytes(out[at : at + size], "little")
            out[at : at + size] = (changed_number(number, rng) & (1 << 8 * size) - 1).to_bytes(size, "little")
        elif way == 8 and other:
            start = rng.randrange(len(other))
            out[at : at + length] = other[start : start + rng.choice((1, 4, 16, 64))]
        else:
            out = out[:at] if rng.random() < 0.5 else out[at:]
    return bytes(out[:_MOST])


def is_frame(data: bytes) -> bool:
    """Whether these may be the bytes of a zstd frame."""
    return data[:4] == _FRAME


def changed_frame(data: bytes, rng: Random, other: bytes = b"") -> bytes:
    """Change what a frame holds, and compress it again; or the frame as bytes, now and then, or where it holds nothing that is known."""
    if is_frame(data) and rng.random() < 0.8:
        try:
            size = zstandard.frame_content_size(data)
            content = zstandard.ZstdDecompressor().decompress(data) if 0 <= size < _MOST else None
        except zstandard.ZstdError:
            content = None
        if content is not None:
            return zstandard.ZstdCompressor(level=rng.choice((1, 3, 19))).compress(changed_bytes(content, rng, other))
    return changed_bytes(data, rng, other)
