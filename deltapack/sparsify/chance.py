"""One random number for each element, from a key: for masks whose probability depends on the element.

Philox4x32-10 with counter (element in its tile / 4, tile, 0, 0), as in spec/codecs/index.md, so that a mask is the same on every machine.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from deltapack.format.digest import TILE, TILES_PER_CHUNK
from deltapack.kernels.reference.positions import philox

__all__ = ["samples"]


def samples(key: int, chunk: int, positions: NDArray[np.uint32]) -> NDArray[np.uint64]:
    """Return a number in [0, 2^32) for each position, `[n] uint64`.

    Args:
        key: 64 bits.
        chunk: Number of the chunk in its tensor.
        positions: `[n]` elements of the chunk, increasing.
    """
    quads, place = np.unique(positions >> np.uint32(2), return_inverse=True)
    tiles = quads.astype(np.uint64) // np.uint64(TILE // 4)
    numbers = philox(key, tiles + np.uint64(chunk * TILES_PER_CHUNK), quads.astype(np.uint64) % np.uint64(TILE // 4))
    chosen: NDArray[np.uint64] = numbers[place, positions & np.uint32(3)]
    return chosen
