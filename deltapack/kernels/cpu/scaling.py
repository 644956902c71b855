"""Codes with scales of rows and columns, compiled; `deltapack.kernels.reference.scaling` says what each function does."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from deltapack.kernels import reference
from deltapack.kernels.cpu.bits import compiled
from deltapack.kernels.layout import Lines, Positions, Values
from deltapack.kernels.reference.scaling import LEVEL_OFFSET, MOST_LEVEL

__all__ = ["in_kept_rows", "level_codes", "rounded_codes", "scaled_values", "scales_at", "trits_of"]

rounded_codes = reference.rounded_codes
_MOST, _OFFSET = np.float32(MOST_LEVEL), LEVEL_OFFSET


def scales_at(positions: Positions, start: int, lines: Lines) -> Values:
    """See the reference."""
    out = np.empty(len(positions), np.float32)
    _scales(positions, np.uint64(start), np.float32(lines.scale), lines.rows, lines.columns, np.uint64(lines.width), out)
    return out


def scaled_values(
    codes: NDArray[np.int8], positions: Positions, start: int, lines: Lines, factor: np.float32, out: Values | None = None
) -> Values:
    """See the reference."""
    out = np.empty(len(codes), np.float32) if out is None else out[: len(codes)]
    if not len(lines.rows):
        _multiply(codes, np.float32(lines.scale), factor, out)
        return out
    _scales(positions, np.uint64(start), np.float32(lines.scale), lines.rows, lines.columns, np.uint64(lines.width), out)
    _multiply_in_place(codes, factor, out)
    return out


@compiled
def _multiply(codes: NDArray[np.int8], scale: np.float32, factor: np.float32, out: Values) -> None:
    step = scale * factor
    for i in range(np.uint64(len(codes))):
        out[i] = np.float32(codes[i]) * step


@compiled
def _multiply_in_place(codes: NDArray[np.int8], factor: np.float32, scales: Values) -> None:
    for i in range(np.uint64(len(codes))):
        scales[i] = np.float32(codes[i]) * (scales[i] * factor)


@compiled
def _scales(
    positions: Positions, start: np.uint64, scale: np.float32, rows: Values, columns: Values, width: np.uint64, out: Values
) -> None:
    count = np.uint64(len(positions))
    if not len(rows):
        out[:] = scale
        return
    i = np.uint64(0)
    while i < count:
        # Positions increase, so all that are in the row of this one follow it: one division a row.
        row = (start + np.uint64(positions[i])) // width
        first = row * width
        if len(columns):
            while i < count and start + np.uint64(positions[i]) < first + width:
                out[i] = (rows[row] * columns[start + np.uint64(positions[i]) - first]) * scale
                i += np.uint64(1)
        else:
            step = rows[row] * scale
            while i < count and start + np.uint64(positions[i]) < first + width:
                out[i] = step
                i += np.uint64(1)


def in_kept_rows(positions: Positions, start: int, lines: Lines) -> NDArray[np.bool_]:
    """See the reference."""
    out = np.empty(len(positions), np.bool_)
    _kept(positions, np.uint64(start), lines.rows, np.uint64(lines.width), out)
    return out


@compiled
def _kept(positions: Positions, start: np.uint64, rows: Values, width: np.uint64, out: NDArray[np.bool_]) -> None:
    i, count = np.uint64(0), np.uint64(len(positions))
    while i < count:
        row = (start + np.uint64(positions[i])) // width
        is_kept, end = rows[row] != np.float32(0), (row + np.uint64(1)) * width
        while i < count and start + np.uint64(positions[i]) < end:
            out[i] = is_kept
            i += np.uint64(1)


def trits_of(values: Values, scales: Values, threshold: np.float32) -> NDArray[np.int8]:
    """See the reference."""
    out = np.empty(len(values), np.int8)
    _trits(values, scales, threshold, out)
    return out


@compiled
def _trits(values: Values, scales: Values, threshold: np.float32, out: NDArray[np.int8]) -> None:
    zero = np.float32(0)
    for i in range(np.uint64(len(values))):
        sign = np.int8(np.int8(values[i] > zero) - np.int8(values[i] < zero))
        out[i] = sign if abs(values[i]) >= scales[i] * threshold else np.int8(0)


def level_codes(values: Values, scales: Values, threshold: np.float32) -> NDArray[np.int8]:
    """See the reference."""
    out = np.empty(len(values), np.int8)
    _levels(values, scales, threshold, out)
    return out


@compiled
def _levels(values: Values, scales: Values, threshold: np.float32, out: NDArray[np.int8]) -> None:
    zero = np.float32(0)
    for i in range(np.uint64(len(values))):
        level = np.floor(abs(values[i]) / (scales[i] * threshold) + _OFFSET)
        level = zero if level != level else min(level, _MOST)
        out[i] = np.int8(-level if values[i] < zero else level)
