"""Trits, five a byte (spec/codecs/values.md)."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from deltapack.errors import FormatError
from deltapack.kernels.layout import TRITS, Bytes, Positions

__all__ = ["ALL_TRITS", "pack_trits", "trit_codes", "trit_table", "without_zeros"]

ALL_TRITS = 3**TRITS
"""No byte of trits is so large."""


@lru_cache
def trit_table() -> NDArray[np.int8]:
    """Return the codes that each byte holds, `[243, 5] int8`: trit 2 is the code -1."""
    digits = np.arange(ALL_TRITS)[:, None] // 3 ** np.arange(TRITS) % 3
    return np.where(digits == 2, -1, digits).astype(np.int8)


def trit_codes(raw: Bytes, nnz: int) -> NDArray[np.int8]:
    """Return `nnz` codes -1, 0 or 1 from trits, five a byte.

    Raises:
        FormatError: A byte holds no trits, or trits behind the last code are not 0 (rule R9).
    """
    if raw.max(initial=0) >= ALL_TRITS:
        raise FormatError("a byte holds no trits", rule="R9", expected=f"below {ALL_TRITS}", found=int(raw.max()))
    codes = trit_table()[raw].reshape(-1)
    if codes[nnz:].any():
        raise FormatError("trits behind the last code are not 0", rule="R9")
    return codes[:nnz]


def pack_trits(codes: NDArray[np.int8]) -> Bytes:
    """Pack codes `[nnz]` of -1, 0 and 1 as trits, five a byte, the first in the lowest place."""
    padded = np.zeros(-(-len(codes) // TRITS) * TRITS, np.uint8)
    padded[: len(codes)] = np.where(codes < 0, 2, codes)
    packed: Bytes = (padded.reshape(-1, TRITS) @ (3 ** np.arange(TRITS, dtype=np.uint8))).astype(np.uint8)
    return packed


def without_zeros(codes: NDArray[np.int8], positions: Positions) -> tuple[NDArray[np.int8], Positions]:
    """Return the codes that are not 0 and their positions, both `[n]`."""
    there = codes != 0
    return codes[there], positions[there]
