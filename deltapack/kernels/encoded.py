"""One chunk of a term as its streams hold it: what a backend may decode in one go."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Encoded"]


@dataclass(frozen=True)
class Encoded:
    """The raw streams of a chunk of a term, and what their codecs need.

    Attributes:
        index: Index codec.
        shift: Low bits of a gap that the gaps codec packs.
        key: Mask key.
        keep: Density times 2^32.
        first_tile: Number of the chunk's first tile in its tensor.
        positions: `[bytes] uint8` stream of the index codec.
        bits: Bits of a code whose group has a scale; 0 for other codes.
        codes: `[bytes] uint8` packed codes.
        scales: `[2 groups] uint8` bf16 scales in byte planes.
        factor: The term's factor times the weight.
        counts: `[tiles] int64` kept elements of each tile, as the table says.
        lengths: `[tiles] int64` elements of each tile.
        trits: Whether codes are trits with one scale for all.
        scale: That scale.
    """

    index: str
    shift: int
    key: int
    keep: int
    first_tile: int
    positions: NDArray[np.uint8]
    bits: int
    codes: NDArray[np.uint8]
    scales: NDArray[np.uint8]
    factor: np.float32
    counts: NDArray[np.int64]
    lengths: NDArray[np.int64]
    trits: bool = False
    scale: float = 0.0
