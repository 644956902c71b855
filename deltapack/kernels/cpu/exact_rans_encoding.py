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
    table = _encoding_table(frequencies, np.uint64(precision))
    most = min(TILE, len(symbols)) + 1
    together = tiles - tiles % _TOGETHER if lanes == 1 else 0
    room, words, first = np.empty((_TOGETHER if together else 1, most), np.uint16), [], np.full(_TOGETHER, most - 1, np.uint64)
    for tile in range(0, together, _TOGETHER):
        inside, group = slice(tile * TILE, (tile + _TOGETHER) * TILE), slice(tile, tile + _TOGETHER)
        _encode_four(contexts[inside], symbols[inside], table, states[group, 0], room, first)
        counts[group] = most - first
        words += [own[int(start) :].copy() for own, start in zip(room, first, strict=True)]
    for tile in range(together, tiles):
        inside = slice(tile * TILE, (tile + 1) * TILE)
        start = int(_encode(contexts[inside], symbols[inside], table, states[tile], room[0]))
        counts[tile] = most - start
        words.append(room[0, start:].copy())
    return states, np.concatenate(words), counts


@compiled
def _encoding_table(frequencies: NDArray[np.int64], precision: np.uint64) -> NDArray[np.uint32]:
    """Return for each context and symbol: limit, bias, reciprocal, complement and shift. A quotient is a product and a shift."""
    out = np.zeros((frequencies.size, 4), np.uint32)
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
                out[key, 0], out[key, 1] = frequency << (np.uint64(31) - precision), bias
                out[key, 2], out[key, 3] = reciprocal, ((total - frequency) << np.uint64(8)) | shift
            first += frequency
            key += one
    return out.reshape(-1)


@compiled
def _push(
    context: np.uint8, symbol: np.uint8, table: NDArray[np.uint32], state: np.uint32, words: NDArray[np.uint16], at: np.uint64
) -> tuple[np.uint32, np.uint64]:
    """Encode one symbol: its new state, and where the next word goes. The word is written in any case, and kept where it is needed."""
    key = (np.uint64(context) << np.uint64(10)) | (np.uint64(symbol) << np.uint64(2))
    last = table[key + np.uint64(3)]
    full = state >= table[key]
    words[at] = np.uint16(state & np.uint32(0xFFFF))
    state = np.uint32(state >> np.uint32(16)) if full else state
    quotient = np.uint32((np.uint64(state) * np.uint64(table[key + np.uint64(2)])) >> (np.uint64(last) & np.uint64(63)))
    moved = np.uint32(state + table[key + np.uint64(1)])
    return np.uint32(moved + np.uint32(quotient * np.uint32(last >> np.uint32(8)))), at - np.uint64(full)


@compiled
def _encode_four(
    contexts: Bytes,
    symbols: Bytes,
    table: NDArray[np.uint32],
    states: NDArray[np.uint32],
    rooms: NDArray[np.uint16],
    firsts: NDArray[np.uint64],
) -> None:
    """Encode four tiles of one lane; the last may be shorter. Fills in where the words begin in the room of each."""
    tile, one = np.uint64(TILE), np.uint64(1)
    last, end = len(symbols) - np.uint64(3) * tile, np.uint64(rooms.shape[1] - 1)
    own, other, third, fourth = rooms[0], rooms[1], rooms[2], rooms[3]
    a, b, c, d = states[0], states[1], states[2], states[3]
    at, bt, ct, dt = end, end, end, end
    i = tile
    while i > np.uint64(0):
        i -= one
        a, at = _push(contexts[i], symbols[i], table, a, own, at)
        j = i + tile
        b, bt = _push(contexts[j], symbols[j], table, b, other, bt)
        j += tile
        c, ct = _push(contexts[j], symbols[j], table, c, third, ct)
        if i < last:
            j += tile
            d, dt = _push(contexts[j], symbols[j], table, d, fourth, dt)
    states[0], states[1], states[2], states[3] = a, b, c, d
    firsts[0], firsts[1], firsts[2], firsts[3] = at + one, bt + one, ct + one, dt + one


@compiled
def _encode(
    contexts: Bytes,
    symbols: Bytes,
    table: NDArray[np.uint32],
    states: NDArray[np.uint32],
    words: NDArray[np.uint16],
) -> np.uint64:
    """Encode a tile from its end; words fill their array from its end, too. Returns where they begin."""
    lanes = np.uint64(len(states))
    i, at = np.uint64(len(symbols)), np.uint64(len(words) - 1)
    whole = i - i % lanes if lanes >= np.uint64(4) else np.uint64(0)
    while i > whole:
        i -= np.uint64(1)
        states[i % lanes], at = _push(contexts[i], symbols[i], table, states[i % lanes], words, at)
    while i > np.uint64(0):
        lane = lanes
        while lane > np.uint64(0):
            lane -= np.uint64(4)
            i -= np.uint64(4)
            j, k = i + np.uint64(3), lane + np.uint64(3)
            states[k], at = _push(contexts[j], symbols[j], table, states[k], words, at)
            j, k = i + np.uint64(2), lane + np.uint64(2)
            states[k], at = _push(contexts[j], symbols[j], table, states[k], words, at)
            j, k = i + np.uint64(1), lane + np.uint64(1)
            states[k], at = _push(contexts[j], symbols[j], table, states[k], words, at)
            states[lane], at = _push(contexts[i], symbols[i], table, states[lane], words, at)
    return at + np.uint64(1)
