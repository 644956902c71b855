"""Valid vectors on weights and on what a sum does to zeros and to f64, for make_vectors.py only."""

from __future__ import annotations

import math
from collections.abc import Iterator

from vectors import scalar
from vectors.assemble import FLOATS, Pack, Tensor, Term
from vectors.scalar import CHUNK, ITEMSIZE
from vectors.valid import every, floats, special, tensor, term

NEAR_ONE = "1.00000005960464477539062500001"
"""A little above 1 + 2^-24: as an f64 that very number, which as an f32 is a tie and becomes 1; straight to f32 it would be 1 + 2^-23."""


def rolled(old: Tensor, by: int = 1) -> Tensor:
    """The elements in another order."""
    size = ITEMSIZE[old.dtype]
    return Tensor(old.dtype, old.shape, old.data[by * size :] + old.data[: by * size])


def numbers(dtype: str, values: list[float]) -> Tensor:
    """A tensor of one dimension."""
    return tensor(dtype, (len(values),), [scalar.element(dtype, value) for value in values])


def every_kind(pack: Pack) -> Pack:
    """One tensor of each kind of entry, and of each kind of stored entry."""
    old, new = floats("bf16", (4, 3)), floats("bf16", (4, 3), 7)
    some = [term("gaps", "int4", [0, 5, 11], shift=0)]
    pack.patched("delta", old, some).patched("convert", old, some, dtype="f32").unchanged("unchanged", old)
    pack.patched("grown", old, some, shape=(6, 3), tail=floats("bf16", (2, 3), 5).data)
    pack.patched("shrunk", old, [term("bitmap", "f16", [1, 8])], shape=(3, 3))
    pack.removed("removed", old).alias("alias", "delta")
    pack.stored("s-f32", floats("f32", (5,), 3), replaces=("s-f32", floats("f32", (5,), 4)))
    pack.stored("s-bf16", new, replaces=("s-bf16", old)).stored("s-renamed", new, replaces=("s-old-name", old))
    pack.stored("s-unsaid", new, over=old)
    pack.stored("s-wider", floats("f32", (4, 3), 7), replaces=("s-wider", old))
    pack.stored("s-narrower", new, replaces=("s-narrower", floats("f32", (4, 3))))
    pack.stored("s-shape", floats("bf16", (12,), 7), replaces=("s-shape", old))
    pack.stored("s-integer", tensor("i32", (4, 3), list(range(12))), replaces=("s-integer", old))
    pack.stored("s-of-integer", new, replaces=("s-of-integer", tensor("u16", (4, 3), 3)))
    pack.stored("s-complex", tensor("c64", (1,), 7), replaces=("s-complex", tensor("c64", (1,), 9)))
    return pack.stored("s-new", new)


def with_weight(weight: str) -> Pack:
    """A pack whose vector has the result under a weight, too."""
    pack = Pack()
    pack.weight = weight
    return pack


def weights() -> Iterator[tuple[str, str, Pack]]:
    """What a weight does."""
    about = "every kind under -2.5; stored tensors with a base of their shape, both float, are blended"
    yield "weight-kinds", about, every_kind(with_weight("-2.5"))
    about = "0 adds zeros: kept -0 becomes +0; what cannot be added stays"
    yield "weight-zero", about, every_kind(with_weight("0"))
    pack = with_weight("0.3")
    for dtype in FLOATS:
        pack.stored(f"w-{dtype}", rolled(special(dtype)), replaces=(f"w-{dtype}", special(dtype)))
        pack.stored(f"r-{dtype}", floats(dtype, (40,), 8), replaces=(f"r-{dtype}", floats(dtype, (40,), 9)))
    far = numbers("f64", [1e300, 1.0 + 2.0**-40, -math.inf, 3.0])
    pack.stored("far", far, replaces=("far", numbers("f64", [2e300, 1.0, -math.inf, 1.0 + 2.0**-40])))
    yield "weight-stored", "weight * (f32(stored) - f32(base)), each rounded once; infinity minus infinity", pack
    pack = with_weight(NEAR_ONE)
    pack.stored("w", numbers("f32", [0.1, 1.0]), replaces=("w", numbers("f32", [1e8, 3.0])))
    pack.patched("d", numbers("f32", [0.0, 0.0]), [Term("all", "f32", [0, 1], [0x3F800001, 0x42F60000])])
    yield "weight-near-one", "the weight goes through f64, becomes 1 as f32, and is not the weight 1: a stored tensor is blended", pack
    pack = with_weight("2.9e38")
    big = Term("all", "int8", every(1, 4), [1, -1, 0, 127], [0x3F80], factor=0x41200000)
    pack.patched("w", floats("f32", (4,)), [big]).patched("v", floats("f32", (2,)), [Term("all", "f32", [0, 1], [0x3F800000, 0x7F7FFFFF])])
    pack.stored("s", numbers("f32", [2.0, 1.0, 1.0]), replaces=("s", numbers("f32", [1.0, 1.0, 3.0])))
    yield "weight-large", "factor times weight is infinite, and times code 0 NaN", pack
    pack = with_weight("7.1e-46")
    tiny = Term("all", "f32", [0, 1], [0x7F000000, 0x3F800000], factor=0x3FC00000)
    pack.patched("w", numbers("f32", [0.0, 1e-44]), [tiny])
    yield "weight-tiny", "the smallest subnormal f32; factor times weight is rounded to a subnormal", pack
    pack = with_weight("0.5")
    count = CHUNK + 2
    new = tensor("bf16", (count,), 0x3F80).data[:-4] + bytes.fromhex("0040c03f")
    pack.stored("w", Tensor("bf16", (count,), new), replaces=("w", tensor("bf16", (count,), 0x3DCD)))
    yield "chunks-weight-stored", "a blended tensor of two chunks", pack


HALVES = {"f32": 24, "f16": 11, "bf16": 8, "f8_e4m3fn": 4, "f8_e5m2": 3}
"""1 + 2^-n is halfway between two numbers of the type."""


def zeros_and_f64() -> Iterator[tuple[str, str, Pack]]:
    """What a sum does to zeros, and how f64 becomes something else."""
    pack, zero, minus = Pack(), 0x00000000, 0x80000000
    for dtype in FLOATS:
        top = 1 << 8 * ITEMSIZE[dtype] - 1  # -0
        nan = int.from_bytes(special(dtype).data[5 * ITEMSIZE[dtype] : 6 * ITEMSIZE[dtype]], "little")
        old = tensor(dtype, (8,), [top, top, top, 0, 0, nan, nan, top])
        pack.patched(f"f32.{dtype}", old, [Term("bitmap", "f32", [0, 1, 3, 4, 5], [zero, minus, zero, minus, zero])])
        pack.patched(f"int4.{dtype}", old, [Term("gaps", "int4", [0, 3, 5], [0, 0, 0], [0xBF80], params={"shift": 0})])
    yield "kept-zero", "a kept difference of zero turns -0 into +0 and any NaN into the quiet one; what is not kept keeps its bits", pack
    values = [sign * (1 + 2.0**-n + more) for n in HALVES.values() for more in (-(2.0**-40), 0.0, 2.0**-40) for sign in (1, -1)]
    values += [65519.99999999999, 65520.0, 447.99999999999994, 464.0, 57344.0, 61440.0]
    values += [3.4028235677973366e38, 3.4028235677973362e38, 1e300, -math.inf]
    values += [2.0**-150, 2.0**-150 * (1 + 2.0**-40), 2.0**-134 * (1 + 2.0**-40), 2.0**-25 * (1 + 2.0**-40)]
    values += [2.0**-10, 2.0**-17, 5e-324, -0.0]
    old = numbers("f64", values)
    pack = Pack()
    for dtype in FLOATS:
        pack.patched(f"none.{dtype}", old, [], dtype=dtype, base_name=f"none.{dtype}")
        some = Term("bitmap", "f32", [0, 1, len(values) - 1], [zero, minus, zero])
        pack.patched(f"zero.{dtype}", old, [some], dtype=dtype, base_name=f"zero.{dtype}")
        if dtype in HALVES:
            # The sum is halfway and a little more: to f32 first, the little more is gone.
            near = numbers("f64", [1 + 2.0**-40, -1 - 2.0**-40, 1.0, 1e300])
            half = scalar.element("f32", 2.0 ** -HALVES[dtype])
            kept = Term("all", "f32", every(1, 4), [half, half | 1 << 31, 0x2B800000, 0x7F7FFFFF])
            pack.patched(f"sum.{dtype}", near, [kept], dtype=dtype, base_name=f"sum.{dtype}")
        wide = numbers(dtype, [1.0, -1.0, 0.5, 0.0])
        pack.patched(f"to-f64.{dtype}", wide, [Term("all", "f32", every(1, 4), [0x2B800000, 0x3F800000, zero, minus])], dtype="f64")
    yield "convert-f64", "f64 to narrower types goes through f32 (two roundings), sums with f64 are made in f64", pack


def weighted_packs() -> Iterator[tuple[str, str, Pack]]:
    """Name, description and pack of each vector."""
    yield from weights()
    yield from zeros_and_f64()
