"""Codes whose scale is one for all, with that of a row and of a column (spec/codecs/values.md, *Scales without groups*).

Encoders make codes by f32 arithmetic alone, each operation rounded once, so that every backend writes the same bytes.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from deltapack.kernels.layout import Lines, Positions, Values

__all__ = ["LEVEL_OFFSET", "MOST_LEVEL", "in_kept_rows", "level_codes", "rounded_codes", "scaled_values", "scales_at", "trits_of"]

MOST_LEVEL, LEVEL_OFFSET = 127, np.float32(0.4)
"""Less than a half: small values become 0 the easier, which costs little error and many bits less."""


def scales_at(positions: Positions, start: int, lines: Lines) -> Values:
    """Return the scale of each kept element, `[nnz] f32`, before the factor.

    Args:
        positions: `[nnz]`, from the start of the chunk.
        start: The chunk's first element, counted in its tensor.
        lines: The scales.
    """
    if not len(lines.rows):
        return np.full(len(positions), lines.scale, np.float32)
    places = positions.astype(np.int64) + start
    scales = lines.rows[places // lines.width]
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        if len(lines.columns):
            scales = scales * lines.columns[places % lines.width]
        return scales * np.float32(lines.scale)


def scaled_values(
    codes: NDArray[np.int8], positions: Positions, start: int, lines: Lines, factor: np.float32, out: Values | None = None
) -> Values:
    """Return the values `[nnz] f32` of codes.

    Args:
        codes: `[nnz]`.
        positions: As in `scales_at`.
        start: As in `scales_at`.
        lines: The scales.
        factor: The term's factor times the pack's weight.
        out: Room for the values.
    """
    out = np.empty(len(codes), np.float32) if out is None else out[: len(codes)]
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        np.multiply(codes.astype(np.float32), scales_at(positions, start, lines) * factor, out=out)
    return out


def in_kept_rows(positions: Positions, start: int, lines: Lines) -> NDArray[np.bool_]:
    """Return for each position whether its row is kept, `[nnz]`; arguments as in `scales_at`."""
    kept: NDArray[np.bool_] = lines.rows[(positions.astype(np.int64) + start) // lines.width] != 0
    return kept


def trits_of(values: Values, scales: Values, threshold: np.float32) -> NDArray[np.int8]:
    """Return the sign of each value whose magnitude is at least `threshold` times its scale, else 0, `[nnz] int8`."""
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        large = np.abs(values) >= scales * threshold
    codes: NDArray[np.int8] = np.where(large, np.sign(values), np.float32(0)).astype(np.int8)
    return codes


def level_codes(values: Values, scales: Values, threshold: np.float32) -> NDArray[np.int8]:
    """Return `sign(x) * floor(|x| / step + 0.4)`, at most 127 in magnitude, `[nnz] int8`; a step is `threshold` times the scale."""
    with np.errstate(all="ignore"):
        levels = np.floor(np.abs(values) / (scales * threshold) + LEVEL_OFFSET)
    bounded = np.minimum(np.nan_to_num(levels, nan=0.0, posinf=MOST_LEVEL), MOST_LEVEL)
    codes: NDArray[np.int8] = (np.sign(values) * bounded).astype(np.int8)
    return codes


def rounded_codes(values: Values, scales: Values, top: int) -> NDArray[np.int8]:
    """Return each value over its scale, rounded to an integer in [-top, top - 1], `[nnz] int8`; 0 where the scale is 0."""
    with np.errstate(all="ignore"):
        codes = np.nan_to_num(np.rint(values / scales), nan=0.0, posinf=top, neginf=-top)
    bounded: NDArray[np.int8] = np.clip(codes, -top, top - 1).astype(np.int8)
    return bounded
