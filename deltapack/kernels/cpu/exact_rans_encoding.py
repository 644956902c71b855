"""Interleaved range coding, compiled: encoding; `deltapack.kernels.reference.exact_rans` says what the function does.

A symbol waits for the one before in its lane. With many lanes the states lie in an array, which costs little beside the table look-ups of
as many lanes in flight; where there is one lane, four tiles are encoded at a time.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from deltapack.kernels.cpu.bits import compiled
from deltapack.kernels.layout import RANS_LOW, TILE, Bytes, Counts

__all__ = ["rans_encode"]

_TOGETHER = 4
"""Tiles of one lane that are encoded at a time."""


def rans_encode(
    contexts: Bytes, symbols: Bytes, frequencies: NDArray[np.int64], precision: int, lanes: int
) -> tuple[NDArray[np.uint32], NDArray[np.uint16], Counts]:
    """See the reference."""
    tiles = -(-len(symbols) // TILE)
    states, counts = np.full((tiles, lanes), RANS_LOW, np.uint32), np.zeros(tiles, np.int64)
    upper, lower = _encoding_tables(frequencies, np.uint64(precision))
    most = min(TILE, len(symbols)) + 1
    together = tiles - tiles % _TOGETHER if lanes == 1 else 0
    room, words, first = np.empty((_TOGETHER if together else 1, most), np.uint16), [], np.full(_TOGETHER, most - 1, np.uint64)
    for tile in range(0, together, _TOGETHER):
        inside, group = slice(tile * TILE, (tile + _TOGETHER) * TILE), slice(tile, tile + _TOGETHER)
        _encode_four(contexts[inside], symbols[inside], upper, lower, states[group, 0], room, first)
        counts[group] = most - first
        words += [own[int(start) :].copy() for own, start in zip(room, first, strict=True)]
    for tile in range(together, tiles):
        inside = slice(tile * TILE, (tile + 1) * TILE)
        start = int(_encode(contexts[inside], symbols[inside], upper, lower, states[tile], room[0]))
        counts[tile] = most - start
        words.append(room[0, start:].copy())
    return states, np.concatenate(words), counts


@compiled
def _encoding_tables(frequencies: NDArray[np.int64], precision: np.uint64) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """Return for each context and symbol: limit and bias; reciprocal, complement and shift. A quotient is a product and a shift."""
    upper, lower = np.zeros(frequencies.size, np.uint64), np.zeros(frequencies.size, np.uint64)
    one, total, key = np.uint64(1), np.uint64(1) << precision, np.uint64(0)
    for row in range(len(frequencies)):
        first = np.uint64(0)
        for symbol in range(256):
            frequency = np.uint64(frequencies[row, symbol])
            if frequency:
                bias, reciprocal, shift = first, np.uint64(0xFFFFFFFF), np.uint64(32)
                if frequency == one:  # the quotient by this reciprocal is one too small
                    bias += total - one
                else:
                    shift = np.uint64(31)
                    while frequency > one << (shift - np.uint64(31)):
                        shift += one
                    reciprocal = ((one << shift) + frequency - one) // frequency
                upper[key] = (frequency << (np.uint64(63) - precision)) | bias
                lower[key] = (reciprocal << np.uint64(32)) | ((total - frequency) << np.uint64(8)) | shift
            first += frequency
            key += one
    return upper, lower


@compiled
def _push(
    key: np.uint64, upper: NDArray[np.uint64], lower: NDArray[np.uint64], state: np.uint32, words: NDArray[np.uint16], at: np.uint64
) -> tuple[np.uint32, np.uint64]:
    """Encode one symbol: its new state, and where the next word goes. The word is written in any case, and kept where it is needed."""
    a, b = upper[key], lower[key]
    full = np.uint64(state) >= (a >> np.uint64(32))
    words[at] = np.uint16(state & np.uint32(0xFFFF))
    state = np.uint32(state >> np.uint32(16)) if full else state
    quotient = np.uint32((np.uint64(state) * (b >> np.uint64(32))) >> (b & np.uint64(63)))
    moved = np.uint32(state + np.uint32(a & np.uint64(0xFFFFFFFF)))
    return np.uint32(moved + np.uint32(quotient * np.uint32((b >> np.uint64(8)) & np.uint64(0xFFFF)))), at - np.uint64(full)


@compiled
def _encode_four(
    contexts: Bytes,
    symbols: Bytes,
    upper: NDArray[np.uint64],
    lower: NDArray[np.uint64],
    states: NDArray[np.uint32],
    rooms: NDArray[np.uint16],
    firsts: NDArray[np.uint64],
) -> None:
    """Encode four tiles of one lane; the last may be shorter. Fills in where the words begin in the room of each."""
    eight, tile, one = np.uint64(8), np.uint64(TILE), np.uint64(1)
    last, end = len(symbols) - np.uint64(3) * tile, np.uint64(rooms.shape[1] - 1)
    own, other, third, fourth = rooms[0], rooms[1], rooms[2], rooms[3]
    a, b, c, d = states[0], states[1], states[2], states[3]
    at, bt, ct, dt = end, end, end, end
    i = tile
    while i > np.uint64(0):
        i -= one
        a, at = _push((np.uint64(contexts[i]) << eight) | np.uint64(symbols[i]), upper, lower, a, own, at)
        j = i + tile
        b, bt = _push((np.uint64(contexts[j]) << eight) | np.uint64(symbols[j]), upper, lower, b, other, bt)
        j += tile
        c, ct = _push((np.uint64(contexts[j]) << eight) | np.uint64(symbols[j]), upper, lower, c, third, ct)
        if i < last:
            j += tile
            d, dt = _push((np.uint64(contexts[j]) << eight) | np.uint64(symbols[j]), upper, lower, d, fourth, dt)
    states[0], states[1], states[2], states[3] = a, b, c, d
    firsts[0], firsts[1], firsts[2], firsts[3] = at + one, bt + one, ct + one, dt + one


@compiled
def _encode(
    contexts: Bytes,
    symbols: Bytes,
    upper: NDArray[np.uint64],
    lower: NDArray[np.uint64],
    states: NDArray[np.uint32],
    words: NDArray[np.uint16],
) -> np.uint64:
    """Encode a tile from its end; words fill their array from its end, too. Returns where they begin."""
    lanes, eight = np.uint64(len(states)), np.uint64(8)
    i, at = np.uint64(len(symbols)), np.uint64(len(words) - 1)
    whole = i - i % lanes if lanes >= np.uint64(4) else np.uint64(0)
    while i > whole:
        i -= np.uint64(1)
        states[i % lanes], at = _push((np.uint64(contexts[i]) << eight) | np.uint64(symbols[i]), upper, lower, states[i % lanes], words, at)
    while i > np.uint64(0):
        lane = lanes
        while lane > np.uint64(0):
            lane -= np.uint64(4)
            i -= np.uint64(4)
            j, k = i + np.uint64(3), lane + np.uint64(3)
            states[k], at = _push((np.uint64(contexts[j]) << eight) | np.uint64(symbols[j]), upper, lower, states[k], words, at)
            j, k = i + np.uint64(2), lane + np.uint64(2)
            states[k], at = _push((np.uint64(contexts[j]) << eight) | np.uint64(symbols[j]), upper, lower, states[k], words, at)
            j, k = i + np.uint64(1), lane + np.uint64(1)
            states[k], at = _push((np.uint64(contexts[j]) << eight) | np.uint64(symbols[j]), upper, lower, states[k], words, at)
            states[lane], at = _push((np.uint64(contexts[i]) << eight) | np.uint64(symbols[i]), upper, lower, states[lane], words, at)
    return at + np.uint64(1)
