"""Values of products of factors, and such products added to elements (spec/codecs/factors.md, spec/06-arithmetic.md section 6.1)."""

from __future__ import annotations

import numpy as np

from deltapack.dtypes import DType
from deltapack.kernels.layout import Elements, Positions, Sparse, Values
from deltapack.kernels.product import Product
from deltapack.kernels.reference.adding import add_in_place
from deltapack.kernels.reference.encoding import kept_differences

__all__ = ["add_product", "kept_residuals", "product_at", "product_values"]


def product_values(product: Product, out: Values | None = None) -> Values:
    """Return the values `[length] f32` of a product: those of its first columns, then those of each pair of the others added to them.

    Args:
        product: The factors.
        out: Room for the values.
    """
    left, right, start, length = product
    with np.errstate(over="ignore", invalid="ignore"):
        total = left[0][:, None] * right[0]
        for u, v in zip(left[1:], right[1:], strict=True):
            total += u[:, None] * v
    values: Values = total.reshape(-1)[start : start + length]
    if out is None:
        return values
    out[:length] = values
    return out[:length]


def product_at(product: Product, positions: Positions) -> Values:
    """Return some values of a product, `[n] f32`, each as `product_values` makes it.

    Args:
        product: The factors.
        positions: Which, `[n] u32`, in any order.
    """
    left, right, start, _ = product
    rows, columns = np.divmod(positions.astype(np.int64) + start, right.shape[1])
    with np.errstate(over="ignore", invalid="ignore"):
        total: Values = left[0][rows] * right[0][columns]
        for u, v in zip(left[1:], right[1:], strict=True):
            total += u[rows] * v[columns]
    return total


def kept_residuals(base: Elements, source: DType, tuned: Elements, target: DType, positions: Positions, product: Product) -> Values:
    """Return what a product leaves of fine-tuned minus base at `positions`, `[nnz] f32`, rounded twice.

    Args:
        base: `[length]` elements of the base.
        source: Their type.
        tuned: `[length]` elements of the fine-tune.
        target: Their type.
        positions: Which are kept, strictly increasing.
        product: The factors.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        left: Values = kept_differences(base, source, tuned, target, positions) - product_at(product, positions)
    return left


def add_product(elements: Elements, dtype: DType, product: Product, kept: Sparse) -> None:
    """Add the values of a product, and then a sparse term, to elements, rounded once.

    Args:
        elements: `[length]` elements of a float `dtype` in its storage type.
        dtype: Their type.
        product: The factors.
        kept: Positions and values of the sparse term; none of both where there is no such term.
    """
    every = np.arange(len(elements), dtype=np.uint32)
    add_in_place(elements, dtype, [Sparse(every, product_values(product)), *([kept] if len(kept.positions) else [])])
