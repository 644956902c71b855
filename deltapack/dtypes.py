"""The one table of element types. Nothing here imports numpy or torch.

`storage` is the numpy type that holds an element's bits in memory: numpy knows no bfloat16 and no
float8, so these travel as unsigned integers and only `deltapack.kernels` gives them a value.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["BY_NAME", "BY_SAFETENSORS", "BY_TORCH", "DType"]


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

BY_NAME = {dtype.name: dtype for dtype in _TABLE}
BY_SAFETENSORS = {dtype.safetensors: dtype for dtype in _TABLE}
BY_TORCH = {dtype.torch: dtype for dtype in _TABLE}
