"""Interleaved range coding, compiled; `deltapack.kernels.reference.exact_rans` says what each function does.

States lie in an array, which costs little beside the table look-ups of as many lanes in flight. Four lanes are written out.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from deltapack.kernels.cpu.bits import compiled
from deltapack.kernels.layout import RANS_LOW, TILE, Bytes, Counts

__all__ = ["rans_decode", "rans_encode"]

_LOW = np.uint32(RANS_LOW)


def rans_encode(
    contexts: Bytes, symbols: Bytes, frequencies: NDArray[np.int64], precision: int, lanes: int
) -> tuple[NDArray[np.uint32], NDArray[np.uint16], Counts]:
    """See the reference."""
    tiles = -(-len(symbols) // TILE)
    states, counts = np.full((tiles, lanes), RANS_LOW, np.uint32), np.zeros(tiles, np.int64)
    upper, lower = _encoding_tables(frequencies, np.uint64(precision))
    room, words = np.empty(min(TILE, len(symbols)) + 1, np.uint16), []
    for tile in range(tiles):
        inside = slice(tile * TILE, (tile + 1) * TILE)
        first = int(_encode(contexts[inside], symbols[inside], upper, lower, states[tile], room))
        counts[tile] = len(room) - first
        words.append(room[first:].copy())
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


def rans_decode(
    contexts: Bytes, table: NDArray[np.uint32], precision: int, states: NDArray[np.uint32], words: NDArray[np.uint16], counts: Counts
) -> tuple[Bytes, bool]:
    """See the reference."""
    symbols, place, whole = np.empty(len(contexts), np.uint8), 0, True
    for tile in range(len(states)):
        inside = slice(tile * TILE, (tile + 1) * TILE)
        own = states[tile].copy()
        used = int(_decode(contexts[inside], table, np.uint32(precision), own, words[place:], symbols[inside]))
        whole = whole and used == counts[tile] and bool((own == _LOW).all())
        place += int(counts[tile])
    return symbols, whole


@compiled
def _pop(
    context: np.uint8, table: NDArray[np.uint32], precision: np.uint32, state: np.uint32, words: NDArray[np.uint16], at: np.uint64
) -> tuple[np.uint32, np.uint32, np.uint64]:
    """Decode one symbol: the table's entry, whose low byte it is, the new state, and where the next word is."""
    mask = np.uint32(np.uint32(np.uint32(1) << precision) - np.uint32(1))
    entry = table[np.uint32(np.uint32(np.uint32(context) << precision) | np.uint32(state & mask))]
    frequency = np.uint32(np.uint32(np.uint32(entry >> np.uint32(8)) & np.uint32(4095)) + np.uint32(1))
    state = np.uint32(np.uint32(frequency * np.uint32(state >> precision)) + np.uint32(entry >> np.uint32(20)))
    empty = state < _LOW
    filled = np.uint32(np.uint32(state << np.uint32(16)) | np.uint32(words[at]))
    return entry, filled if empty else state, at + np.uint64(empty)


@compiled
def _decode(
    contexts: Bytes,
    table: NDArray[np.uint32],
    precision: np.uint32,
    states: NDArray[np.uint32],
    words: NDArray[np.uint16],
    symbols: Bytes,
) -> np.uint64:
    """Decode a tile; returns how many words it took, of which there are as many as symbols."""
    n, lanes = np.uint64(len(symbols)), np.uint64(len(states))
    i, at = np.uint64(0), np.uint64(0)
    whole = n - n % lanes if lanes >= np.uint64(4) else np.uint64(0)
    while i < whole:
        for lane in range(np.uint64(0), lanes, np.uint64(4)):
            entry, states[lane], at = _pop(contexts[i], table, precision, states[lane], words, at)
            symbols[i] = np.uint8(entry & np.uint32(255))
            j, k = i + np.uint64(1), lane + np.uint64(1)
            entry, states[k], at = _pop(contexts[j], table, precision, states[k], words, at)
            symbols[j] = np.uint8(entry & np.uint32(255))
            j, k = i + np.uint64(2), lane + np.uint64(2)
            entry, states[k], at = _pop(contexts[j], table, precision, states[k], words, at)
            symbols[j] = np.uint8(entry & np.uint32(255))
            j, k = i + np.uint64(3), lane + np.uint64(3)
            entry, states[k], at = _pop(contexts[j], table, precision, states[k], words, at)
            symbols[j] = np.uint8(entry & np.uint32(255))
            i += np.uint64(4)
    while i < n:
        k = i % lanes
        entry, states[k], at = _pop(contexts[i], table, precision, states[k], words, at)
        symbols[i] = np.uint8(entry & np.uint32(255))
        i += np.uint64(1)
    return at
