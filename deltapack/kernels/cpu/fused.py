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
from deltapack.kernels.cpu.fused_trits import fused_trits
from deltapack.kernels.cpu.positions import _byte_gaps, _gap_table, _rice_gaps, _sample
from deltapack.kernels.cpu.values import _scale, _unpack, code_table
from deltapack.kernels.encoded import Encoded
from deltapack.kernels.layout import Counts, Elements, Positions, Sparse, Values
from deltapack.kernels.reference.positions import out_array, padded_words

__all__ = ["add_encoded", "decode_encoded"]

_SEEDED, _BYTES, _RICE = range(3)
_NOTHING = np.zeros(0, np.uint8)
_NO_ELEMENTS = np.zeros(0, np.uint16)
"""Of the most common type, so that decoding alone needs no other compiled loop."""


def decode_encoded(encoded: Encoded, out: Sparse) -> Sparse | None:
    """See the reference."""
    if _has_fused_trits(encoded):
        count = fused_trits(_NO_ELEMENTS, encoded, out)
        return None if count is None else Sparse(out.positions[:count], out.values[:count])
    arguments = _arguments(encoded, out)
    if arguments is None or not _decode(_NO_ELEMENTS, *arguments):
        return None
    nnz = int(encoded.counts.sum())
    return Sparse(out.positions[:nnz], out.values[:nnz])


def add_encoded(elements: Elements, dtype: DType, encoded: Encoded, out: Sparse) -> bool:
    """See the reference."""
    target = loops_on(elements, dtype)
    if target is None:
        return False
    if _has_fused_trits(encoded):
        return fused_trits(target, encoded, out) is not None
    arguments = _arguments(encoded, out)
    return arguments is not None and bool(_decode(target, *arguments))


def _has_fused_trits(encoded: Encoded) -> bool:
    return encoded.trits and encoded.index in ("seeded", "stratified")


def _arguments(encoded: Encoded, out: Sparse) -> tuple[Any, ...] | None:
    """Return the arguments of `_decode`, or none where a codec has no fused call."""
    if encoded.bits == 0 or encoded.index not in ("seeded", "gaps"):
        return None
    nnz, unused = int(encoded.counts.sum()), -int(encoded.counts.sum()) * encoded.bits % 8
    if unused and encoded.codes[-1] >> (8 - unused):
        return None
    kind = _SEEDED if encoded.index == "seeded" else _RICE if encoded.shift else _BYTES
    words = _WORDS, _WORDS
    if kind == _RICE:
        split, rest = -(-nnz * encoded.shift // 8), nnz * encoded.shift % 8
        low, unary = encoded.positions[:split], encoded.positions[split:]
        if len(unary) == 0 or not unary[-1] or (rest and low[-1] >> rest):
            return None
        words = padded_words(low), padded_words(unary)
    return (
        kind,
        encoded.positions,
        *words,
        np.uint64(encoded.shift),
        np.uint32(encoded.key & 0xFFFFFFFF),
        np.uint32(encoded.key >> 32),
        *_gap_table(max(1, encoded.keep)),
        np.uint32(encoded.first_tile),
        np.zeros(len(encoded.counts), np.int64),
        encoded.codes,
        code_table(encoded.bits),
        encoded.scales,
        np.empty(len(encoded.scales) // 2, np.uint16),
        encoded.factor,
        encoded.counts,
        encoded.lengths,
        out_array(int(encoded.lengths.sum()), out.positions),
        out.values[:nnz],
    )


_WORDS = padded_words(_NOTHING)


@compiled
def _decode(
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
    found: Counts,
    codes: NDArray[np.uint8],
    table_of_codes: Values,
    scales: NDArray[np.uint8],
    steps: NDArray[np.uint16],
    factor: np.float32,
    counts: Counts,
    lengths: Counts,
    positions: Positions,
    values: Values,
) -> bool:
    """Decode a chunk and, where there are elements, add it to them; false, and nothing is changed, where a stream is damaged.

    The arguments come one by one: grouped into named tuples they take 4 microseconds more a call, to be told apart by type. That is half
    the time of a tensor of 300 elements, and 2 to 8 % of that of a whole chunk.
    """
    if kind == _SEEDED:
        _sample(k0, k1, thresholds, table, first_tile, lengths, positions, found)
        for tile in range(len(counts)):
            if found[tile] != counts[tile]:
                return False
    elif kind == _BYTES:
        if not _byte_gaps(gaps, counts, lengths, positions):
            return False
    elif not _rice_gaps(low, unary, shift, counts, lengths, positions):
        return False
    _unpack(codes, table_of_codes, values)
    groups = len(steps)
    for group in range(groups):
        steps[group] = np.uint16(scales[group]) | (np.uint16(scales[groups + group]) << np.uint16(8))
    if not _scale(values, steps, factor, counts):
        return False
    if len(elements):
        _add_one(elements, positions[: len(values)], values)
    return True
