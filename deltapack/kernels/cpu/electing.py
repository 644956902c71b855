"""Sums of what agrees with an elected sign, compiled; `deltapack.kernels.reference.electing` says what each function does."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from deltapack.kernels.cpu.bits import addresses, array_at, compiled
from deltapack.kernels.reference.electing import Positions, Values

__all__ = ["elect", "mix_shared", "stack_terms"]

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


def elect(
    deltas: Values, voices: Values, shares: Values, measures: Values, zero_is_positive: bool
) -> tuple[Values, Values]:
    """See the reference."""
    mixed, weight = np.empty(deltas.shape[1], np.float32), np.empty(deltas.shape[1], np.float32)
    _elect(deltas, voices, shares, measures, zero_is_positive, mixed, weight)
    return mixed, weight


@compiled
def _elect(
    deltas: Values, voices: Values, shares: Values, measures: Values, zero_is_positive: bool, mixed: Values, weight: Values
) -> None:
    zero = np.float32(0)
    positive = np.empty(_BLOCK, np.bool_)
    total = np.empty(_BLOCK, np.float32)
    start, length = np.uint64(0), np.uint64(deltas.shape[1])
    while start < length:
        count = min(np.uint64(_BLOCK), length - start)
        total[:] = zero
        for pack in range(len(voices)):
            voice, row = voices[pack], deltas[pack]
            for i in range(count):
                total[i] += row[start + i] * voice
        for i in range(count):
            positive[i] = total[i] >= zero if zero_is_positive else total[i] > zero
            mixed[start + i] = zero
            weight[start + i] = zero
        for pack in range(len(voices)):
            voice, share, measure, row = voices[pack], shares[pack], measures[pack], deltas[pack]
            for i in range(count):
                delta = row[start + i]
                vote = delta * voice
                agrees = vote > zero if positive[i] else vote < zero
                mixed[start + i] += delta * share if agrees else zero
                weight[start + i] += measure if agrees else zero
        start += count


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
