"""Trits, compiled; `deltapack.kernels.reference.trits` says what each function does."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from deltapack.kernels import reference
from deltapack.kernels.cpu.bits import compiled
from deltapack.kernels.layout import TRITS, Bytes, Positions
from deltapack.kernels.reference.trits import ALL_TRITS, trit_table

__all__ = ["are_trits", "pack_trits", "trit_codes", "without_zeros"]

_TRITS = np.uint64(TRITS)


def trit_codes(raw: Bytes, nnz: int) -> NDArray[np.int8]:
    """See the reference."""
    codes = np.empty(nnz, np.int8)
    if not _unpack(raw, trit_table(), codes):
        return reference.trit_codes(raw, nnz)  # which says what is wrong
    return codes


@compiled
def are_trits(raw: Bytes, table: NDArray[np.int8], nnz: np.uint64) -> bool:
    """Return whether bytes hold trits, and nothing behind the last of `nnz` codes."""
    largest = np.uint8(0)
    for at in range(np.uint64(len(raw))):
        largest = max(largest, raw[at])
    if largest >= np.uint8(ALL_TRITS):
        return False
    for slot in range(nnz % _TRITS, _TRITS if nnz % _TRITS else np.uint64(0)):
        if table[np.uint64(raw[nnz // _TRITS]), slot] != np.int8(0):
            return False
    return True


@compiled
def _unpack(raw: Bytes, table: NDArray[np.int8], codes: NDArray[np.int8]) -> bool:
    nnz = np.uint64(len(codes))
    if not are_trits(raw, table, nnz):
        return False
    whole = nnz // _TRITS
    for at in range(whole):
        byte, place = np.uint64(raw[at]), _TRITS * at
        for slot in range(_TRITS):
            codes[place + slot] = table[byte, slot]
    for slot in range(nnz - whole * _TRITS):
        codes[whole * _TRITS + slot] = table[np.uint64(raw[whole]), slot]
    return True


def pack_trits(codes: NDArray[np.int8]) -> Bytes:
    """See the reference."""
    out = np.empty(-(-len(codes) // TRITS), np.uint8)
    _pack(np.ascontiguousarray(codes), out)
    return out


@compiled
def _pack(codes: NDArray[np.int8], out: Bytes) -> None:
    nnz = np.uint64(len(codes))
    for at in range(np.uint64(len(out))):
        byte = np.uint8(0)
        for back in range(_TRITS):
            place = _TRITS * at + (_TRITS - np.uint64(1) - back)
            code = codes[place] if place < nnz else np.int8(0)
            byte = np.uint8(np.uint8(3) * byte + (np.uint8(2) if code < np.int8(0) else np.uint8(code)))
        out[at] = byte


def without_zeros(codes: NDArray[np.int8], positions: Positions) -> tuple[NDArray[np.int8], Positions]:
    """See the reference."""
    kept, places = np.empty(len(codes) + 1, np.int8), np.empty(len(codes) + 1, np.uint32)
    count = int(_without_zeros(codes, positions, kept, places))
    return kept[:count], places[:count]


@compiled
def _without_zeros(codes: NDArray[np.int8], positions: Positions, kept: NDArray[np.int8], places: Positions) -> np.uint64:
    count = np.uint64(0)
    for i in range(np.uint64(len(codes))):
        kept[count], places[count] = codes[i], positions[i]  # the next overwrites a zero
        count += np.uint64(codes[i] != np.int8(0))
    return count
