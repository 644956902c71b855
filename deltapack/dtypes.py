"""The one table of element types. Nothing here imports numpy or torch.

`storage` is the numpy type that holds an element's bits in memory: numpy knows no bfloat16 and no
float8, so these travel as unsigned integers and only `deltapack.kernels` gives them a value.

Types that are not in the table of the format travel as bytes: raw types, of any width in bits (spec/03-index.md section 3.6).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import prod

from deltapack.errors import RecipeError, did_you_mean

__all__ = ["BY_NAME", "BY_SAFETENSORS", "BY_TORCH", "MAX_RAW_BITS", "SAFETENSORS_NAME", "DType", "float_dtype", "named", "raw_type"]


@dataclass(frozen=True)
class DType:
    """An element type.

    Attributes:
        name: Its name in a pack, such as `"bf16"`.
        safetensors: Its name in a safetensors header, such as `"BF16"`.
        torch: Its name in the torch module, such as `"bfloat16"`; empty where torch has none.
        itemsize: Bytes per element; 1 for raw types, whose bytes count as elements wherever they are read, packed and written.
        storage: numpy dtype string (little-endian) that holds its bits.
        is_delta: Whether a difference of two such elements can be packed; other types are stored whole.
        raw_bits: Bits of an element of a raw type; 0 for the others.
        grouped: How many elements of a raw type one element of torch holds, in the last dimension.
    """

    name: str
    safetensors: str
    torch: str
    itemsize: int
    storage: str
    is_delta: bool
    raw_bits: int = 0
    grouped: int = 1

    def __str__(self) -> str:
        return self.name

    def count(self, shape: Sequence[int]) -> int:
        """Return the number of elements of a tensor; of a raw type, of its bytes."""
        return prod(shape) * self.raw_bits // 8 if self.raw_bits else prod(shape)

    def fits(self, shape: Sequence[int]) -> bool:
        """Whether a tensor of this shape has whole bytes."""
        return prod(shape) * self.raw_bits % 8 == 0

    def torch_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Return the shape that torch gives to a tensor of this shape."""
        return (*shape[:-1], shape[-1] // self.grouped) if self.grouped > 1 and shape else tuple(shape)

    def shape_of_torch(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Return the shape that safetensors gives to a tensor that has this shape in torch."""
        return (*shape[:-1], shape[-1] * self.grouped) if self.grouped > 1 and shape else tuple(shape)


_TABLE = (
    DType("f64", "F64", "float64", 8, "<f8", True),
    DType("f32", "F32", "float32", 4, "<f4", True),
    DType("f16", "F16", "float16", 2, "<f2", True),
    DType("bf16", "BF16", "bfloat16", 2, "<u2", True),
    DType("f8_e4m3fn", "F8_E4M3", "float8_e4m3fn", 1, "|u1", True),
    DType("f8_e5m2", "F8_E5M2", "float8_e5m2", 1, "|u1", True),
    DType("f8_e8m0fnu", "F8_E8M0", "float8_e8m0fnu", 1, "|u1", False),
    DType("c64", "C64", "complex64", 8, "<u8", False),
    DType("i64", "I64", "int64", 8, "<i8", False),
    DType("i32", "I32", "int32", 4, "<i4", False),
    DType("i16", "I16", "int16", 2, "<i2", False),
    DType("i8", "I8", "int8", 1, "|i1", False),
    DType("u64", "U64", "uint64", 8, "<u8", False),
    DType("u32", "U32", "uint32", 4, "<u4", False),
    DType("u16", "U16", "uint16", 2, "<u2", False),
    DType("u8", "U8", "uint8", 1, "|u1", False),
    DType("bool", "BOOL", "bool", 1, "|u1", False),
)

_OTHER_NAMES = {"half": "f16", "fp16": "f16", "float": "f32", "fp32": "f32", "double": "f64", "fp64": "f64"}
"""What people call types elsewhere, besides the names of torch."""

_RAW = (
    ("F4", 4, "float4_e2m1fn_x2", 2),
    ("F6_E2M3", 6, "", 1),
    ("F6_E3M2", 6, "", 1),
    ("F8_E4M3FNUZ", 8, "float8_e4m3fnuz", 1),
    ("F8_E5M2FNUZ", 8, "float8_e5m2fnuz", 1),
)
"""Types of safetensors that have no row of their own: name, bits, name in torch, elements that one of torch's holds."""

SAFETENSORS_NAME = re.compile(r"[A-Z0-9_]{1,32}")
"""How safetensors spells a type, also one that nobody knows today."""

MAX_RAW_BITS = 999
"""The widest raw type that a pack can name."""


@lru_cache
def raw_type(bits: int, safetensors: str) -> DType:
    """Return the type of elements of so many bits that safetensors calls so.

    >>> raw_type(4, "F4")
    DType(name='raw4:F4', safetensors='F4', torch='float4_e2m1fn_x2', itemsize=1, storage='|u1', is_delta=False, raw_bits=4, grouped=2)
    """
    torch, grouped = next(((torch, grouped) for name, width, torch, grouped in _RAW if (name, width) == (safetensors, bits)), ("", 1))
    return DType(f"raw{bits}:{safetensors}", safetensors, torch, 1, "|u1", False, bits, grouped)


BY_NAME = {dtype.name: dtype for dtype in _TABLE}
"""Types of the table by their name in a pack."""
BY_SAFETENSORS = {dtype.safetensors: dtype for dtype in _TABLE} | {name: raw_type(bits, name) for name, bits, *_ in _RAW}
BY_TORCH = {dtype.torch: dtype for dtype in BY_SAFETENSORS.values() if dtype.torch}
_RAW_NAME = re.compile(rf"raw([1-9][0-9]{{0,2}}):({SAFETENSORS_NAME.pattern})", re.ASCII)


def named(name: str) -> DType | None:
    """Return the type that a pack calls so, of the table or raw; none where no type has this name.

    >>> str(named("bf16")), str(named("raw6:F6_E2M3")), named("raw16:BF16")
    ('bf16', 'raw6:F6_E2M3', None)
    """
    match = _RAW_NAME.fullmatch(name)
    if match is None:
        return BY_NAME.get(name)
    known = BY_SAFETENSORS.get(match[2])
    found = raw_type(int(match[1]), match[2])
    # A type of the table has one name; of a known raw type so has its width.
    return found if known is None or known == found else None


def float_dtype(name: object) -> DType:
    """Return the float type that `name` means: a name of ours, of torch (a `torch.dtype`, too), or one that people use, such as fp16.

    >>> [float_dtype(name).name for name in ("bf16", "bfloat16", "torch.float16", "half", "FP32")]
    ['bf16', 'bf16', 'f16', 'f16', 'f32']

    Raises:
        RecipeError: There is no such type, or it is no float.
    """
    text = str(name).strip().lower().removeprefix("torch.")
    found = BY_NAME.get(_OTHER_NAMES.get(text, text)) or BY_TORCH.get(text)
    if found is None or not found.is_delta:
        choices = [dtype.name for dtype in _TABLE if dtype.is_delta]
        hint = did_you_mean(text, choices) if found is None else None
        raise RecipeError("dtype is not a float type", expected=f"one of {', '.join(choices)}", found=name, hint=hint)
    return found
