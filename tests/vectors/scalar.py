"""Element types and the mask generator in plain Python scalars, for make_vectors.py only.

Written from spec/06-arithmetic.md and spec/codecs/*.md without numpy, so that an error in a vectorised
decoder cannot hide in the expected results.
"""

from __future__ import annotations

import math
import re
import struct

ITEMSIZE = {
    **{"f64": 8, "f32": 4, "f16": 2, "bf16": 2, "f8_e4m3fn": 1, "f8_e5m2": 1, "f8_e8m0fnu": 1, "c64": 8},
    **{"i64": 8, "i32": 4, "i16": 2, "i8": 1, "u64": 8, "u32": 4, "u16": 2, "u8": 1, "bool": 1},
}
RAW = re.compile(r"raw(\d+):.*")


def itemsize(dtype: str) -> int:
    """Bytes of an element; a raw type is counted by the byte."""
    return ITEMSIZE.get(dtype, 1)


def size_of(dtype: str, shape: list[int]) -> int:
    """Bytes of a tensor; 0 where the type is none."""
    raw = RAW.fullmatch(dtype)
    return math.prod(shape) * int(raw[1]) // 8 if raw else math.prod(shape) * ITEMSIZE.get(dtype, 0)


NAN = {"f64": 0x7FF8 << 48, "f32": 0x7FC00000, "f16": 0x7E00, "bf16": 0x7FC0, "f8_e4m3fn": 0x7F, "f8_e5m2": 0x7E}
TILE, CHUNK = 65_536, 1_048_576


def _f8(code: int, mantissa_bits: int, bias: int) -> float:
    exponent, mantissa = (code & 0x7F) >> mantissa_bits, code & (1 << mantissa_bits) - 1
    if exponent == 0:
        return mantissa * 2.0 ** (1 - bias - mantissa_bits)
    return (mantissa + (1 << mantissa_bits)) * 2.0 ** (exponent - bias - mantissa_bits)


F8 = {
    "f8_e4m3fn": {code: _f8(code, 3, 7) for code in range(0x7F)},
    "f8_e5m2": {code: _f8(code, 2, 15) for code in range(0x7C)},
}


def number(dtype: str, bits: int) -> float:
    """The value of an element, as a Python float, which holds each of them exactly."""
    if dtype in F8:
        sign = -1.0 if bits & 0x80 else 1.0
        magnitude = F8[dtype].get(bits & 0x7F, math.inf if dtype == "f8_e5m2" and bits & 0x7F == 0x7C else math.nan)
        return sign * magnitude
    if dtype == "bf16":
        dtype, bits = "f32", bits << 16
    letter = {"f64": "d", "f32": "f", "f16": "e"}[dtype]
    return float(struct.unpack("<" + letter, bits.to_bytes(ITEMSIZE[dtype], "little"))[0])


def _pack(letter: str, value: float) -> int:
    try:
        return int.from_bytes(struct.pack("<" + letter, value), "little")
    except OverflowError:
        return _pack(letter, math.copysign(math.inf, value))


def round_f32(value: float) -> float:
    """Round a Python float to f32, ties to even."""
    return number("f32", _pack("f", value))


def element(dtype: str, value: float) -> int:
    """Convert a number to the bits of a type (section 6.3)."""
    if math.isnan(value):
        return NAN[dtype]
    if dtype == "f64":
        return _pack("d", value)
    value = round_f32(value)
    if dtype == "bf16":
        u = _pack("f", value)
        return (u + 0x7FFF + ((u >> 16) & 1)) >> 16
    if dtype in F8:
        sign = 0x80 if math.copysign(1.0, value) < 0 else 0
        if math.isinf(value):
            return sign | max(F8[dtype])
        # Every difference below is exact: f8 and f32 numbers are multiples of 2^-149 and below 2^128, but a float
        # has 53 bits only, so work on integers.
        scaled = int(abs(value) * 2.0**149)
        return sign | min(F8[dtype], key=lambda code: (abs(scaled - int(F8[dtype][code] * 2.0**149)), code & 1))
    return _pack({"f32": "f", "f16": "e"}[dtype], value)


def patch(base_dtype: str, base_bits: int, dtype: str, values: list[float]) -> int:
    """Section 6.2 for one element; `values` of the terms that keep it, in order."""
    if not values:
        return base_bits if base_dtype == dtype else element(dtype, number(base_dtype, base_bits))
    acc = 0.0
    for value in values:
        acc = round_f32(acc + value)
    total = number(base_dtype, base_bits) + acc
    if "f64" not in (base_dtype, dtype):
        total = round_f32(total)
    return element(dtype, total)


def philox(b: int, t: int, key: int, third: int = 0, rounds: int = 10) -> list[int]:
    """One block of Philox4x32."""
    c0, c1, c2, c3 = b, t, third, 0
    k0, k1 = key % 2**32, key // 2**32
    for step in range(rounds):
        if step:
            k0, k1 = (k0 + 0x9E3779B9) % 2**32, (k1 + 0xBB67AE85) % 2**32
        p0, p1 = 0xD2511F53 * c0, 0xCD9E8D57 * c2
        c0, c1, c2, c3 = (p1 >> 32) ^ c1 ^ k0, p1 % 2**32, (p0 >> 32) ^ c3 ^ k1, p0 % 2**32
    return [c0, c1, c2, c3]


def seeded_positions(keep: int, key: int, tile: int, size: int) -> list[int]:
    """The positions that a seeded mask keeps in a tile."""
    table = [2**32]
    while len(table) < 256:
        table.append(table[-1] * (2**32 - keep) // 2**32)
    kept: list[int] = []
    cursor = block = 0
    while True:
        for u in philox(block, tile, key):
            gap = sum(u >= 2**32 - table[i] for i in range(1, 256))
            if gap == 255:
                cursor += 255
            elif cursor + gap >= size:
                return kept
            else:
                kept.append(cursor + gap)
                cursor += gap + 1
            if cursor >= size:
                return kept
        block += 1


def stratified_positions(keep: int, key: int, tile: int, size: int) -> list[int]:
    """The positions that a stratified mask keeps in a tile: one of each stratum."""
    kept, i, begin = [], 0, 0
    while begin < size:
        end = (i + 1) * (2**48 // keep) // 2**16
        word = philox(i // 8, tile, key, third=1, rounds=7)[i % 8 // 2]
        sample = word // 2 ** (16 * (i % 2)) % 2**16
        kept.append(begin + sample * (end - begin) // 2**16)
        i, begin = i + 1, end
    return kept[:-1] if kept[-1:] >= [size] else kept


ROOTS = (0x3F800000, 0x3F8B95C2, 0x3F9837F0, 0x3FA5FED7, 0x3FB504F3, 0x3FC5672A, 0x3FD744FD, 0x3FEAC0C7)
"""2^(k/8) as f32."""


def line(byte: int) -> float:
    """The number that a byte of a row or column stands for."""
    return number("f32", ROOTS[byte % 8]) * 2.0 ** (byte // 8 - 16)
