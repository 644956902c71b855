"""How the differences of several packs relate, compiled; `deltapack.kernels.reference.relating` says what each function does."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from deltapack.kernels import reference
from deltapack.kernels.cpu.bits import array_at, compiled
from deltapack.kernels.cpu.blending import _Addresses, _Lengths, _raw
from deltapack.kernels.layout import Positions, Sparse, Values
from deltapack.kernels.reference.relating import LANES

__all__ = ["count_shared", "scalar_products", "stack_terms", "sum_of_squares"]

_BLOCK = 1024


def stack_terms(length: int, parts: Sequence[Sparse]) -> tuple[Positions, Values]:
    """See the reference."""
    _arrays, positions_at, values_at, lengths = _raw(parts)
    place = np.zeros(length, np.uint32)
    union = np.empty(min(length, int(lengths.sum())) + 1, np.uint32)
    count = int(_unite(positions_at, lengths, place, union))
    deltas = np.zeros((len(lengths), count), np.float32)
    _spread(positions_at, values_at, lengths, place, deltas)
    return union[:count].copy(), deltas


@compiled
def _unite(positions_at: _Addresses, lengths: _Lengths, place: Positions, union: Positions) -> np.uint64:
    """Fill `union` with the positions that occur, and `place` with where each of them is in it."""
    for part in range(len(lengths)):
        positions = array_at(positions_at[part], lengths[part], np.uint32(0))
        for i in range(np.uint64(len(positions))):
            place[np.uint64(positions[i])] = np.uint32(1)
    count = np.uint64(0)
    for position in range(np.uint64(len(place))):
        kept = place[position]
        union[count] = np.uint32(position)  # without a branch: the next one overwrites it if it does not occur
        place[position] = np.uint32(count)
        count += np.uint64(kept)
    return count


@compiled
def _spread(positions_at: _Addresses, values_at: _Addresses, lengths: _Lengths, place: Positions, deltas: Values) -> None:
    for part in range(len(lengths)):
        positions = array_at(positions_at[part], lengths[part], np.uint32(0))
        values = array_at(values_at[part], lengths[part], np.float32(0))
        row = deltas[part]
        for i in range(np.uint64(len(positions))):
            row[np.uint64(place[np.uint64(positions[i])])] = values[i]


def count_shared(length: int, parts: Sequence[Sparse], epsilon: float) -> NDArray[np.int64]:
    """See the reference."""
    _arrays, *where = _raw(parts)
    out = np.zeros((2, len(parts)), np.int64)
    _count_shared(*where, np.float32(epsilon), np.zeros(length, np.uint8), out)
    return out


@compiled
def _count_shared(
    positions_at: _Addresses,
    values_at: _Addresses,
    lengths: _Lengths,
    epsilon: np.float32,
    changes: NDArray[np.uint8],
    out: NDArray[np.int64],
) -> None:
    two = np.uint8(2)
    for part in range(len(lengths)):
        positions = array_at(positions_at[part], lengths[part], np.uint32(0))
        values = array_at(values_at[part], lengths[part], np.float32(0))
        for i in range(np.uint64(len(positions))):
            place = np.uint64(positions[i])
            changes[place] = min(np.uint8(changes[place] + np.uint8(abs(values[i]) > epsilon)), two)  # two stands for several
    for part in range(len(lengths)):
        positions = array_at(positions_at[part], lengths[part], np.uint32(0))
        values = array_at(values_at[part], lengths[part], np.float32(0))
        shared, unique = np.int64(0), np.int64(0)
        for i in range(np.uint64(len(positions))):
            several, changed = changes[np.uint64(positions[i])] == two, abs(values[i]) > epsilon
            shared += np.int64(changed & several)
            unique += np.int64(changed & (not several))
        out[0, part], out[1, part] = shared, unique


def scalar_products(length: int, parts: Sequence[Sparse]) -> NDArray[np.float64]:
    """See the reference."""
    _arrays, *where = _raw(parts)
    out = np.zeros((len(parts), len(parts)))
    _scalar_products(*where, np.uint64(length), np.zeros((_BLOCK, len(parts)), np.float32), out)
    # An infinity times the zero of a pack that does not keep the element gave NaN.
    return out if np.isfinite(out).all() else reference.scalar_products(length, parts)


@compiled
def _scalar_products(
    positions_at: _Addresses, values_at: _Addresses, lengths: _Lengths, length: np.uint64, block: Values, out: NDArray[np.float64]
) -> None:
    """Lay a block side by side, element by element; what a pack keeps of it is multiplied with the row of all packs there."""
    packs = len(lengths)
    starts, ends = np.zeros(packs, np.int64), np.zeros(packs, np.int64)
    begin, size, columns = np.uint64(0), np.uint64(len(block)), np.uint64(packs)
    while begin < length:
        for pack in range(packs):
            positions = array_at(positions_at[pack], lengths[pack], np.uint32(0))
            values = array_at(values_at[pack], lengths[pack], np.float32(0))
            at, end = np.uint64(starts[pack]), np.uint64(lengths[pack])
            while at < end and np.uint64(positions[at]) < begin + size:
                block[np.uint64(positions[at]) - begin, pack] = values[at]
                at += np.uint64(1)
            ends[pack] = at
        for pack in range(packs):
            positions = array_at(positions_at[pack], lengths[pack], np.uint32(0))
            values = array_at(values_at[pack], lengths[pack], np.float32(0))
            totals = out[pack]
            for i in range(np.uint64(starts[pack]), np.uint64(ends[pack])):
                row, value = block[np.uint64(positions[i]) - begin], np.float64(values[i])
                for column in range(columns):
                    totals[column] += value * np.float64(row[column])
        block[:] = np.float32(0)
        starts[:] = ends
        begin += size


def sum_of_squares(values: Values) -> float:
    """See the reference."""
    return float(_sum_of_squares(np.ascontiguousarray(values), np.zeros(LANES)))


@compiled
def _sum_of_squares(values: Values, lanes: NDArray[np.float64]) -> np.float64:
    width = np.uint64(LANES)
    whole = np.uint64(len(values)) // width
    for row in range(whole):
        for lane in range(width):
            value = np.float64(values[row * width + lane])
            lanes[lane] += value * value
    for lane in range(np.uint64(len(values)) - whole * width):
        value = np.float64(values[whole * width + lane])
        lanes[lane] += value * value
    total = np.float64(0)
    for lane in range(width):
        total += lanes[lane]
    return total
