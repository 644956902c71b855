"""One chunk of a tensor that is restored bit for bit, whatever its type: to bytes and back (spec/codecs/exact.md).

A chunk stands by itself: an entry needs no more than its bytes, the elements of the base and its own type and length. Where base and
fine-tune have other types, the base is converted first.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from deltapack import kernels
from deltapack.codecs.exact_bytes import Cursor, need, varint
from deltapack.codecs.exact_dense import decode_dense, decode_shared, encode_dense
from deltapack.codecs.exact_planes import decode_planes, encode_planes, estimate_planes
from deltapack.codecs.exact_tables import NO_TABLES, SharedTables
from deltapack.codecs.indices import encode_gaps, index_raw_bounds
from deltapack.dtypes import DType
from deltapack.kernels.exact_numbers import Numbers, numbers_of
from deltapack.kernels.layout import Bits, Elements

__all__ = ["decode_exact_chunk", "encode_exact_chunk"]

_EQUAL, _PLANES, _DENSE, _SPARSE, _SHARED = range(5)
_SPARSE_ONLY, _SPARSE_TOO = 1024, 64
"""Where fewer than one number in so many changed, positions and values are the only, or one, way that is tried."""
_UNFORESEEN = 0.97


def encode_exact_chunk(base: Elements | None, tuned: Elements, dtype: DType) -> bytes:
    """Encode a chunk, in the way that makes it smallest.

    Args:
        base: Elements of the base, `[n]` in the storage type of `dtype`; none where the tensor has no partner.
        tuned: Elements of the fine-tune, `[n]` in the storage type of `dtype`.
        dtype: Their type.

    Returns:
        The bytes; none for no elements. Never more than the elements take and a few bytes. Any number of threads may do this at once.
    """
    numbers = numbers_of(dtype)
    after = _bits(tuned, numbers)
    before = None if base is None else _bits(base, numbers)
    if not len(after):
        return b""
    if before is None:
        return bytes([_PLANES]) + encode_planes(None, after, numbers)
    is_changed = before != after
    changed = int(np.count_nonzero(is_changed))
    if not changed:
        return bytes([_EQUAL])
    ways = []
    if changed * _SPARSE_TOO <= len(after):
        ways.append(_encode_sparse(before, after, np.flatnonzero(is_changed).astype(np.uint32), numbers))
    if not ways or changed * _SPARSE_ONLY > len(after):
        ways.append(_encode_values(before, after, numbers))
    return min(ways, key=len)


def _bits(elements: Elements, numbers: Numbers) -> Bits:
    bits: Bits = np.ascontiguousarray(elements).view(numbers.storage)
    return bits


def _encode_values(base: Bits, tuned: Bits, numbers: Numbers) -> bytes:
    """Encode numbers as differences, or as planes where a sample says that this is smaller."""
    ways = [bytes([_DENSE]) + encode_dense(base, tuned, numbers)]
    for partner in (None, base):
        is_large = partner is None and len(ways[0]) > tuned.nbytes
        if is_large or estimate_planes(partner, tuned, numbers) < _UNFORESEEN * len(ways[0]):
            ways.append(bytes([_PLANES]) + encode_planes(partner, tuned, numbers))
    return min(ways, key=len)


def _encode_sparse(base: Bits, tuned: Bits, changed: NDArray[np.uint32], numbers: Numbers) -> bytes:
    """Encode the positions of numbers that changed, and these numbers as a chunk of their own."""
    counts = np.array([len(changed)], np.int64)
    mean = len(base) / len(changed)
    near = int(max(1, min(13, np.log2(mean) - 1)))
    gaps = min(((shift, encode_gaps(changed, counts, shift)) for shift in range(near, near + 3)), key=lambda way: len(way[1]))
    head = bytes([_SPARSE, gaps[0]]) + varint(len(changed)) + varint(len(gaps[1])) + gaps[1]
    return head + _encode_values(base[changed], tuned[changed], numbers)


def decode_exact_chunk(data: bytes, base: Elements | None, dtype: DType, length: int, tables: SharedTables = NO_TABLES) -> Elements:
    """Decode a chunk.

    Args:
        data: What `encode_exact_chunk` returned.
        base: Elements of the base, `[length]` in the storage type of `dtype`; none where the tensor has no partner.
        dtype: Type of the elements.
        length: Number of elements.
        tables: That the chunk may refer to.

    Returns:
        The elements, `[length]` in the storage type of `dtype`, in memory of their own. What the bytes ask for is bounded by `length`,
        not by them: about 25 bytes a byte of the elements at most, for numbers of 8 bits.

    Raises:
        FormatError: The bytes are damaged (rules R8 to R10). Bytes that are not may still be those of another base: compare a digest.
    """
    numbers = numbers_of(dtype)
    count = length * numbers.parts
    before = None if base is None else _bits(base, numbers)
    cursor = Cursor(data)
    forms = (_EQUAL, _PLANES, _DENSE, _SPARSE, _SHARED)
    out = _decode(cursor, before, count, _Given(numbers, tables), forms) if count else np.zeros(0, numbers.storage)
    cursor.end("the chunk")
    return out.view(dtype.storage)


class _Given(NamedTuple):
    """What a chunk is decoded with, beside its base."""

    numbers: Numbers
    tables: SharedTables


def _decode(cursor: Cursor, base: Bits | None, length: int, given: _Given, forms: tuple[int, ...]) -> Bits:
    form = cursor.byte("the form")
    need(form in forms, "no such form", expected=forms, found=form)
    if form == _PLANES:
        return decode_planes(cursor, base, length, given.numbers)
    need(base is not None, "a form that needs a base", found=form)
    assert base is not None
    if form == _EQUAL:
        return base.copy()
    if form == _SPARSE:
        return _decode_sparse(cursor, base, given)
    return decode_dense(cursor, base, given.numbers) if form == _DENSE else decode_shared(cursor, base, *given)


def _decode_sparse(cursor: Cursor, base: Bits, given: _Given) -> Bits:
    shift = cursor.byte("the shift")
    need(1 <= shift <= 15, "no such shift", expected="1 to 15", found=shift)
    count = cursor.number(len(base), "the number of changed elements")
    need(count, "no element changed")
    counts, lengths = np.array([count], np.int64), np.array([len(base)], np.int64)
    least, most = index_raw_bounds("gaps", shift, counts, lengths)
    size = cursor.number(most, "the length of the gaps")
    need(size >= least, "too few bytes of gaps", expected=f"at least {least}", found=size)
    raw = cursor.array(size, "|u1", "the gaps").view(np.uint8)
    changed = kernels.active().rice_gap_positions(raw, shift, counts, lengths)
    out = base.copy()
    out[changed] = _decode(cursor, base[changed], count, given, (_PLANES, _DENSE, _SHARED))
    return out
