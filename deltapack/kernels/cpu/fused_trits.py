"""A chunk of trits in one compiled call: positions, then those whose trit is not 0, then these added.

Four trits in five are 0 and touch no element, so what is left is close to reading and writing the tensor once.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deltapack.kernels.cpu.adding import _add_one
from deltapack.kernels.cpu.bits import compiled
from deltapack.kernels.cpu.positions import _gap_table, _sample
from deltapack.kernels.cpu.strata import _stratify
from deltapack.kernels.cpu.trits import are_trits
from deltapack.kernels.encoded import Encoded
from deltapack.kernels.layout import TRITS, Bytes, Counts, Positions, Sparse, Values
from deltapack.kernels.reference.positions import out_array
from deltapack.kernels.reference.strata import begins_of
from deltapack.kernels.reference.trits import trit_table

__all__ = ["fused_trits"]

_STRIDE, _MOSTLY = np.uint64(TRITS), np.uint64(3)
_NO_STRATA, _NO_GAPS, _NO_TABLE = np.zeros(0, np.uint32), np.zeros(0, np.uint64), np.zeros(0, np.uint16)


def fused_trits(elements: NDArray[Any], encoded: Encoded, out: Sparse) -> int | None:
    """Decode a chunk of trits on a mask that is drawn and, where there are elements, add it to them.

    Args:
        elements: As `loops_on` returns them, or none.
        encoded: Its streams.
        out: Room, as of `decode_encoded`, for the positions and values of the trits that are not 0.

    Returns:
        How many these are; none, and nothing is changed, where a stream is damaged.
    """
    begins, gaps = _NO_STRATA, (_NO_GAPS, _NO_TABLE)
    if encoded.index == "stratified":
        begins = begins_of(encoded.keep)
    else:
        gaps = _gap_table(encoded.keep)
    with np.errstate(over="ignore"):
        step = np.float32(encoded.scale) * encoded.factor
    found = _trits(
        elements,
        np.uint32(encoded.key & 0xFFFFFFFF),
        np.uint32(encoded.key >> 32),
        begins,
        *gaps,
        np.uint32(encoded.first_tile),
        encoded.lengths,
        encoded.counts,
        np.zeros(len(encoded.counts), np.int64),
        encoded.codes,
        trit_table(),
        *_compaction(),
        step,
        out_array(int(encoded.lengths.sum()), out.positions),
        out.values,
    )
    return None if found < 0 else int(found)


@lru_cache
def _compaction() -> tuple[NDArray[np.uint8], Values, NDArray[np.uint8]]:
    """Return for each byte the places of its trits that are not 0, then of the others, `[243, 5]`, their codes, and how many are not 0."""
    table = trit_table()
    order = np.argsort(table == 0, axis=1, kind="stable")
    codes = np.take_along_axis(table, order, axis=1).astype(np.float32)
    return order.astype(np.uint8), codes, (table != 0).sum(axis=1).astype(np.uint8)


@compiled
def _trits(
    elements: NDArray[np.uint16],
    k0: np.uint32,
    k1: np.uint32,
    begins: NDArray[np.uint32],
    thresholds: NDArray[np.uint64],
    gaps: NDArray[np.uint16],
    first_tile: np.uint32,
    lengths: Counts,
    counts: Counts,
    found: Counts,
    codes: Bytes,
    table: NDArray[np.int8],
    places: NDArray[np.uint8],
    signs: Values,
    ones: NDArray[np.uint8],
    step: np.float32,
    positions: Positions,
    values: Values,
) -> np.int64:
    """Return how many trits are not 0, or -1 where a stream is damaged."""
    if len(begins):
        kept = _stratify(k0, k1, begins, first_tile, lengths, positions, found)
    else:
        kept = _sample(k0, k1, thresholds, gaps, first_tile, lengths, positions, found)
    for tile in range(len(counts)):
        if found[tile] != counts[tile]:
            return np.int64(-1)
    if not are_trits(codes, table, kept):
        return np.int64(-1)
    count = _compact(codes, places, signs, ones, step, positions, values)
    if len(elements):
        _add_one(elements, positions[:count], values[:count])
    return np.int64(count)


@compiled
def _compact(
    codes: Bytes,
    places: NDArray[np.uint8],
    signs: Values,
    ones: NDArray[np.uint8],
    step: np.float32,
    positions: Positions,
    values: Values,
) -> np.uint64:
    """Keep the positions whose trit is not 0, in place, and write their values; the next byte overwrites what is too much.

    A place is never before the one that it moves to, so nothing is overwritten that is still to be read. More than three of a byte are
    rare, so that is a branch, where the others are none.
    """
    count = np.uint64(0)
    for at in range(np.uint64(len(codes))):
        byte, first = np.uint64(codes[at]), _STRIDE * at
        for slot in range(_MOSTLY):
            positions[count + slot] = positions[first + np.uint64(places[byte, slot])]
            values[count + slot] = signs[byte, slot] * step
        if ones[byte] > np.uint8(_MOSTLY):
            for slot in range(_MOSTLY, _STRIDE):
                positions[count + slot] = positions[first + np.uint64(places[byte, slot])]
                values[count + slot] = signs[byte, slot] * step
        count += np.uint64(ones[byte])
    return count
