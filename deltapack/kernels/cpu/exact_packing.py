"""Raw bits of the exact codec, one after the other in words of 64."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from deltapack.kernels.cpu.bits import compiled
from deltapack.kernels.layout import Bytes

__all__ = ["pack_raw_bits", "packing_room"]


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
