"""Choose codes and group scales for the low-bit value codecs.

A group's scale is the candidate with the least squared error. Candidates have few mantissa bits: the error barely moves
(0.1 dB), while the scales then cost 5 bits instead of 10 after zstd. Errors are summed in integers, on values
rounded to 11 bits, so that the choice does not depend on the order of summation and is the same on every machine.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from deltapack import kernels
from deltapack.dtypes import BY_NAME
from deltapack.errors import NonFiniteError
from deltapack.kernels import reference, rounding

__all__ = ["quantize"]

Counts = NDArray[np.int64]
_LEVELS = 2047
_TINY = np.float32(2.0**-100)
"""A group whose largest magnitude is below this is stored as zeros."""


@dataclass(frozen=True)
class _Search:
    """Codes in [-top, top - 1]; `candidates` scales downwards in steps of `mantissa_bits`."""

    top: int
    mantissa_bits: int
    candidates: int


_SEARCH = {
    "int8": _Search(128, 7, 1),
    "int4": _Search(8, 4, 16),
    "int3": _Search(4, 3, 12),
    "int2": _Search(2, 3, 16),
}


def quantize(
    codec: str, values: NDArray[np.float32], counts: Counts
) -> tuple[NDArray[np.generic], NDArray[np.uint16]]:
    """Return the codes `[nnz]` and bf16 scales `[groups]` that stand for `values` `[nnz] f32`.

    Float codecs return the rounded values in their storage type and no scales.

    Raises:
        NonFiniteError: A value overflows a float codec.
    """
    if codec in ("f32", "bf16", "f16"):
        codes = rounding.from_f32(values, BY_NAME[codec])
        if not np.isfinite(rounding.to_f32(codes, BY_NAME[codec])).all():
            raise NonFiniteError(f"a difference is too large for values={codec}", hint="Use --values f32.")
        return codes, np.zeros(0, np.uint16)
    sizes = reference.group_counts(counts)
    used = np.arange(reference.GROUP) < sizes[:, None]
    grouped = np.zeros(used.shape, np.float32)
    grouped[used] = values
    if codec == "sign":
        steps, codes = _mean_magnitude(grouped, sizes), np.where(np.signbit(grouped), -1, 1)
    else:
        steps = _least_squares_steps(grouped, _SEARCH[codec])
        codes = _round_to_codes(grouped, steps, _SEARCH[codec].top)
    return codes[used].astype(np.int8), (steps.view(np.uint32) >> 16).astype(np.uint16)


def _integers(grouped: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.int32]]:
    """Return each group's largest magnitude, the factor to integers, and the values as integers up to 2047."""
    largest = np.abs(grouped).max(axis=1, initial=0)
    alive = largest >= _TINY
    inverse = np.where(alive, np.float32(_LEVELS) / np.where(alive, largest, np.float32(1)), np.float32(0))
    return np.where(alive, largest, np.float32(0)), inverse, np.rint(grouped * inverse[:, None]).astype(np.int32)


def _least_squares_steps(grouped: NDArray[np.float32], search: _Search) -> NDArray[np.float32]:
    largest, inverse, integers = _integers(grouped)
    # The extreme value gets the code -top, the one that has no positive twin: hence the sign of the scale.
    extreme = np.take_along_axis(grouped, np.abs(grouped).argmax(axis=1)[:, None], axis=1)[:, 0]
    sign_bit = np.where(extreme > 0, np.uint32(0x80000000), np.uint32(0))
    start = _coarse_up(largest / np.float32(search.top - (0 if search.top == 128 else 0.5)), search.mantissa_bits)
    best_bits = start
    if search.candidates > 1:
        loops = kernels.active()
        best_bits = loops.search_steps(
            integers, extreme > 0, start, inverse, search.top, search.mantissa_bits, search.candidates
        )
    return np.where(best_bits == 0, np.uint32(0), best_bits | sign_bit).view(np.float32)


def _mean_magnitude(grouped: NDArray[np.float32], sizes: Counts) -> NDArray[np.float32]:
    """The scale that minimises the squared error of signs, rounded to bf16 with 4 mantissa bits."""
    largest, _, integers = _integers(grouped)
    mean = np.abs(integers).sum(axis=1) / np.maximum(sizes, 1) / _LEVELS * largest
    return _coarse_up(mean.astype(np.float32), 4).view(np.float32)


def _coarse_up(values: NDArray[np.float32], mantissa_bits: int) -> NDArray[np.uint32]:
    """Round positive f32 up to `mantissa_bits` bits of mantissa and return the bits."""
    drop = np.uint32((1 << (23 - mantissa_bits)) - 1)
    largest_finite = np.uint32(0x7F800000) - drop - np.uint32(1)
    bits: NDArray[np.uint32] = np.minimum((values.astype(np.float32).view(np.uint32) + drop) & ~drop, largest_finite)
    return bits


def _round_to_codes(grouped: NDArray[np.float32], steps: NDArray[np.float32], top: int) -> NDArray[np.float32]:
    divisor = np.where(steps == 0, np.float32(1), steps)[:, None]
    codes: NDArray[np.float32] = np.clip(np.rint(grouped / divisor), -top, top - 1)
    return np.where(steps[:, None] == 0, np.float32(0), codes)
