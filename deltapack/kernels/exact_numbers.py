"""How the exact codec sees elements of each type: as numbers of so many bits, with contexts and symbols (spec/codecs/exact.md)."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from deltapack.dtypes import DType

__all__ = ["Numbers", "SymbolTable", "numbers_of", "symbol_table"]


class Numbers(NamedTuple):
    """The numbers of a type. All fields are plain integers, so that compiled loops take them as they are.

    Attributes:
        width: Bits of a number.
        parts: Numbers in an element: 2 for complex types.
        signed: 1 where bits are sign and magnitude (floats), 0 where they are an integer.
        shift: Where the context byte begins: bits of the mantissa of a float.
        mask: Bits of the context byte; 0: there is one context.
        head: Bits of a magnitude below its highest one that are part of the symbol.
        stairs: Where the six bits begin that choose a step of the staircase; -1: no staircases.
        far: 1 where a change of sign may have a symbol of its own.
    """

    width: int
    parts: int
    signed: int
    shift: int
    mask: int
    head: int
    stairs: int = -1
    far: int = 0

    @property
    def storage(self) -> str:
        """How numpy spells the type of a number's bits."""
        return f"<u{self.width // 8}"

    @property
    def top(self) -> int:
        """The largest symbol of a difference: that of -2^(width - 1)."""
        return 2 * ((self.width - 1 - self.head << self.head) + (1 << self.head)) - 1


_FLOATS = {
    "f64": Numbers(64, 1, 1, 52, 255, 1),
    "f32": Numbers(32, 1, 1, 23, 255, 1, 17, 1),
    "c64": Numbers(32, 2, 1, 23, 255, 1, 17, 1),
    "f16": Numbers(16, 1, 1, 10, 31, 2, 4, 1),
    "bf16": Numbers(16, 1, 1, 7, 255, 2, 1, 1),
    "f8_e4m3fn": Numbers(8, 1, 1, 3, 15, 7),
    "f8_e5m2": Numbers(8, 1, 1, 2, 31, 7),
}
_INTEGERS = {
    8: Numbers(64, 1, 0, 0, 0, 1),
    4: Numbers(32, 1, 0, 0, 0, 1),
    2: Numbers(16, 1, 0, 0, 0, 2),
    1: Numbers(8, 1, 0, 4, 15, 7),
}


def numbers_of(dtype: DType) -> Numbers:
    """Return how the elements of a type are coded; types that are no floats, known or not, are integers of their size."""
    return _FLOATS.get(dtype.name) or _INTEGERS[dtype.itemsize]


class SymbolTable(NamedTuple):
    """What a symbol stands for.

    Attributes:
        starts: The least magnitude, or for a far symbol the exponent in its place, `[256] u64`.
        widths: How many raw bits are added to it, `[256] u8`.
        legal: Which symbols there are, `[256] bool`.
    """

    starts: NDArray[np.uint64]
    widths: NDArray[np.uint8]
    legal: NDArray[np.bool_]


@lru_cache(maxsize=1024)
def symbol_table(numbers: Numbers, far: int) -> SymbolTable:
    """Return what each symbol stands for; `far` is the least exponent with a symbol of its own, or -1."""
    starts, widths, legal = np.zeros(256, np.uint64), np.zeros(256, np.uint8), np.zeros(256, np.bool_)
    one = 1 << numbers.head
    for symbol in range(numbers.top + 1):
        code = symbol + 1 >> 1
        raw = max(0, (code >> numbers.head) - 1)
        starts[symbol] = code if raw == 0 else (one | code & one - 1) << raw
        widths[symbol], legal[symbol] = raw, True
    if far >= 0:
        for exponent in range(far, min(numbers.mask, far + 127) + 1):
            symbol = 128 + exponent - far
            starts[symbol], widths[symbol], legal[symbol] = exponent << numbers.shift, numbers.shift, True
    return SymbolTable(starts, widths, legal)
