"""Interleaved range coding with tables (rANS) of the symbols of a chunk, tile by tile (spec/codecs/exact.md).

Number i of a tile is coded by lane i mod `lanes`. A state is in [2^15, 2^31); where decoding would leave it below, it takes in a word of
16 bits: in the order of the numbers, so that a lane's word has the place that the lanes before it leave.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from deltapack.kernels.layout import RANS_LOW, TILE, Bytes, Counts

__all__ = ["rans_decode", "rans_encode"]


def rans_encode(
    contexts: Bytes, symbols: Bytes, frequencies: NDArray[np.int64], precision: int, lanes: int
) -> tuple[NDArray[np.uint32], NDArray[np.uint16], Counts]:
    """Encode symbols.

    Args:
        contexts: Of each number, `[n] uint8`.
        symbols: `[n] uint8`; none has the frequency 0.
        frequencies: `[contexts, 256]`, each row sums to 2^precision.
        precision: At most 12.
        lanes: Lanes of each tile.

    Returns:
        States that decoding starts from, `[tiles, lanes]`; the words of all tiles; how many each has.
    """
    firsts = np.cumsum(frequencies, axis=1) - frequencies
    states, words, counts = [], [], []
    for start in range(0, len(symbols), TILE):
        kinds, values = contexts[start : start + TILE], symbols[start : start + TILE]
        state, parts = np.full(lanes, RANS_LOW, np.int64), []
        for step in range((len(values) - 1) // lanes * lanes, -1, -lanes):
            kind, value = kinds[step : step + lanes], values[step : step + lanes]
            frequency, first, own = frequencies[kind, value], firsts[kind, value], state[: len(value)]
            full = own >= frequency << 31 - precision
            parts.append(own[full] & 0xFFFF)
            own = np.where(full, own >> 16, own)
            state[: len(value)] = (own // frequency << precision) + own % frequency + first
        states.append(state)
        words.append(np.concatenate(parts[::-1]))
        counts.append(len(words[-1]))
    return np.array(states, np.uint32), np.concatenate(words).astype(np.uint16), np.array(counts, np.int64)


def rans_decode(
    contexts: Bytes, table: NDArray[np.uint32], precision: int, states: NDArray[np.uint32], words: NDArray[np.uint16], counts: Counts
) -> tuple[Bytes, bool]:
    """Decode symbols.

    Args:
        contexts: Of each number, `[n] uint8`.
        table: Of `decoding_table`.
        precision: Of the table.
        states: `[tiles, lanes]`, in [2^15, 2^31).
        words: Of all tiles, and as many behind as a tile has numbers.
        counts: Words of each tile.

    Returns:
        The symbols, `[n] uint8`, and whether each tile used its words up and ended in the states that encoding begins with.
    """
    lanes, mask = states.shape[1], (1 << precision) - 1
    symbols, place, whole = np.empty(len(contexts), np.uint8), 0, True
    for tile in range(len(states)):
        start, end = tile * TILE, min(len(contexts), (tile + 1) * TILE)
        state, at = states[tile].astype(np.int64), place
        for step in range(start, end, lanes):
            kind = contexts[step : min(end, step + lanes)].astype(np.int64)
            own = state[: len(kind)]
            entry = table[(kind << precision) | own & mask].astype(np.int64)
            symbols[step : step + len(kind)] = entry & 255
            own = ((entry >> 8 & 4095) + 1) * (own >> precision) + (entry >> 20)
            empty = own < RANS_LOW
            own[empty] = own[empty] << 16 | words[at : at + int(empty.sum())]
            at += int(empty.sum())
            state[: len(kind)] = own
        place += int(counts[tile])
        whole = whole and at == place and bool((state == RANS_LOW).all())
        at = place
    return symbols, whole
