"""Sums of what agrees with a sign, scalar products, compiled; `deltapack.kernels.reference.electing` says what each function does."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from deltapack.kernels.cpu.bits import addresses, array_at, compiled
from deltapack.kernels.reference.electing import Positions, Values

__all__ = ["blend_elected", "mix_shared", "scalar_product", "stack_terms"]

_BLOCK = 1024


def stack_terms(length: int, parts: Sequence[tuple[Positions, Values]]) -> tuple[Positions, Values]:
    """See the reference."""
    arrays = [(np.ascontiguousarray(positions), np.ascontiguousarray(values)) for positions, values in parts]
    where = [addresses(column) for column in zip(*arrays, strict=True)]
    lengths = np.array([len(positions) for positions, _ in arrays], np.int64)
    place = np.zeros(length, np.uint32)
    union = np.empty(min(length, int(lengths.sum())) + 1, np.uint32)
    count = int(_unite(where[0], lengths, place, union))
    deltas = np.zeros((len(arrays), count), np.float32)
    _spread(*where, lengths, place, deltas)
    return union[:count].copy(), deltas


@compiled
def _unite(positions_at: NDArray[np.uint64], lengths: NDArray[np.int64], place: Positions, union: Positions) -> np.uint64:
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
def _spread(
    positions_at: NDArray[np.uint64],
    values_at: NDArray[np.uint64],
    lengths: NDArray[np.int64],
    place: Positions,
    deltas: Values,
) -> None:
    for part in range(len(lengths)):
        positions = array_at(positions_at[part], lengths[part], np.uint32(0))
        values = array_at(values_at[part], lengths[part], np.float32(0))
        row = deltas[part]
        for i in range(np.uint64(len(positions))):
            row[np.uint64(place[np.uint64(positions[i])])] = values[i]


def blend_elected(
    length: int,
    parts: Sequence[tuple[Positions, Values]],
    voices: Values,
    shares: Values,
    measures: Values,
    zero_is_positive: bool,
    divided: bool,
    floor: np.float32,
    scale: np.float32,
) -> tuple[Positions, Values]:
    """See the reference."""
    arrays = [(np.ascontiguousarray(positions), np.ascontiguousarray(values)) for positions, values in parts]
    where = [addresses(column) for column in zip(*arrays, strict=True)]
    lengths = np.array([len(positions) for positions, _ in arrays], np.int64)
    room = min(length, int(lengths.sum())) + 1
    union, totals = np.empty(room, np.uint32), np.empty(room, np.float32)
    weights = np.stack([voices, shares, measures])
    limits = np.float32(floor), np.float32(scale)
    count = int(_blend(*where, lengths, weights, zero_is_positive, divided, *limits, np.uint64(length), union, totals))
    return union[:count], totals[:count]


@compiled
def _blend(
    positions_at: NDArray[np.uint64],
    values_at: NDArray[np.uint64],
    lengths: NDArray[np.int64],
    weights: Values,
    zero_is_positive: bool,
    divided: bool,
    floor: np.float32,
    scale: np.float32,
    length: np.uint64,
    union: Positions,
    totals: Values,
) -> np.uint64:
    """Work on blocks whose rows, one per pack, stay in the cache: scatter, elect, and gather what any pack keeps."""
    packs, zero, one = len(lengths), np.float32(0), np.float32(1)
    rows = np.zeros((packs, _BLOCK), np.float32)
    kept = np.zeros(_BLOCK, np.uint8)
    vote, mixed, divisor = np.empty(_BLOCK, np.float32), np.empty(_BLOCK, np.float32), np.empty(_BLOCK, np.float32)
    done = np.zeros(packs, np.uint64)
    found, begin = np.uint64(0), np.uint64(0)
    while begin < length:
        count = min(np.uint64(_BLOCK), length - begin)
        for pack in range(packs):
            positions = array_at(positions_at[pack], lengths[pack], np.uint32(0))
            values = array_at(values_at[pack], lengths[pack], zero)
            i, end, row = done[pack], np.uint64(lengths[pack]), rows[pack]
            while i < end and np.uint64(positions[i]) < begin + count:
                place = np.uint64(positions[i]) - begin
                row[place] = values[i]
                kept[place] = np.uint8(1)
                i += np.uint64(1)
            done[pack] = i
        vote[:] = zero
        mixed[:] = zero
        divisor[:] = zero
        for pack in range(packs):
            voice, row = weights[0, pack], rows[pack]
            for i in range(count):
                vote[i] += row[i] * voice
        for pack in range(packs):
            voice, share, measure, row = weights[0, pack], weights[1, pack], weights[2, pack], rows[pack]
            for i in range(count):
                own = row[i] * voice
                positive = vote[i] >= zero if zero_is_positive else vote[i] > zero
                agrees = own > zero if positive else own < zero
                mixed[i] += row[i] * share if agrees else zero
                divisor[i] += measure if agrees else zero
                row[i] = zero
        for i in range(count):
            limited = max(divisor[i], floor) if floor > zero else (one if divisor[i] == zero else divisor[i])
            total = mixed[i] / limited if divided else mixed[i]
            union[found] = np.uint32(begin + i)  # without a branch: the next one overwrites what no pack keeps
            totals[found] = total * scale + zero
            found += np.uint64(kept[i])
            kept[i] = np.uint8(0)
        begin += count
    return found


def mix_shared(deltas: Values, epsilon: np.float32, alone: Values) -> Values:
    """See the reference."""
    mixed = np.empty(deltas.shape[1], np.float32)
    _mix_shared(deltas, np.float32(epsilon), alone, mixed)
    return mixed


@compiled
def _mix_shared(deltas: Values, epsilon: np.float32, alone: Values, mixed: Values) -> None:
    zero, one = np.float32(0), np.float32(1)
    counts = np.empty(_BLOCK, np.float32)
    start, length = np.uint64(0), np.uint64(deltas.shape[1])
    while start < length:
        count = min(np.uint64(_BLOCK), length - start)
        counts[:] = zero
        for pack in range(len(alone)):
            row = deltas[pack]
            for i in range(count):
                counts[i] += one if abs(row[start + i]) > epsilon else zero
        for i in range(count):
            mixed[start + i] = zero
        for pack in range(len(alone)):
            row, factor = deltas[pack], alone[pack]
            for i in range(count):
                delta = row[start + i]
                part = delta * factor if counts[i] == one else delta / max(counts[i], one)
                mixed[start + i] += part if abs(delta) > epsilon else zero
        start += count


def scalar_product(one: Values, other: Values) -> float:
    """See the reference."""
    return float(_scalar_product(np.ascontiguousarray(one), np.ascontiguousarray(other)))


@compiled
def _scalar_product(one: Values, other: Values) -> np.float64:
    total = np.float64(0)
    for i in range(np.uint64(len(one))):
        total += np.float64(one[i]) * np.float64(other[i])
    return total
