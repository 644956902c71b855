"""One chunk of a tensor that is restored bit for bit, whatever its type: to bytes and back (spec/codecs/exact.md).

A chunk stands by itself: an entry needs no more than its bytes, the elements of the base and its own type and length. Where base and
fine-tune have other types, the base is converted first.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from deltapack import kernels
from deltapack.codecs.exact_bytes import Cursor, need, varint
from deltapack.codecs.exact_dense import decode_dense, read_dense, read_shared, write_values
from deltapack.codecs.exact_modelling import Plan, Symbols, plan_values, symbols_between
from deltapack.codecs.exact_planes import decode_planes, encode_planes, estimate_planes
from deltapack.codecs.exact_tables import NO_TABLES, SharedTables
from deltapack.codecs.indices import encode_gaps, index_raw_bounds
from deltapack.dtypes import DType
from deltapack.kernels.exact_numbers import Numbers, numbers_of
from deltapack.kernels.layout import Bits, Elements, Positions

__all__ = ["FORMS", "decode_exact_chunk", "encode_exact_chunk", "read_changed"]

FORMS = ("equal", "planes", "dense", "sparse", "shared")
_EQUAL, _PLANES, _DENSE, _SPARSE, _SHARED = range(5)
_SPARSE_TOO, _SPARSE_ONLY = 16, 16384
"""Where fewer than one number in so many changed, positions and values are one way that is looked at, or the only one."""
_UNFORESEEN, _STRUCTURE, _FEW = 0.97, 0.25, 64
"""Planes are tried where a sample says that they take less than this share; and not of so few bits a number, or bytes."""


def encode_exact_chunk(base: Elements | None, tuned: Elements, dtype: DType, tables: SharedTables = NO_TABLES) -> bytes:
    """Encode a chunk, in the way that makes it smallest.

    Args:
        base: Elements of the base, `[n]` in the storage type of `dtype`; none where the tensor has no partner.
        tuned: Elements of the fine-tune, `[n]` in the storage type of `dtype`.
        dtype: Their type.
        tables: That the chunk may refer to.

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
    values = symbols_between(before, after, numbers)
    if not values.changed:
        return bytes([_EQUAL])
    data = _encode_values(values, numbers, tables)
    return data if len(data) <= after.nbytes else min(data, bytes([_PLANES]) + encode_planes(None, after, numbers), key=len)


def _encode_values(values: Symbols, numbers: Numbers, tables: SharedTables) -> bytes:
    """Encode numbers of which some changed."""
    if values.changed * _SPARSE_ONLY <= len(values.base):
        return _write_sparse(_plan_sparse(values, numbers, tables), numbers)
    plan = plan_values(values, numbers, tables)
    if values.changed * _SPARSE_TOO <= len(values.base) and _bits_of_places(values) < plan.bits:
        sparse = _plan_sparse(values, numbers, tables)
        if sparse.bits < plan.bits:
            return _write_sparse(sparse, numbers)
    return _write_values(plan, values, numbers)


def _bits_of_places(values: Symbols) -> float:
    """Return what it takes at least to say which numbers changed, if nothing is known of them but how many."""
    share = values.changed / len(values.base)
    return float(-values.changed * np.log2(share) - (len(values.base) - values.changed) * np.log2(max(1 - share, share)))


def _bits(elements: Elements, numbers: Numbers) -> Bits:
    bits: Bits = np.ascontiguousarray(elements).view(numbers.storage)
    return bits


def _write_values(plan: Plan, values: Symbols, numbers: Numbers) -> bytes:
    """Encode numbers as differences, or as planes where a sample says that this is smaller."""
    ways = [bytes([_SHARED if plan.is_shared else _DENSE]) + write_values(plan, values.tuned, numbers)]
    is_larger = len(ways[0]) > values.tuned.nbytes  # also where these are few among others, so that the chunk as a whole may not be
    if is_larger or len(ways[0]) > max(_FEW, _STRUCTURE * len(values.tuned) / 8):
        for partner in (None, values.base):
            if is_larger or estimate_planes(partner, values.tuned, numbers) < _UNFORESEEN * len(ways[0]):
                ways.append(bytes([_PLANES]) + encode_planes(partner, values.tuned, numbers))
    return min(ways, key=len)


class _Sparse(NamedTuple):
    """Numbers of which few changed: the bytes that say where these are, they themselves, how they are coded, and what all takes."""

    head: bytes
    values: Symbols
    plan: Plan
    bits: float


def _plan_sparse(values: Symbols, numbers: Numbers, tables: SharedTables) -> _Sparse:
    places = np.flatnonzero(values.symbols != 0)
    gaps = np.diff(places, prepend=-1) - 1
    near = int(max(1, min(13, np.log2(len(values.base) / len(places)) - 1)))
    shift = min(range(near, near + 3), key=lambda shift: len(gaps) * shift + int((gaps >> shift).sum()))
    stream = encode_gaps(places.astype(np.uint32), np.array([len(places)], np.int64), shift)
    head = bytes([_SPARSE, shift]) + varint(len(places)) + varint(len(stream)) + stream
    own = values.at(places)
    plan = plan_values(own, numbers, tables)
    as_they_are = numbers.width * (len(places) + 1) + 16
    return _Sparse(head, own, plan, min(plan.bits, as_they_are) + 8 * len(head))


def _write_sparse(sparse: _Sparse, numbers: Numbers) -> bytes:
    return sparse.head + _write_values(sparse.plan, sparse.values, numbers)


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
    dense = read_dense(cursor, length, given.numbers) if form == _DENSE else read_shared(cursor, length, *given)
    return decode_dense(dense, base, given.numbers)


def read_changed(cursor: Cursor, length: int) -> Positions:
    """Read which of `length` numbers are given anew, `[m]`, increasing; at least one.

    Raises:
        FormatError: What the cursor reads is damaged (rule R9).
    """
    shift = cursor.byte("the shift")
    need(1 <= shift <= 15, "no such shift", expected="1 to 15", found=shift)
    count = cursor.number(length, "the number of changed elements")
    need(count, "no element changed")
    counts, lengths = np.array([count], np.int64), np.array([length], np.int64)
    least, most = index_raw_bounds("gaps", shift, counts, lengths)
    size = cursor.number(most, "the length of the gaps")
    need(size >= least, "too few bytes of gaps", expected=f"at least {least}", found=size)
    raw = cursor.array(size, "|u1", "the gaps").view(np.uint8)
    return kernels.active().rice_gap_positions(raw, shift, counts, lengths)


def _decode_sparse(cursor: Cursor, base: Bits, given: _Given) -> Bits:
    changed = read_changed(cursor, len(base))
    out = base.copy()
    out[changed] = _decode(cursor, base[changed], len(changed), given, (_PLANES, _DENSE, _SHARED))
    return out
