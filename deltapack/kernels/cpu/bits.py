"""What numba does not offer: bit casts, addresses, prefetch; and the conversions between element types and f32.

No fast-math: numba then neither reorders nor fuses floating-point operations, which is what keeps the bits the same.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba import carray  # type: ignore[attr-defined]
from numba.core import cgutils, config, types
from numba.extending import intrinsic, overload
from numpy.typing import NDArray

from deltapack.dtypes import DType
from deltapack.kernels.cpu.keeping import LoopCache

__all__ = [
    "addresses",
    "array_at",
    "as_f32",
    "as_u32",
    "compiled",
    "exponent",
    "leading_zeros",
    "load_u64",
    "loops_on",
    "narrow",
    "prefetch",
    "trailing_zeros",
    "widen",
]

if config.DISABLE_JIT:  # type: ignore[attr-defined]  # functions stay those of Python then, which cannot call what only compiled code has
    raise ImportError("NUMBA_DISABLE_JIT is set")


def compiled(function: Callable[..., Any]) -> Any:
    """Compile a loop that releases the GIL, when it is called first; it is kept on disk where that can be."""
    # Division by zero gives infinity, as in numpy; numba's other model checks every divisor.
    loop: Any = numba.njit(nogil=True, error_model="numpy")(function)
    loop._cache = LoopCache(function)  # what `cache=True` would set, with numba's own files
    return loop


def _intrinsic(function: Callable[..., Any]) -> Any:
    """Make a function of LLVM instructions: it gets the types of its arguments and returns a signature and a generator of code."""
    return intrinsic(function)


@_intrinsic
def as_f32(typing: Any, bits: Any) -> Any:
    """Return the f32 with these 32 bits."""
    return types.float32(types.uint32), lambda context, builder, sig, args: builder.bitcast(args[0], ir.FloatType())


@_intrinsic
def as_u32(typing: Any, value: Any) -> Any:
    """Return the bits of an f32."""
    return types.uint32(types.float32), lambda context, builder, sig, args: builder.bitcast(args[0], ir.IntType(32))


@_intrinsic
def trailing_zeros(typing: Any, word: Any) -> Any:
    """Return the number of zero bits below the lowest one of a u64 that is not 0."""
    undefined_for_zero = ir.Constant(ir.IntType(1), 1)
    return types.uint64(types.uint64), lambda context, builder, sig, args: builder.cttz(args[0], undefined_for_zero)


@_intrinsic
def leading_zeros(typing: Any, word: Any) -> Any:
    """Return the number of zero bits above the highest one of a word of 32 or 64 bits, as such a word."""
    defined_for_zero = ir.Constant(ir.IntType(1), 0)
    return word(word), lambda context, builder, sig, args: builder.ctlz(args[0], defined_for_zero)


@_intrinsic
def _word_at(typing: Any, array: Any, byte: Any) -> Any:
    """Return the 8 bytes from a byte of a contiguous array on, which need not be aligned, as a little-endian number."""

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        data = context.make_array(sig.args[0])(context, builder, args[0]).data
        place = builder.bitcast(builder.gep(data, [args[1]]), ir.IntType(64).as_pointer())
        value = builder.load(place)
        value.align = 1
        return value

    return types.uint64(array, types.uint64), generate


@compiled
def _checked_word_at(array: Any, byte: np.uint64) -> Any:
    if np.uint64(byte) + np.uint64(8) > np.uint64(len(array) * array.itemsize):
        raise IndexError("bytes beside an array")
    return _word_at(array, byte)


load_u64: Any = _checked_word_at if getattr(numba.config, "BOUNDSCHECK", None) else _word_at
"""See `_word_at`; where numba is asked to check indices (`NUMBA_BOUNDSCHECK=1`), this is checked, too."""


@_intrinsic
def prefetch(typing: Any, array: Any, index: Any) -> Any:
    """Start loading the cache line of an element that will be changed; any index is safe."""

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        i32, pointer = ir.IntType(32), ir.IntType(8).as_pointer()
        data = context.make_array(sig.args[0])(context, builder, args[0]).data
        place = builder.bitcast(builder.gep(data, [args[1]]), pointer)
        signature = ir.FunctionType(ir.VoidType(), [pointer, i32, i32, i32])
        function = cgutils.get_or_insert_function(builder.module, signature, "llvm.prefetch.p0i8")  # type: ignore[no-untyped-call]
        for_writing, keep, data_cache = i32(1), i32(3), i32(1)
        builder.call(function, [place, for_writing, keep, data_cache])
        return context.get_dummy_value()

    return types.void(array, types.uint64), generate


@_intrinsic
def _pointer(typing: Any, address: Any, like: Any) -> Any:
    """Return an address as a pointer to elements of the type of `like`."""
    pointer = types.CPointer(like)  # type: ignore[no-untyped-call]
    return pointer(address, like), lambda context, builder, sig, args: builder.inttoptr(args[0], context.get_value_type(pointer))


@compiled
def array_at(address: np.uint64, length: np.int64, like: Any) -> Any:
    """Return the array `[length]` at an address, of elements of the type of `like`."""
    return carray(_pointer(address, like), (length,))


def addresses(arrays: Sequence[NDArray[np.generic]]) -> NDArray[np.uint64]:
    """Return where contiguous arrays lie; a tuple of them would compile a loop anew for each number of arrays."""
    return np.array([array.ctypes.data for array in arrays], np.uint64)


def loops_on(elements: NDArray[np.generic], dtype: DType) -> NDArray[np.generic] | None:
    """Return elements as the type by which `widen` and `narrow` know them, or none where no loop is compiled for their type."""
    if dtype.name == "f16":
        return elements.view(np.int16)
    return elements if dtype.name in ("bf16", "f32") else None


def widen(element: Any) -> Any:
    """Return an element as f32: bf16 comes as u16, f16 as i16."""
    raise NotImplementedError("compiled code only")


def narrow(value: Any, like: Any) -> Any:
    """Round an f32 to the type of `like`, nearest, ties to even; spec/06-arithmetic.md section 6.3."""
    raise NotImplementedError("compiled code only")


def exponent(element: Any) -> Any:
    """Return the exponent bits of an element, shifted to those of f32; all are set where it is not finite."""
    raise NotImplementedError("compiled code only")


@overload(exponent, strict=False)
def _exponent(element: Any) -> Any:
    if element == types.uint16:
        return lambda element: np.uint32(element & np.uint16(0x7F80)) << np.uint32(16)
    if element == types.int16:
        return lambda element: np.uint32(0x7F800000 if element & np.int16(0x7C00) == np.int16(0x7C00) else 0)
    return lambda element: as_u32(element) & np.uint32(0x7F800000)


@overload(widen, strict=False)
def _widen(element: Any) -> Any:
    if element == types.uint16:
        return lambda element: as_f32(np.uint32(element) << np.uint32(16))
    if element == types.int16:
        return _widen_f16
    return lambda element: element


@overload(narrow, strict=False)
def _narrow(value: Any, like: Any) -> Any:
    if like == types.uint16:
        return _narrow_bf16
    if like == types.int16:
        return _narrow_f16
    return lambda value, like: value if value == value else as_f32(np.uint32(0x7FC00000))


def _widen_f16(element: Any) -> Any:
    bits = np.uint32(np.uint16(element))
    magnitude, sign = bits & np.uint32(0x7FFF), (bits & np.uint32(0x8000)) << np.uint32(16)
    wide = (magnitude << np.uint32(13)) + np.uint32(0x38000000)
    if magnitude >= np.uint32(0x7C00):  # infinity and NaN
        wide += np.uint32(0x38000000)
    elif magnitude < np.uint32(0x0400):  # subnormal: a multiple of 2^-24
        wide = as_u32(np.float32(magnitude) * np.float32(2.0**-24))
    return as_f32(wide | sign)


def _narrow_bf16(value: Any, like: Any) -> Any:
    bits = as_u32(value)
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
    return np.uint16(rounded if value == value else np.uint32(0x7FC0))


def _narrow_f16(value: Any, like: Any) -> Any:
    bits = as_u32(value)
    magnitude, sign = bits & np.uint32(0x7FFFFFFF), (bits >> np.uint32(16)) & np.uint32(0x8000)
    if magnitude > np.uint32(0x7F800000):
        return np.int16(0x7E00)
    if magnitude >= np.uint32(0x47800000):  # 2^16 and above
        half = np.uint32(0x7C00)
    elif magnitude >= np.uint32(0x38800000):
        half = magnitude - np.uint32(0x38000000)
        half = (half + np.uint32(0x0FFF) + ((half >> np.uint32(13)) & np.uint32(1))) >> np.uint32(13)
    else:  # subnormal: a multiple of 2^-24
        half = np.uint32(np.rint(as_f32(magnitude) * np.float32(2.0**24)))
    return np.int16(np.uint16(half | sign))
