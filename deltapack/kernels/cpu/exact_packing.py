"""Raw bits of the exact codec, one after the other in words of 64; and the numbers that have some, where those are few."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from deltapack.kernels.cpu.bits import compiled, load_u64
from deltapack.kernels.exact_numbers import Numbers
from deltapack.kernels.layout import Bits, Bytes

__all__ = ["few_places", "few_room", "gathered", "pack_raw_bits", "packing_room", "scatter"]

_FEW, _RARE, _MANY = 3, 16, 2048
"""Where at most one number in so many has raw bits, these are picked out first; where less have, eight without are passed at once. Not
where there are few numbers."""

Room = tuple[NDArray[np.uint64], NDArray[np.uint64], Bytes]


def packing_room(most: int) -> Room:
    """Return room to pack at most so many numbers: the words, values that are joined, and their widths."""
    return np.empty(most + 2, np.uint64), np.empty(most + 1, np.uint64), np.empty(most + 1, np.uint8)


def pack_raw_bits(values: Any, widths: Bytes, width: int, room: Room) -> int:
    """Pack raw bits of numbers of a width into the words of a room; returns how many there are.

    Neighbours are joined first while they are sure to fit into 64 bits: numbers of 32 bits have at most 30 raw ones, of 16 at most 13.
    """
    words, joined, sums = room
    for _ in range({64: 0, 32: 1}.get(width, 2)):
        half = len(values) + 1 >> 1
        _join(values, widths, joined[:half], sums[:half])
        (values, joined), (widths, sums) = (joined[:half], joined[half:]), (sums[:half], sums[half:])
    return int(_pack(values, widths, words))


@compiled
def _join(values: Any, widths: Bytes, out: NDArray[np.uint64], sums: Bytes) -> None:
    for i in range(np.uint64(len(values) >> 1)):
        j = i + i
        k = j + np.uint64(1)
        out[i] = np.uint64(values[j]) | (np.uint64(values[k]) << np.uint64(widths[j]))
        sums[i] = widths[j] + widths[k]
    if len(values) & 1:
        out[-1], sums[-1] = values[-1], widths[-1]


@compiled
def _pack(values: NDArray[np.uint64], widths: Bytes, out: NDArray[np.uint64]) -> np.uint64:
    """Append values of at most 64 bits; returns how many bits there are."""
    held, bits, at = np.uint64(0), np.uint64(0), np.uint64(0)
    for i in range(np.uint64(len(values))):
        value, total = values[i], bits + np.uint64(widths[i])
        held |= value << bits
        out[at] = held
        is_full = total >= np.uint64(64)
        at += np.uint64(is_full)
        held = (value >> np.uint64(1)) >> (np.uint64(63) - bits) if is_full else held
        bits = total & np.uint64(63)
    out[at] = held
    return (at << np.uint64(6)) + bits


class Few(NamedTuple):
    """Room for the numbers of a tile that have raw bits: their places, base, fine-tune and symbols."""

    places: NDArray[np.uint16]
    x: Bits
    y: Bits
    symbols: Bytes


def few_room(most: int, storage: str) -> Few:
    """Return room for at most so many numbers."""
    return Few(np.empty(most + 1, np.uint16), np.empty(most, storage), np.empty(most, storage), np.empty(most, np.uint8))


def few_places(symbols: Bytes, numbers: Numbers, room: Few) -> NDArray[np.uint16] | None:
    """Return which numbers of a tile have raw bits, or none where many have."""
    least = (1 << numbers.head + 2) - 1  # far symbols are above it, too
    if len(symbols) < _MANY or least > 127:
        return None
    count = int(_count_from(symbols, np.uint64(least)))
    if count * _FEW > len(symbols):
        return None
    return room.places[: int(_find_from(symbols, np.uint64(least), count * _RARE < len(symbols), room.places))]


@compiled
def _count_from(symbols: Bytes, least: np.uint64) -> np.uint32:
    count = np.uint32(0)
    for i in range(np.uint64(len(symbols))):
        count = np.uint32(count + np.uint32(np.uint64(symbols[i]) >= least))
    return count


@compiled
def _find_from(symbols: Bytes, least: np.uint64, is_rare: bool, places: NDArray[np.uint16]) -> np.uint64:
    """Fill in where symbols are that are not below the least, which is at most 127; returns how many. One place more is written to."""
    n, at, eight, ones = np.uint64(len(symbols)), np.uint64(0), np.uint64(8), np.uint64(0x0101010101010101)
    rest, above = n & np.uint64(7), ones * (np.uint64(128) - least)
    low, high = ones * np.uint64(127), ones * np.uint64(128)
    for i in range(np.uint64(0), n - rest, eight):
        word = load_u64(symbols, i)
        if is_rare and not ((word & low) + above | word) & high:  # of each byte: whether it is not below the least
            continue
        for k in range(eight):
            j = i + k
            places[at] = np.uint16(j)
            at += np.uint64(np.uint64(symbols[j]) >= least)
    for i in range(n - rest, n):
        places[at] = np.uint16(i)
        at += np.uint64(np.uint64(symbols[i]) >= least)
    return at


def gathered(values: Any, places: NDArray[np.uint16], room: Any) -> Any:
    """Return the values at some places, in a room."""
    _gather(values, places, room)
    return room[: len(places)]


@compiled
def _gather(values: Any, places: NDArray[np.uint16], out: Any) -> None:
    for i in range(np.uint64(len(places))):
        out[i] = values[np.uint64(places[i])]


@compiled
def scatter(values: Any, places: NDArray[np.uint16], out: Any) -> None:
    """Put values at some places."""
    for i in range(np.uint64(len(places))):
        out[np.uint64(places[i])] = values[i]
