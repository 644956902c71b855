"""From the sizes of packs that were tried to the bits that reach a size: pure arithmetic."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from deltapack.packing.budget import ABOVE, AIM, BELOW

__all__ = ["MOST_TRIES", "Tried", "best_of", "next_bits", "reached"]

MOST_TRIES = 8
_USUAL, _FLAT, _MOST = 1 / 8, 1 / 32, 1 / 4
"""Bytes of the file for a bit that is asked for: what it should be, what is taken where more bits gave no more, and the most believed."""
_FURTHEST = 32
"""How many times as many bits may be tried next."""


@dataclass(frozen=True)
class Tried:
    """A pack that was written.

    Attributes:
        bits: Bits that its weights were asked to take.
        size: Bytes of the file.
    """

    bits: float
    size: int


def reached(size: int, target: int) -> bool:
    """Whether a size is within what a budget promises."""
    return target - BELOW * target <= size <= target + ABOVE * target


def next_bits(tried: Sequence[Tried], target: int) -> float:
    """Return the bits to try next: where a line through what was tried meets the size, but between what is too small and too large.

    Args:
        tried: At least one.
        target: Bytes.
    """
    last, aim = tried[-1], AIM * target
    slope = _USUAL
    if len(tried) > 1 and last.bits != tried[-2].bits:
        slope = (last.size - tried[-2].size) / (last.bits - tried[-2].bits)
        slope = min(slope, _MOST) if slope > 0 else _FLAT
    bits = last.bits + (aim - last.size) / slope
    if last.bits > 0:
        bits = min(bits, _FURTHEST * last.bits)
    below = max((one.bits for one in tried if one.size <= aim), default=None)
    above = min((one.bits for one in tried if one.size > aim), default=None)
    if below is not None and above is not None and not below < bits < above:
        bits = (below + above) / 2
    return max(bits, 0.0)


def best_of(tried: Sequence[Tried], target: int) -> Tried | None:
    """Return the largest of those that are not too large, if there is one."""
    fits = [one for one in tried if one.size <= target + ABOVE * target]
    return max(fits, key=lambda one: one.size, default=None)
