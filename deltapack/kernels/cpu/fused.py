"""All stages of a chunk in one compiled call.

A call that releases the interpreter's lock has to wait for it afterwards, and with several threads at work that costs more than a short
stage itself. The stages are those of the other modules; the codecs that people use most have a fused call, the others go step by step.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from deltapack.dtypes import DType
from deltapack.kernels.cpu.adding import _add_one
from deltapack.kernels.cpu.bits import compiled, loops_on
from deltapack.kernels.cpu.positions import _byte_gaps, _gap_table, _rice_gaps, _sample
from deltapack.kernels.cpu.values import _scale, _unpack1, _unpack2, _unpack4, _unpack8
from deltapack.kernels.encoded import Encoded
from deltapack.kernels.reference.adding import Array, Sparse
from deltapack.kernels.reference.positions import Counts, Positions, padded_words, room
from deltapack.kernels.reference.values import Values

__all__ = ["add_encoded", "decode_encoded"]

_SEEDED, _BYTES, _RICE = range(3)
_NOTHING = np.zeros(0, np.uint8)


def decode_encoded(encoded: Encoded, out: Sparse) -> Sparse | None:
    """See the reference."""
    arguments = _arguments(encoded, out)
    if arguments is None or not _decode(*arguments):
        return None
    nnz = int(encoded.counts.sum())
    return out[0][:nnz], out[1][:nnz]


def add_encoded(elements: Array, dtype: DType, encoded: Encoded, out: Sparse) -> bool:
    """See the reference."""
    target, arguments = loops_on(elements, dtype), _arguments(encoded, out)
    return target is not None and arguments is not None and bool(_decode_and_add(target, *arguments))


def _arguments(encoded: Encoded, out: Sparse) -> tuple[Any, ...] | None:
    """Return the arguments of `_decode`, or none where a codec has no fused call."""
    if encoded.bits == 0 or encoded.index not in ("seeded", "gaps"):
        return None
    kind = _SEEDED if encoded.index == "seeded" else _RICE if encoded.shift else _BYTES
    low, unary = encoded.positions, _NOTHING
    if kind == _RICE:
        split = -(-int(encoded.counts.sum()) * encoded.shift // 8)
        low, unary = low[:split], low[split:]
        rest = int(encoded.counts.sum()) * encoded.shift % 8
        if len(unary) == 0 or not unary[-1] or (rest and low[-1] >> rest):
            return None
    words = (padded_words(low), padded_words(unary)) if kind == _RICE else (_WORDS, _WORDS)
    return (
        kind,
        encoded.positions,
        *words,
        np.uint64(encoded.shift),
        np.uint32(encoded.key & 0xFFFFFFFF),
        np.uint32(encoded.key >> 32),
        *_gap_table(max(1, encoded.keep)),
        np.uint32(encoded.first_tile),
        encoded.bits,
        encoded.codes,
        encoded.scales,
        encoded.factor,
        encoded.counts,
        encoded.lengths,
        room(int(encoded.lengths.sum()), out[0]),
        out[1],
    )


_WORDS = padded_words(_NOTHING)


@compiled
def _decode_and_add(
    elements: NDArray[np.uint16],
    kind: int,
    gaps: NDArray[np.uint8],
    low: NDArray[np.uint64],
    unary: NDArray[np.uint64],
    shift: np.uint64,
    k0: np.uint32,
    k1: np.uint32,
    thresholds: NDArray[np.uint64],
    table: NDArray[np.uint16],
    first_tile: np.uint32,
    bits: int,
    codes: NDArray[np.uint8],
    scales: NDArray[np.uint8],
    factor: np.float32,
    counts: Counts,
    lengths: Counts,
    positions: Positions,
    values: Values,
) -> bool:
    """Decode a chunk and add it; false, and nothing is changed, where a stream is not what the counts need."""
    if not _decode(
        kind,
        gaps,
        low,
        unary,
        shift,
        k0,
        k1,
        thresholds,
        table,
        first_tile,
        bits,
        codes,
        scales,
        factor,
        counts,
        lengths,
        positions,
        values,
    ):
        return False
    nnz = counts.sum()
    _add_one(elements, positions[:nnz], values[:nnz])
    return True


@compiled
def _decode(
    kind: int,
    gaps: NDArray[np.uint8],
    low: NDArray[np.uint64],
    unary: NDArray[np.uint64],
    shift: np.uint64,
    k0: np.uint32,
    k1: np.uint32,
    thresholds: NDArray[np.uint64],
    table: NDArray[np.uint16],
    first_tile: np.uint32,
    bits: int,
    codes: NDArray[np.uint8],
    scales: NDArray[np.uint8],
    factor: np.float32,
    counts: Counts,
    lengths: Counts,
    positions: Positions,
    values: Values,
) -> bool:
    nnz = counts.sum()
    if kind == _SEEDED:
        found = np.zeros(len(counts), np.int64)
        _sample(k0, k1, thresholds, table, first_tile, lengths, positions, found)
        for tile in range(len(counts)):
            if found[tile] != counts[tile]:
                return False
    elif kind == _BYTES:
        if not _byte_gaps(gaps, counts, lengths, positions):
            return False
    elif not _rice_gaps(low, unary, shift, counts, lengths, positions):
        return False
    used = nnz * bits % 8
    if used and codes[-1] >> np.uint8(used):
        return False
    _unpack(codes, bits, values[:nnz])
    groups = len(scales) // 2
    steps = np.empty(groups, np.uint16)
    for group in range(groups):
        steps[group] = np.uint16(scales[group]) | (np.uint16(scales[groups + group]) << np.uint16(8))
    return bool(_scale(values[:nnz], steps, factor, counts))


@compiled
def _unpack(codes: NDArray[np.uint8], bits: int, values: Values) -> None:
    if bits == 8:
        _unpack8(codes, values)
    elif bits == 4:
        _unpack4(codes, values)
    elif bits == 2:
        _unpack2(codes, values)
    else:
        _unpack1(codes, values)
