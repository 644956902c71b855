"""Numbers and pieces in the bytes of an exact chunk, with every length checked before anything is made of it (spec/codecs/exact.md)."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from deltapack.errors import FormatError
from deltapack.format.frames import pack_stream, unpack_stream

__all__ = ["Cursor", "need", "varint", "varints", "write_stream"]

_MOST_DIGITS, _FEW = 10, 600


_SPELT = [bytes([value] if value < 128 else [value & 127 | 128, value >> 7]) for value in range(4097)]
"""The varints of all frequencies that there are."""


def need(condition: object, what: str, *, expected: object = None, found: object = None) -> None:
    """Refuse a chunk unless the condition holds.

    Raises:
        FormatError: It does not (rule R9).
    """
    if not condition:
        hint = "The pack is damaged, or was made by a faulty writer."
        raise FormatError(f"exact chunk: {what}", expected=expected, found=found, rule="R9", hint=hint)


def varint(value: int) -> bytes:
    """Spell a number in digits of 7 bits, least first; all but the last have bit 7 set.

    >>> varint(300).hex()
    'ac02'
    """
    if value < len(_SPELT):
        return _SPELT[value]
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)


def varints(values: NDArray[np.integer[Any]]) -> bytes:
    """Spell many numbers one after the other."""
    if len(values) < _FEW:
        spelt_already = int(values.max(initial=0)) < len(_SPELT)
        return b"".join(map(_SPELT.__getitem__ if spelt_already else varint, values.tolist()))
    digits = -(-max(1, int(values.max()).bit_length()) // 7)
    shifted = values.astype(np.uint64)[:, None] >> np.uint64(7) * np.arange(digits, dtype=np.uint64)
    is_used = shifted > 0
    is_used[:, 0] = True
    out = (shifted & np.uint64(127)).astype(np.uint8)
    out[:, :-1] |= is_used[:, 1:] * np.uint8(128)
    spelt: NDArray[np.uint8] = out[is_used]
    return spelt.tobytes()


def write_stream(raw: bytes) -> bytes:
    """Return raw and stored length and the bytes, as a zstd frame where that is smaller."""
    stored = pack_stream(raw, 3)
    return varint(len(raw)) + varint(len(stored)) + stored


class Cursor:
    """A place in the bytes of a chunk. All methods raise `FormatError` (rules R8 to R10) where what they read is not allowed."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def byte(self, what: str) -> int:
        """Return the next byte."""
        return self.take(1, what)[0]

    def take(self, count: int, what: str) -> bytes:
        """Return so many bytes."""
        left = len(self._data) - self._at
        need(count <= left, f"cut in {what}", expected=f"{count} more bytes", found=left)
        self._at += count
        return self._data[self._at - count : self._at]

    def array(self, count: int, kind: str, what: str) -> NDArray[np.generic]:
        """Return so many little-endian numbers of a numpy dtype string, as an array of its own."""
        return np.frombuffer(self.take(count * np.dtype(kind).itemsize, what), kind).copy()

    def number(self, most: int, what: str) -> int:
        """Return the next number, which is at most `most` and spelt as short as can be."""
        value = digits = 0
        while True:
            digit = self.byte(what)
            value |= (digit & 127) << 7 * digits
            digits += 1
            if digit < 128:
                break
            need(digits < _MOST_DIGITS, f"{what} has too many digits")
        need(digit or digits == 1, f"{what} has digits without need")
        need(value <= most, f"{what} is too large", expected=f"at most {most}", found=value)
        return value

    def numbers(self, count: int, most: int, what: str) -> NDArray[np.uint64]:
        """Return so many numbers (one at least) at once, each as `number` would."""
        window = np.frombuffer(self._data, np.uint8)[self._at : self._at + _MOST_DIGITS * count]
        ends = np.flatnonzero(window < 128)[:count]
        need(len(ends) == count, f"cut in {what}, or a number with too many digits", expected=f"{count} numbers", found=len(ends))
        digits, starts = window[: ends[-1] + 1], np.concatenate([[0], ends[:-1] + 1])
        lengths = ends - starts + 1
        need(lengths.max() <= _MOST_DIGITS, f"{what} has too many digits")
        need(((digits[ends] > 0) | (lengths == 1)).all(), f"{what} has digits without need")
        places = (np.arange(len(digits)) - np.repeat(starts, lengths)).astype(np.uint64)
        # The tenth digit has one bit of 64: what is above it is lost, and found missing here.
        need((digits[places == _MOST_DIGITS - 1] <= 1).all(), f"{what} is too large", expected=f"at most {most}")
        values = np.bitwise_or.reduceat((digits & 127).astype(np.uint64) << np.uint64(7) * places, starts)
        need((values <= np.uint64(most)).all(), f"{what} is too large", expected=f"at most {most}", found=int(values.max()))
        self._at += len(digits)
        return values

    def stream(self, least: int, most: int, what: str) -> bytes:
        """Return what `write_stream` wrote, of a raw length within bounds."""
        raw_length = self.number(most, f"the length of {what}")
        need(raw_length >= least, f"{what} is too short", expected=f"at least {least} bytes", found=raw_length)
        return unpack_stream(self.take(self.number(raw_length, f"the stored length of {what}"), what), raw_length)

    def end(self, what: str) -> None:
        """Require that nothing is left."""
        left = len(self._data) - self._at
        need(left == 0, f"bytes after {what}", expected=0, found=left)
