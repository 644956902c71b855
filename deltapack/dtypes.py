"""The one table of element types. Nothing here imports numpy or torch.

`storage` is the numpy type that holds an element's bits in memory: numpy knows no bfloat16 and no
float8, so these travel as unsigned integers and only `deltapack.kernels` gives them a value.
"""

from __future__ import annotations

from dataclasses import dataclass

from deltapack.errors import RecipeError, did_you_mean

__all__ = ["BY_NAME", "BY_SAFETENSORS", "BY_TORCH", "DType", "float_dtype"]


@dataclass(frozen=True)
class DType:
    """An element type.

    Attributes:
        name: Its name in a pack, such as `"bf16"`.
        safetensors: Its name in a safetensors header, such as `"BF16"`.
        torch: Its name in the torch module, such as `"bfloat16"`.
        itemsize: Bytes per element.
        storage: numpy dtype string (little-endian) that holds its bits.
        is_delta: Whether a difference of two such elements can be packed; other types are stored whole.
    """

    name: str
    safetensors: str
    torch: str
    itemsize: int
    storage: str
    is_delta: bool

    def __str__(self) -> str:
        return self.name


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

BY_NAME = {dtype.name: dtype for dtype in _TABLE}
BY_SAFETENSORS = {dtype.safetensors: dtype for dtype in _TABLE}
BY_TORCH = {dtype.torch: dtype for dtype in _TABLE}


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
