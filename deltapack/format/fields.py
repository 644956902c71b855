"""Typed access to the fields of the index. Implements the parts of rules R4 to R6 that concern one field."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, TypeVar

from deltapack.dtypes import DType, named
from deltapack.errors import FormatError, LimitError, UnsupportedError
from deltapack.format.index import BlobRef
from deltapack.limits import Limits

__all__ = [
    "CONTROL",
    "blob_ref",
    "check_bytes",
    "check_keys",
    "count",
    "dtype_of",
    "hexadecimal",
    "shape_of",
    "sorted_unique",
    "strings",
    "tensor_name",
    "typed",
]

T = TypeVar("T")
CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
"""Control characters, which no name may hold."""
_HEX = {digits: re.compile(f"[0-9a-f]{{{digits}}}") for digits in (8, 16, 32, 64)}


def check_keys(row: Any, what: str, *, required: set[str], optional: set[str] | None = None) -> None:
    """Require that `row` is an object with all `required` keys and no other than these and `optional` ones.

    Raises:
        FormatError: Rule R4 is broken.
    """
    if type(row) is not dict:
        raise FormatError(f"{what} is not an object", rule="R4")
    missing, unknown = required - row.keys(), row.keys() - required - (optional or set())
    if missing or unknown:
        text = f"lacks {sorted(missing)[0]!r}" if missing else f"has the unknown key {sorted(unknown)[0]!r}"
        raise FormatError(f"{what} {text}", rule="R4")


def typed(row: Any, key: str, kind: type[T]) -> T:
    """Return `row[key]`, which must be exactly of type `kind` (`True` is no integer).

    Raises:
        FormatError: Rule R4 is broken.
    """
    value = row.get(key)
    if type(value) is not kind:
        raise FormatError(f"{key!r} has the wrong type", rule="R4", expected=kind.__name__, found=type(value).__name__)
    return value


def strings(row: Any, key: str) -> list[str]:
    """Return `row[key]`, a sorted list of different strings.

    Raises:
        FormatError: Rule R4 is broken.
    """
    values = typed(row, key, list)
    if not all(type(value) is str for value in values) or values != sorted(set(values)):
        raise FormatError(f"{key!r} is not a sorted list of strings", rule="R4")
    return values


def count(row: Any, key: str) -> int:
    """Return `row[key]`, an integer that is not negative.

    Raises:
        FormatError: Rule R4 or R6 is broken.
    """
    value = typed(row, key, int)
    if value < 0:
        raise FormatError(f"{key!r} is negative", rule="R6", found=value)
    return value


def hexadecimal(row: Any, key: str, digits: int) -> str:
    """Return `row[key]`, a string of `digits` lower-case hexadecimal digits.

    Raises:
        FormatError: Rule R4 is broken.
    """
    value = typed(row, key, str)
    if not _HEX[digits].fullmatch(value):
        raise FormatError(f"{key!r} is not {digits} hexadecimal digits", rule="R4", found=value)
    return value


def tensor_name(row: Any, limits: Limits) -> str:
    """Return `row["name"]`, the name of a tensor.

    Raises:
        FormatError: Rule R4 or R6 is broken.
    """
    name = typed(row, "name", str)
    if not 1 <= len(name.encode()) <= limits.name_bytes or CONTROL.search(name):
        raise FormatError("a tensor name is empty, too long or has control characters", rule="R6", found=name)
    return name


def dtype_of(row: Any) -> DType:
    """Return the element type that `row["dtype"]` names.

    Raises:
        FormatError: Rule R4 is broken.
        UnsupportedError: The type is unknown (rule R5).
    """
    name = typed(row, "dtype", str)
    dtype = named(name)
    if dtype is None:
        raise UnsupportedError("unknown dtype", rule="R5", found=name, hint="Update deltapack.")
    return dtype


def shape_of(row: Any, limits: Limits) -> tuple[int, ...]:
    """Return `row["shape"]`.

    Raises:
        FormatError: Rule R4 or R6 is broken.
        LimitError: More dimensions or elements than `limits` allow.
    """
    shape = typed(row, "shape", list)
    if not all(type(dim) is int for dim in shape):
        raise FormatError("a dimension is not an integer", rule="R4", found=shape)
    if any(dim < 0 for dim in shape):
        raise FormatError("a dimension is negative", rule="R6", found=shape)
    if len(shape) > limits.ndim or math.prod(shape) > limits.numel:
        raise LimitError("the tensor is too large", rule="R6", found=shape)
    return tuple(shape)


def check_bytes(dtype: DType, shape: tuple[int, ...], limits: Limits) -> None:
    """Require that a tensor of a raw type has whole bytes, and not too many.

    Raises:
        FormatError: Rule R6 is broken.
        LimitError: More bytes than `limits` allow elements.
    """
    if not dtype.fits(shape):
        raise FormatError("the elements do not fill whole bytes", rule="R6", expected=f"a multiple of 8 bits of {dtype}", found=shape)
    if dtype.count(shape) > limits.numel:
        raise LimitError("the tensor is too large", rule="R6", found=shape)


def blob_ref(row: Any, key: str) -> BlobRef:
    """Return `row[key]`, a blob reference.

    Raises:
        FormatError: Rule R4 is broken.
    """
    value = typed(row, key, list)
    types = [type(item) for item in value]
    if types != [int, int, str] or value[0] < 0 or value[1] < 0 or not _HEX[16].fullmatch(value[2]):
        raise FormatError(f"{key!r} is not a blob reference", rule="R4", found=value)
    return BlobRef(*value)


def sorted_unique(names: Sequence[str], what: str) -> None:
    """Require that names increase strictly by their UTF-8 bytes.

    Raises:
        FormatError: Rule R6 is broken.
    """
    encoded = [name.encode() for name in names]
    if any(left >= right for left, right in pairwise(encoded)):
        raise FormatError(f"{what} are not sorted by name, or a name stands twice", rule="R6")
