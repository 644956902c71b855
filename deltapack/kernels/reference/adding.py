"""Sparse terms added to each other and to a base (spec/06-arithmetic.md section 6.2)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from deltapack.dtypes import DType
from deltapack.kernels import rounding
from deltapack.kernels.encoded import Encoded
from deltapack.kernels.layout import Elements, Positions, Sparse, Values

__all__ = ["Sparse", "add_encoded", "add_in_place", "add_sparse", "are_finite", "decode_encoded", "sum_terms"]

"""Positions `[nnz]`, strictly increasing, and values `[nnz] f32`."""


def sum_terms(length: int, terms: Sequence[Sparse]) -> Sparse:
    """Add sparse terms in order, in f32, starting from +0.0.

    Args:
        length: Elements of the chunk.
        terms: Positions `[nnz]` and values `[nnz] f32` of each term; at least one.

    Returns:
        The positions that any term keeps, and their sums.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        if len(terms) == 1:
            return Sparse(terms[0].positions, np.float32(0) + terms[0].values)
        total, touched = np.zeros(length, np.float32), np.zeros(length, np.bool_)
        for positions, values in terms:
            total[positions] += values
            touched[positions] = True
    union = np.flatnonzero(touched).astype(np.uint32)
    return Sparse(union, total[union])


def add_in_place(elements: Elements, dtype: DType, terms: Sequence[Sparse]) -> None:
    """Add the sum of terms to elements, rounded once; elements that no term keeps keep their bits.

    Args:
        elements: `[n]` elements of a float `dtype` in its storage type.
        dtype: Their type.
        terms: Positions and values of each term, in order; at least one.
    """
    positions, total = sum_terms(len(elements), terms)
    elements[positions] = _sums(elements[positions], dtype, dtype, total)


def are_finite(elements: Elements, dtype: DType, positions: Positions) -> bool:
    """Return whether the elements of a float `dtype` at `positions` are finite."""
    return bool(np.isfinite(rounding.to_f64(elements[positions], dtype)).all())


def add_sparse(base: Elements, source: DType, target: DType, positions: Positions, total: Values) -> Elements:
    """Return base plus a sparse sum, rounded once.

    Args:
        base: `[n]` elements of `source` in its storage type; not modified.
        source: Type of the base.
        target: Type of the result.
        positions: `[nnz]` elements to change.
        total: `[nnz] f32` what to add to them.

    Returns:
        `[n]` elements of `target` in its storage type; `base` itself where nothing is to do.
    """
    out = rounding.convert(base, source, target)
    if len(positions) == 0:
        return out
    out = out.copy() if out is base else out
    out[positions] = _sums(base[positions], source, target, total)
    return out


def decode_encoded(encoded: Encoded, out: Sparse) -> Sparse | None:
    """Decode a chunk of a term in one go.

    Args:
        encoded: Its streams.
        out: Room for positions and values of the chunk's elements and 256 more; the result is a view of it.

    Returns:
        Positions and values, or none where this has to be done step by step: this backend has no loop for these codecs, as the
        reference has none at all, or a stream is damaged, and the steps say how.
    """
    return None


def add_encoded(elements: Elements, dtype: DType, encoded: Encoded, out: Sparse) -> bool:
    """Decode a chunk of a term and add it to elements in one go; false, and nothing is changed, as in `decode_encoded`."""
    return False


def _sums(kept: Elements, source: DType, target: DType, total: Values) -> Elements:
    with np.errstate(over="ignore", invalid="ignore"):
        if "f64" in (source.name, target.name):
            return rounding.from_f64(rounding.to_f64(kept, source) + total, target)
        return rounding.from_f32(rounding.to_f32(kept, source) + total, target)
