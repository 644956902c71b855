"""Numbers coded byte plane by byte plane: those without a partner, and differences of a structure that nobody foresaw (exact.md)."""

from __future__ import annotations

from typing import Any

import numpy as np

from deltapack import kernels
from deltapack.codecs.exact_bytes import Cursor, need, varint, write_stream
from deltapack.codecs.exact_coding import decode_symbols, lanes_for, read_tiles, write_tiles
from deltapack.codecs.exact_table import MOST_TABLE_BYTES, Table, read_table, write_table
from deltapack.codecs.planes import join_planes, split_planes
from deltapack.format.frames import compress_frame, decompress_frame
from deltapack.kernels.exact_numbers import Numbers
from deltapack.kernels.layout import Bits, Bytes

__all__ = ["decode_planes", "encode_planes", "estimate_planes"]

_STORED, _CONSTANT, _CODED, _ZSTD = range(4)
_ALONE, _MOVED = range(2)
_BYTES = Numbers(8, 1, 0, 0, 0, 7)
"""A byte of a plane is its own symbol; there is one context."""
_SAMPLE, _GLANCE = 1 << 14, 1 << 13
_WORTHWHILE = 0.97


def encode_planes(base: Bits | None, tuned: Bits, numbers: Numbers) -> bytes:
    """Encode numbers alone (`base` is none), or what was added to those of the base, as integers."""
    planes = _planes(base, tuned, numbers)
    return bytes([_ALONE if base is None else _MOVED]) + b"".join(map(_encode_plane, planes))


def estimate_planes(base: Bits | None, tuned: Bits, numbers: Numbers) -> float:
    """Return about how many bytes `encode_planes` would need, from a sample of 8,192 numbers in the middle."""
    start = max(0, len(tuned) - _GLANCE) // 2
    inside = slice(start, start + _GLANCE)
    planes = _planes(None if base is None else base[inside], tuned[inside], numbers)
    sizes = [min(_entropy(plane), len(compress_frame(plane.tobytes(), 1))) for plane in planes]
    return sum(sizes) * len(tuned) / min(_GLANCE, len(tuned))


def _planes(base: Bits | None, tuned: Bits, numbers: Numbers) -> list[Bytes]:
    """Return the planes; the sign of numbers that stand alone goes below the mantissa, so that the highest plane is the exponent."""
    if base is not None:
        whole = tuned - base
    elif numbers.signed:
        whole = (tuned << tuned.dtype.type(1)) | (tuned >> tuned.dtype.type(numbers.width - 1))
    else:
        whole = tuned
    return list(np.frombuffer(split_planes(whole), np.uint8).reshape(numbers.width // 8, -1))


def _entropy(plane: Bytes) -> float:
    """Return the bytes that an order-0 code of a plane takes."""
    counts = np.bincount(plane, minlength=256)
    used = counts[counts > 0]
    return float(len(plane) * np.log2(max(1, len(plane))) - (used * np.log2(used)).sum()) / 8


def _encode_plane(plane: Bytes) -> bytes:
    if (plane == plane[0]).all():
        return bytes([_CONSTANT, plane[0]])
    candidates = [bytes([_STORED]) + plane.tobytes()]
    entropy, start = _entropy(plane), max(0, len(plane) - _SAMPLE) // 2
    if entropy < _WORTHWHILE * len(plane):
        candidates.append(bytes([_CODED]) + _encode_coded(plane, entropy))
    sample = plane[start : start + _SAMPLE]
    if len(compress_frame(sample.tobytes(), 1)) < _WORTHWHILE * _entropy(sample):
        frame = compress_frame(plane.tobytes(), 3)
        candidates.append(bytes([_ZSTD]) + varint(len(frame)) + frame)
    return min(candidates, key=len)


def _encode_coded(plane: Bytes, entropy: float) -> bytes:
    frequencies = kernels.active().frequencies_of(np.bincount(plane, minlength=256).astype(np.int64), 12)
    table = Table(12, lanes_for(8 * entropy, len(plane)), -1, ((0,),), (None,), frequencies[None])
    contexts = np.zeros(len(plane), np.uint8)
    return write_stream(write_table(table, _BYTES)) + write_tiles(contexts, np.ascontiguousarray(plane), table, None)


def decode_planes(cursor: Cursor, base: Bits | None, length: int, numbers: Numbers) -> Bits:
    """Decode `length` numbers.

    Raises:
        FormatError: What the cursor reads is damaged (rules R8 to R10).
    """
    kind = cursor.byte("the kind of planes")
    need(kind == _ALONE or (kind == _MOVED and base is not None), "no such kind of planes", found=kind)
    planes = b"".join(_decode_plane(cursor, length) for _ in range(numbers.width // 8))
    whole: Any = join_planes(planes, numbers.storage)
    one, rest = whole.dtype.type(1), whole.dtype.type(numbers.width - 1)
    alone = (whole >> one) | (whole << rest) if numbers.signed else whole
    out: Bits = whole + base if kind == _MOVED else alone
    return out


def _decode_plane(cursor: Cursor, length: int) -> bytes:
    mode = cursor.byte("the mode of a plane")
    need(mode <= _ZSTD, "no such mode of a plane", found=mode)
    if mode == _STORED:
        return cursor.take(length, "a plane")
    if mode == _CONSTANT:
        return cursor.take(1, "a plane") * length
    if mode == _ZSTD:
        return decompress_frame(cursor.take(cursor.number(2 * length + 64, "the length of a frame"), "a plane"), length)
    table = read_table(cursor.stream(1, MOST_TABLE_BYTES, "the table of a plane"), _BYTES)
    need(table.kinds == 1, "two classes in a plane")
    tiles = read_tiles(cursor, length, table.lanes, has_raw=False)
    return decode_symbols(np.zeros(length, np.uint8), table, tiles).tobytes()
