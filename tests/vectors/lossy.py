"""Valid vectors of masks, codes, scales and factors that have a feature of their own, for make_vectors.py only."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from vectors import scalar
from vectors.assemble import FLOATS, GROUPED, SCALED, Added, Pack, Term
from vectors.factors import Factors, factors
from vectors.scalar import CHUNK, ITEMSIZE, TILE
from vectors.valid import SMALL, codes_for, every, floats, special, tensor
from vectors.weighted import with_weight

Vector = tuple[str, str, Pack]
KEY = 0xFEDCBA9876543210
STEP = 0x3A9D4953
"""About 0.0012, as f32: no power of two."""
INDEX = ("seeded", "stratified", "gaps", "bitmap", "all")


def mask(index: str, count: int, params: dict[str, Any], step: int = 2) -> list[int]:
    """Positions that an index codec keeps of a tensor; stored ones are every `step`-th."""
    if index in ("seeded", "stratified"):
        draw = scalar.seeded_positions if index == "seeded" else scalar.stratified_positions
        key = int(params["key"], 16)
        tiles = range(0, count, TILE)
        return [a + p for a in tiles for p in draw(params["keep"], key, a // TILE, min(TILE, count - a))]
    return every(1 if index == "all" else step, count)


def params_of(index: str, keep: int = 1 << 30, shift: int = 2) -> dict[str, Any]:
    """Parameters of an index codec."""
    if index in ("seeded", "stratified"):
        return {"keep": keep, "key": f"{KEY:016x}"}
    return {"shift": shift} if index == "gaps" else {}


def alike(index: str, values: str, shape: Sequence[int], how: str = "tensor", dropped: Iterable[int] = (), **given: Any) -> Term:
    """A term of random codes whose scales are alike, or those of rows and columns; `given`: keep, step, seed, scale, factor, positions."""
    params, width, gone = params_of(index, given.get("keep", 1 << 30)), shape[-1], set(dropped)
    found = given["positions"] if "positions" in given else mask(index, math.prod(shape), params, given.get("step", 2))
    positions = [p for p in found if p // width not in gone]
    codes, _ = codes_for(values, len(positions), given.get("seed", 2))
    rows = [0 if row in gone else 116 + (5 * row + 3) % 23 for row in range(math.prod(shape[:-1]))]
    columns = [120 + 7 * column % 19 for column in range(width)]
    scale, factor = given.get("scale", STEP), given.get("factor", 0x3F800000)
    return Term(index, values, positions, codes, params=params, alike=how, scale=scale, factor=factor, rows=rows, columns=columns)


def strata() -> Iterator[Vector]:
    """Stratified masks."""

    def grouped(count: int, values: str, keep: int, key: int = KEY) -> Term:
        params = {"keep": keep, "key": f"{key:016x}"}
        positions = mask("stratified", count, params)
        sizes = [sum(a <= p < a + TILE for p in positions) for a in range(0, count, TILE)]
        codes, _ = codes_for(values, len(positions))
        scales = [SMALL + group for group in range(sum(-(-size // 128) for size in sizes))] if values in GROUPED else []
        return Term("stratified", values, positions, codes, scales, params=params)

    yield "index-stratified", "density 1/4, one tile", Pack().patched("w", floats("bf16", (300,)), [grouped(300, "int4", 1 << 30)])
    pack = Pack().patched("most", floats("f32", (40,)), [grouped(40, "int8", 2**32 - 1)])
    pack.patched("three-quarters", floats("f32", (200,)), [grouped(200, "int8", 3 << 30)])
    yield (
        "index-stratified-dense",
        "strata of one element; of one and two",
        pack.patched("e", floats("f32", (1,)), [grouped(1, "f32", 1 << 31)]),
    )
    pack = Pack().patched("w", tensor("f16", (3000,), 0x2E66), [grouped(3000, "f16", 1 << 22)])
    pack.patched("missed", tensor("f16", (30,), 0x2E66), [grouped(30, "f16", 1 << 16)])
    pack.patched("odd", tensor("f16", (999,), 0x2E66), [grouped(999, "bf16", 0x0ABCDEF1)])
    yield "index-stratified-sparse", "strata of 1,024 elements; one that keeps nothing, for it ends behind the tile", pack
    count = TILE + 300
    base = tensor("bf16", (count,), 0x3DCD)
    pack = Pack().patched("w", base, [grouped(count, "int4", 2**32 // 512)])
    yield "tiles-stratified", "tile borders; one stratum a tile", pack.patched("least", base, [grouped(count, "f32", 1 << 16, 1)])
    count = CHUNK + TILE + 5
    base = tensor("f8_e4m3fn", (count,), 0x30)
    yield "chunks-stratified", "tiles are counted through the tensor", Pack().patched("w", base, [grouped(count, "int2", 2**32 // 20_000)])


def trits() -> Iterator[Vector]:
    """Trits."""
    yield "values-ternary", "261 kept", Pack().patched("w", floats("bf16", (1, 522)), [alike("bitmap", "ternary", (1, 522))])
    pack = Pack()
    for count in range(12):
        pack.patched(f"n{count:02}", floats("bf16", (12,)), [alike("gaps", "ternary", (12,), positions=every(1, count), seed=count)])
    pack.patched("plus", floats("f16", (9,)), [Term("all", "ternary", every(1, 9), [1] * 9, alike="tensor", scale=STEP)])
    pack.patched("minus", floats("f16", (9,)), [Term("all", "ternary", every(1, 9), [-1] * 9, alike="tensor", scale=STEP)])
    yield "ternary-lengths", "from no trit to 11; all the same", pack
    pack = Pack()
    for old in FLOATS:
        for new in FLOATS:
            base = special(old)
            codes = [(p + p // 12) % 3 - 1 for p in range(base.numel)]
            pack.patched(
                f"{old}.{new}", base, [Term("all", "ternary", every(1, base.numel), codes, alike="tensor", scale=0x3E000000)], dtype=new
            )
    yield "ternary-zeros", "zero trits leave the bits of the base, -0 and NaNs too, or convert them", pack
    zeros, two = tensor("f32", (3,), [0x80000000, 0x80000000, 0x7FA00001]), [0x80000000] * 2
    nothing = Term("all", "ternary", [0, 1, 2], [0, 0, 0], alike="tensor")
    pack = Pack().patched("nothing", zeros, [nothing]).patched("twice", zeros, [nothing, nothing])
    pack.patched("other", zeros, [nothing, Term("bitmap", "f32", [0, 2], two)])
    yield "ternary-zeros-of-terms", "zero trits of one term, or of two; another term keeps the element", pack
    huge = Term("all", "ternary", every(1, 4), [1, 0, -1, 0], alike="tensor", scale=0x7F7FFFFF, factor=0x7F7FFFFF)
    base = tensor("bf16", (4,), [0x3F80, 0x3F80, 0x7F80, 0xFF80])
    yield "ternary-overflow", "scale times factor is infinite; a zero trit is not infinity times 0", Pack().patched("w", base, [huge])
    pack = Pack()
    for index in INDEX:
        pack.patched(index, floats("bf16", (300,)), [alike(index, "ternary", (300,), keep=1 << 31)])
    yield "ternary-masks", "every index codec", pack
    base, at = tensor("bf16", (TILE + 300,), 0x3DCD), [3, 7, TILE - 1, TILE, TILE + 1, TILE + 2, TILE + 299]
    yield (
        "tiles-ternary",
        "a byte has trits of two tiles",
        Pack().patched("w", base, [alike("gaps", "ternary", (TILE + 300,), positions=at)]),
    )
    count = CHUNK + 5
    at = [0, 1, 9, 12, CHUNK - 2, CHUNK - 1, CHUNK, CHUNK + 1, CHUNK + 4]
    base = tensor("f8_e5m2", (count,), 0x2E)
    own = alike("gaps", "ternary", (count,), positions=at, scale=0x3F000000)
    yield "chunks-ternary", "trits start anew with a chunk", Pack().patched("w", base, [own])


def levels() -> Iterator[Vector]:
    """Levels of the uniform quantiser."""

    def coded(codes: list[int], precision: int = 10, lanes: int = 4) -> Term:
        return Term("all", "uniform", every(1, len(codes)), codes, alike="tensor", scale=STEP, coder=(precision, lanes))

    yield "values-uniform", "261 kept", Pack().patched("w", floats("bf16", (522,)), [alike("bitmap", "uniform", (522,))])
    pack = Pack().patched("all", floats("f32", (255,)), [coded(list(range(-127, 128)), 12, 8)])
    pack.patched("edges", floats("f32", (300,)), [coded([(-127, 127, 0)[i % 3] for i in range(300)], 11, 1)])
    yield "uniform-levels", "each level; symbols between the first and the last that do not occur", pack
    pack = Pack()
    for precision in (10, 11, 12):
        for lanes in (1, 4, 8, 32):
            codes, _ = codes_for("uniform", 150, lanes)
            pack.patched(f"{precision}.{lanes}", floats("bf16", (150,)), [coded(codes, precision, lanes)])
    yield "uniform-lanes", "every precision with every number of lanes", pack
    pack = Pack()
    for level, lanes in ((0, 1), (5, 32), (-127, 4), (127, 8)):
        pack.patched(f"l{level}", floats("bf16", (70,)), [coded([level] * 70, 10, lanes)])
    yield "uniform-one-symbol", "one level: no words; 32 lanes that are stored as a frame", pack
    pack = Pack().patched("none", floats("bf16", (30,)), [alike("gaps", "uniform", (30,), positions=[])])
    pack.patched("one", floats("bf16", (30,)), [alike("gaps", "uniform", (30,), positions=[17])])
    zeros = [0x80000000, 0, 0x7FA00001, 0x80000000]
    pack.patched("zero", tensor("f32", (4,), zeros), [Term("bitmap", "uniform", [0, 1, 2], [0, 0, 0], alike="tensor")])
    yield "uniform-few", "nothing kept: no bytes; one; a level 0 is a value of 0, not a zero trit", pack
    pack = Pack()
    for index in INDEX:
        pack.patched(index, floats("bf16", (300,)), [alike(index, "uniform", (300,), keep=1 << 31)])
    yield "uniform-masks", "every index codec", pack
    count = TILE + 300
    codes = [{0: 1, 5: -2, TILE - 1: 3, TILE: -4, count - 1: 9}.get(i, 0) for i in range(count)]
    pack = Pack().patched("all", tensor("f8_e5m2", (count,), 0x2E), [Term("all", "uniform", every(1, count), codes, alike="tensor")])
    at, base = [5, 9, TILE + 299], tensor("bf16", (count,), 0x3DCD)
    yield "tiles-uniform", "codes in tiles of their own", pack.patched("few", base, [alike("gaps", "uniform", (count,), positions=at)])
    count = 2 * CHUNK + 5
    at = [7, CHUNK - 1, 2 * CHUNK, 2 * CHUNK + 4]
    own = alike("gaps", "uniform", (count,), positions=at, scale=0x3F000000)
    yield (
        "chunks-uniform",
        "a table for each chunk; none where nothing is kept",
        Pack().patched("w", tensor("f8_e5m2", (count,), 0x2E), [own]),
    )


def scales() -> Iterator[Vector]:
    """Scales of a tensor, of rows and of columns."""
    shape: tuple[int, ...] = (9, 20)
    for how, dropped in (("tensor", ()), ("rows", (0, 4, 5)), ("outer", (0, 4, 5))):
        pack = Pack()
        for number, values in enumerate(SCALED):
            for index in (INDEX[number % 5], INDEX[(number + 2) % 5]):
                own = alike(index, values, shape, how, dropped, keep=1 << 31)
                pack.patched(f"{values}.{index}", floats("bf16", shape, number), [own])
        yield f"scales-{how}", "every value and index codec" + "; three rows dropped" * bool(dropped), pack
    pack, byte = Pack(), list(range(1, 256))
    rows = Term("all", "sign", every(1, 255), [1] * 255, alike="rows", rows=[0, *byte], columns=[1])
    rows.positions = [p + 1 for p in rows.positions]
    pack.patched("rows", tensor("f32", (256, 1), 0), [rows])
    outer = Term("all", "sign", every(1, 510), [1] * 510, alike="outer", rows=[128, 133], columns=byte)
    yield "scales-bytes", "each byte of a row and of a column", pack.patched("columns", tensor("f32", (2, 255), 0), [outer])
    pack, base = Pack(), floats("f32", (7, 11))
    for how in ("tensor", "rows", "outer"):
        for values in ("int8", "ternary"):
            pack.patched(f"{how}.{values}", base, [alike("all", values, (7, 11), how, factor=0x3FB33333)])
    yield "scales-rounding", "each product is rounded, in its order", pack
    pack = Pack()
    for name, scale, factor, rows_of, columns in (
        ("infinite-row", 0x7F000000, 0x3F800000, [255, 128], [128, 1]),
        ("infinite-both", 0x3F800000, 0x7F7FFFFF, [255, 255], [255, 1]),
        ("subnormal", 0x00800001, 0x3F000000, [1, 7], [3, 9]),
        ("small-then-large", 0x00000001, 0x7F000000, [1, 255], [1, 255]),
        ("negative", 0xBF800000, 0x3F800000, [128, 129], [130, 131]),
        ("zero", 0x00000000, 0x7F7FFFFF, [255, 1], [128, 255]),
    ):
        for how in ("rows", "outer"):
            own = Term("all", "int8", every(1, 4), [1, -128, 0, 127], alike=how, scale=scale, factor=factor, rows=rows_of, columns=columns)
            pack.patched(f"{name}.{how}", tensor("f32", (2, 2), 0x3F800000), [own])
    yield "scales-limits", "infinite, subnormal, negative and zero products", pack
    pack = Pack()
    for number, index in enumerate(INDEX):
        pack.patched(f"{index}.none", floats("bf16", (3, 7)), [alike(index, SCALED[number], (3, 7), "rows", (0, 1, 2))])
        pack.patched(f"{index}.one", floats("bf16", (3, 7)), [alike(index, SCALED[-number - 1], (3, 7), "outer", (0, 2), keep=3 << 30)])
    pack.patched("zeros", special("f32"), [Term("all", "sign", every(1, 12), [1] * 12, alike="rows", rows=[128, 0], columns=[1] * 12)])
    yield "scales-dropped", "all rows dropped; all but one; elements of a dropped row keep their bits", pack
    pack = Pack()
    for shape in ((1, 9), (9, 1), (1, 1), (2, 3, 4), (2, 1, 3, 2)):
        name = "x".join(map(str, shape))
        pack.patched(f"rows.{name}", floats("bf16", shape), [alike("all", "int4", shape, "rows")])
        pack.patched(f"outer.{name}", floats("bf16", shape), [alike("bitmap", "int2", shape, "outer", step=1)])
    pack.patched("tensor.of-one", floats("f32", ()), [Term("all", "ternary", [0], [-1], alike="tensor")])
    pack.patched("tensor.of-none", tensor("f32", (0, 3), []), [Term("all", "uniform", [], [], alike="tensor")])
    yield "scales-shapes", "the last dimension is that of the columns; a tensor's scale also where there are none", pack
    old, tail = floats("bf16", (4, 3)), floats("bf16", (2, 3), 5).data
    pack = Pack()
    for how in ("tensor", "rows", "outer"):
        gone = [1] * (how != "tensor")
        pack.patched(f"grown.{how}", old, [alike("bitmap", "int4", (4, 3), how, gone)], shape=(6, 3), tail=tail)
        pack.patched(f"shrunk.{how}", old, [alike("all", "ternary", (3, 3), how, gone)], shape=(3, 3))
    line = floats("f32", (4,))
    pack.patched("grown.vector", line, [alike("all", "ternary", (4,))], shape=(6,), tail=bytes(8))
    yield (
        "scales-grown-shrunk",
        "rows are those of the terms",
        pack.patched("shrunk.vector", line, [alike("all", "int8", (3,))], shape=(3,)),
    )
    pack = Pack()
    for old_type in FLOATS:
        for dtype in FLOATS:
            base = special(old_type)
            own = alike("bitmap", "int4", base.shape, "outer", scale=0x3DCCCCCD)
            pack.patched(f"{old_type}.{dtype}", base, [own], dtype=dtype)
    yield "scales-types", "every float type to every other", pack
    shape = (3, 40_000)
    base = tensor("bf16", shape, 0x3DCD)
    pack = Pack()
    for index in INDEX[:4]:
        at = {"positions": [0, 39_999, 40_000, 65_535, 65_536, 80_000, 119_999]} if index in ("gaps", "bitmap") else {}
        pack.patched(index, base, [alike(index, "ternary", shape, "outer", (1,), keep=2**32 // 4000, **at)])
    yield "tiles-rows", "a dropped row from one tile to the next", pack
    shape = (5, 300_000)
    base = tensor("f8_e4m3fn", shape, 0x30)
    pack = Pack()
    for index in INDEX[:3]:
        at = {"positions": [3, 299_999, 300_000, 900_000, CHUNK - 1, CHUNK, 1_200_000, 1_499_999]} if index == "gaps" else {}
        own = alike(index, "int4", shape, "rows", (2,), keep=2**32 // 40_000, scale=0x3D800000, **at)
        pack.patched(index, base, [own])
    yield "chunks-rows", "rows are counted through the tensor", pack
    shape = (1025, 1025)
    own = alike("all", "sign", shape, "rows", range(1, 1024), scale=0x3C000000)
    own.codes = [1] * len(own.codes)
    yield "chunks-rows-all", "every element of the first row and the last", Pack().patched("w", tensor("f8_e4m3fn", shape, 0x30), [own])


def products() -> Iterator[Vector]:
    """Factors."""
    pack = Pack()
    shape: tuple[int, ...] = (7, 11)
    for bits in (2, 4, 8):
        for rank in (1, 3, 7):
            pack.patched(f"{bits}.{rank}", floats("bf16", shape, rank), [factors(shape, rank, bits, seed=bits + rank)])
    yield "factors-bits", "codes of 2, 4 and 8 bits, with unused bits; ranks up to the number of rows", pack
    pack = Pack()
    for old in FLOATS:
        for new in FLOATS:
            pack.patched(f"{old}.{new}", special(old), [factors((2, 12), 2, size=0.3)], dtype=new)
    yield "factors-types", "every float type to every other; every element is kept", pack
    one, big = 0x3F800000, 0x4B800000
    order = Factors([[0] * 3] * 3, [[0] * 3, [0] * 3, [-1] * 3], ([big, one, big], [one, one, one]))
    yield "factors-order", "2^24 + 1 - 2^24: products are added in their order", Pack().patched("w", tensor("f32", (3, 3), 0), [order])
    pack = Pack()
    for seed in range(4):
        own = factors((5, 6), 4, 8, seed, 1.0)
        own.factor = 0x3F8CCCCD
        pack.patched(f"w{seed}", tensor("f32", (5, 6), 0), [own])
    yield "factors-rounding", "each product and each sum is rounded; the scale of u is multiplied with the factor", pack
    far = Factors([[0, -1], [0, 0]], [[0, 1], [0, 1]], ([0x7F000000] * 2, [0x40800000, 0xC0800000]), 2)
    pack = Pack().patched("infinite", tensor("bf16", (2, 2), 0x3F80), [far])
    tiny = Factors([[0, 7], [0, -8]], [[0, 1], [7, -8]], ([0x00000001, 0x00800000], [0x3F000000, 0x3F800001]))
    pack.patched("subnormal", tensor("f32", (2, 2), 0x00000001), [tiny])
    none = Factors([[0, -1]], [[0, -1]], ([0], [0x80000000]), 2)
    yield (
        "factors-limits",
        "infinities of both signs, subnormal numbers, zeros",
        pack.patched("zero", tensor("f32", (2, 2), 1 << 31), [none]),
    )
    pack = Pack()
    for shape in ((1, 1), (1, 9), (9, 1), (2, 3, 4), (2, 1, 3, 2)):
        pack.patched("x".join(map(str, shape)), floats("bf16", shape), [factors(shape, 1, 4)])
    yield "factors-shapes", "the last dimension is that of v", pack
    rows, tail = floats("bf16", (4, 3)), floats("bf16", (2, 3), 5).data
    pack = Pack().patched("grown", rows, [factors((4, 3), 2)], shape=(6, 3), tail=tail)
    yield "factors-grown-shrunk", "rows are those of the terms", pack.patched("shrunk", rows, [factors((3, 3), 2)], shape=(3, 3))
    full = Factors([[0] * 256] * 256, [[-1] * 256] * 256, ([0x3A800000] * 256, [0x3F800000] * 256), 2)
    yield "factors-rank-256", "the highest rank", Pack().patched("w", tensor("f32", (256, 256), 0), [full])
    shape = (8, 9)
    first, second = factors(shape, 2, 4, 5), factors(shape, 1, 2, 6)
    sparse = [alike(index, "ternary", shape, "tensor", keep=1 << 31) for index in ("stratified", "seeded")]
    pack = Pack().patched("factors-first", floats("f32", shape), [first, sparse[0]])
    pack.patched("factors-last", floats("f32", shape), [sparse[1], first]).patched("two", floats("f32", shape), [first, second])
    yield "factors-and-others", "two terms, one of them of factors, or both", pack
    shape = (3, 30_000)
    own = Factors([[1, -2, 5]], [[{0: 3, 5535: 2, 5536: -7, 29_999: 6}.get(i, 0) for i in range(30_000)]], ([0x3D000000], [0x3E000000]))
    yield "tiles-factors", "tile borders", Pack().patched("w", tensor("bf16", shape, 0x3DCD), [own])
    shape = (3, 400_000)
    edge = CHUNK - 800_000
    own = Factors(
        [[1, -2, 5]], [[{0: 3, edge - 1: 2, edge: -7, 399_999: 6}.get(i, 0) for i in range(400_000)]], ([0x3E000000], [0x3F800000])
    )
    yield "chunks-factors", "chunk borders", Pack().patched("w", tensor("f8_e5m2", shape, 0x2E), [own])


def of_each(pack: Pack, shape: tuple[int, int] = (6, 10), dtype: str = "bf16") -> Pack:
    """A tensor for each way in which codes are made values."""
    old = floats(dtype, shape)
    for number, values in enumerate(("ternary", "uniform", "int4")):
        for how in ("tensor", "rows", "outer"):
            index = INDEX[(number + len(how)) % 5]
            own = alike(index, values, shape, how, [2] * (how != "tensor"), keep=1 << 31, factor=0x40A66666)
            pack.patched(f"{values}.{how}", old, [own])
    spikes = factors(shape, 3)
    spikes.factor = 0x3F99999A
    pack.patched("factors", old, [spikes])
    both: list[Added] = [spikes, alike("stratified", "ternary", shape, keep=1 << 31, factor=0x40000000)]
    grown = {"shape": (shape[0] + 1, shape[1]), "tail": bytes(shape[1] * ITEMSIZE[dtype])}
    pack.patched("both", old, both).patched("grown", old, both, **grown)
    zeros = tensor("f32", (2, 2), [0x80000000, 0x80000000, 0x7FA00001, 0x80000000])
    pack.patched("zero-trits", zeros, [Term("bitmap", "ternary", [0, 1, 2], [0, 1, 0], alike="tensor", factor=0x40A66666)])
    return pack.patched("zero-product", zeros, [Factors([[0, 1]], [[0, -1]], ([0], [0x3F800000]), 2)])


def lossy_weights() -> Iterator[Vector]:
    """What a weight, and a factor that the user gives, do to them."""
    for name, weight in (("0.3", "0.3"), ("negative", "-2.5"), ("zero", "0"), ("large", "2.9e38")):
        yield f"weight-lossy-{name}", f"every code, scales and factors under {weight}", of_each(with_weight(weight))
    pack = Pack()
    pack.rescale = "1.1"
    yield "rescale", "`rescaled` has 1.1 in place of factors, but of terms that keep all elements", of_each(pack)


def lossy_packs() -> Iterator[Vector]:
    """Name, description and pack of each vector."""
    for group in (strata, trits, levels, scales, products, lossy_weights):
        yield from group()
