"""Interleaved range coding, compiled: decoding; `deltapack.kernels.reference.exact_rans` says what the function does.

A symbol waits for the one before in its lane. With many lanes the states lie in an array, which costs little beside the table look-ups of
as many lanes in flight; four stay in registers; and where there is one lane, four tiles are decoded at a time. Where there are few lanes,
there are few words, and whether one is taken is a branch that is foreseen: nothing waits for the word.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from deltapack.kernels.cpu.bits import compiled
from deltapack.kernels.layout import RANS_LOW, TILE, Bytes, Counts

__all__ = ["rans_decode"]

_LOW = np.uint32(RANS_LOW)
_TOGETHER = 4
"""Tiles of one lane that are decoded at a time."""


def rans_decode(
    contexts: Bytes, table: NDArray[np.uint32], precision: int, states: NDArray[np.uint32], words: NDArray[np.uint16], counts: Counts
) -> tuple[Bytes, bool]:
    """See the reference."""
    symbols, used, left = np.empty(len(contexts), np.uint8), np.zeros(len(states), np.uint64), states.copy()
    places = np.cumsum(counts) - counts
    together = len(states) - len(states) % _TOGETHER if states.shape[1] == 1 else 0
    for tile in range(0, together, _TOGETHER):
        inside, group = slice(tile * TILE, (tile + _TOGETHER) * TILE), slice(tile, tile + _TOGETHER)
        used[group] = places[group]
        _decode_four(contexts[inside], table, np.uint32(precision), left[group, 0], words, used[group], symbols[inside])
        used[group] -= places[group].astype(np.uint64)
    for tile in range(together, len(states)):
        inside = slice(tile * TILE, (tile + 1) * TILE)
        used[tile] = _decode(contexts[inside], table, np.uint32(precision), left[tile], words[places[tile] :], symbols[inside])
    return symbols, bool((used == counts.astype(np.uint64)).all() and (left == _LOW).all())


@compiled
def _step(context: np.uint8, table: NDArray[np.uint32], precision: np.uint32, state: np.uint32) -> tuple[np.uint32, np.uint32]:
    """Decode one symbol: the table's entry, whose low byte it is, and the new state, which may lack a word."""
    mask = np.uint32(np.uint32(np.uint32(1) << precision) - np.uint32(1))
    entry = table[np.uint32(np.uint32(np.uint32(context) << precision) | np.uint32(state & mask))]
    frequency = np.uint32(np.uint32(np.uint32(entry >> np.uint32(8)) & np.uint32(4095)) + np.uint32(1))
    return entry, np.uint32(np.uint32(frequency * np.uint32(state >> precision)) + np.uint32(entry >> np.uint32(20)))


@compiled
def _filled(state: np.uint32, word: np.uint16) -> np.uint32:
    return np.uint32(np.uint32(state << np.uint32(16)) | np.uint32(word))


@compiled
def _pop(
    context: np.uint8, table: NDArray[np.uint32], precision: np.uint32, state: np.uint32, words: NDArray[np.uint16], at: np.uint64
) -> tuple[np.uint32, np.uint32, np.uint64]:
    """Decode one symbol: the table's entry, the new state, and where the next word is."""
    entry, state = _step(context, table, precision, state)
    empty = state < _LOW
    filled = _filled(state, words[at])
    return entry, filled if empty else state, at + np.uint64(empty)


@compiled
def _decode_quads(
    contexts: Bytes,
    table: NDArray[np.uint32],
    precision: np.uint32,
    states: NDArray[np.uint32],
    words: NDArray[np.uint16],
    symbols: Bytes,
    whole: np.uint64,
) -> np.uint64:
    """Decode the first numbers of a tile, as many as a multiple of four lanes; returns how many words they took."""
    i, at, a, b, c, d = np.uint64(0), np.uint64(0), states[0], states[1], states[2], states[3]
    while i < whole:
        entry, a = _step(contexts[i], table, precision, a)
        symbols[i] = np.uint8(entry & np.uint32(255))
        if a < _LOW:
            a, at = _filled(a, words[at]), at + np.uint64(1)
        i += np.uint64(1)
        entry, b = _step(contexts[i], table, precision, b)
        symbols[i] = np.uint8(entry & np.uint32(255))
        if b < _LOW:
            b, at = _filled(b, words[at]), at + np.uint64(1)
        i += np.uint64(1)
        entry, c = _step(contexts[i], table, precision, c)
        symbols[i] = np.uint8(entry & np.uint32(255))
        if c < _LOW:
            c, at = _filled(c, words[at]), at + np.uint64(1)
        i += np.uint64(1)
        entry, d = _step(contexts[i], table, precision, d)
        symbols[i] = np.uint8(entry & np.uint32(255))
        if d < _LOW:
            d, at = _filled(d, words[at]), at + np.uint64(1)
        i += np.uint64(1)
    states[0], states[1], states[2], states[3] = a, b, c, d
    return at


@compiled
def _decode_four(
    contexts: Bytes,
    table: NDArray[np.uint32],
    precision: np.uint32,
    states: NDArray[np.uint32],
    words: NDArray[np.uint16],
    places: NDArray[np.uint64],
    symbols: Bytes,
) -> None:
    """Decode four tiles of one lane; the last may be shorter. The places where the words of each begin become those of the next word."""
    tile = np.uint64(TILE)
    last = len(symbols) - np.uint64(3) * tile
    a, b, c, d = states[0], states[1], states[2], states[3]
    at, bt, ct, dt = places[0], places[1], places[2], places[3]
    for i in range(tile):
        entry, a = _step(contexts[i], table, precision, a)
        symbols[i] = np.uint8(entry & np.uint32(255))
        if a < _LOW:
            a, at = _filled(a, words[at]), at + np.uint64(1)
        j = i + tile
        entry, b = _step(contexts[j], table, precision, b)
        symbols[j] = np.uint8(entry & np.uint32(255))
        if b < _LOW:
            b, bt = _filled(b, words[bt]), bt + np.uint64(1)
        j += tile
        entry, c = _step(contexts[j], table, precision, c)
        symbols[j] = np.uint8(entry & np.uint32(255))
        if c < _LOW:
            c, ct = _filled(c, words[ct]), ct + np.uint64(1)
        if i < last:
            j += tile
            entry, d = _step(contexts[j], table, precision, d)
            symbols[j] = np.uint8(entry & np.uint32(255))
            if d < _LOW:
                d, dt = _filled(d, words[dt]), dt + np.uint64(1)
    states[0], states[1], states[2], states[3] = a, b, c, d
    places[0], places[1], places[2], places[3] = at, bt, ct, dt


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
    if lanes == np.uint64(4):
        i, at = whole, _decode_quads(contexts, table, precision, states, words, symbols, whole)
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
