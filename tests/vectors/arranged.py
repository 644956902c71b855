"""Vectors of arranged base tensors (section 3.10), for make_vectors.py only: valid ones, invalid ones, several packs."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

from vectors.assemble import Json, Pack, Tensor, Term
from vectors.faults import FORMAT, LIMIT, MISMATCH, Case, put
from vectors.scalar import CHUNK, ITEMSIZE
from vectors.valid import every, floats, tensor, term

Grid: TypeAlias = list[list[int]]
Pieces: TypeAlias = list[Json]


def piece(name: str, *start: int, turned: bool = False) -> Json:
    """A piece as the index spells it."""
    return {"name": name, "from": list(start)} | ({"transposed": True} if turned else {})


def arrange(grid: Grid, pieces: Pieces, base: dict[str, Tensor]) -> Tensor:
    """The tensor that pieces make, element by element."""
    dtype, shape = base[pieces[0]["name"]].dtype, tuple(map(sum, grid))
    size, out = ITEMSIZE[dtype], bytearray()
    places = [[(band, i) for band, extent in enumerate(extents) for i in range(extent)] for extents in grid]
    for place in itertools.product(*places):
        number = 0
        for extents, (band, _) in zip(grid, place, strict=True):
            number = number * len(extents) + band
        found, inside = pieces[number], [i for _, i in place]
        if "transposed" in found:
            inside[-2:] = [inside[-1], inside[-2]]
        rank = len(found["from"])
        inside = ([0] * rank + inside)[-rank:]
        at, held = 0, base[found["name"]]
        for first, i, dim in zip(found["from"], inside, held.shape, strict=True):
            at = at * dim + first + i
        out += held.data[at * size : (at + 1) * size]
    return Tensor(dtype, shape, bytes(out))


def few(count: int) -> list[Term]:
    """A term on every third element."""
    return [term("bitmap", "int4", every(3, count))]


def pack_of(grid: Grid, pieces: Pieces, **tensors: Tensor) -> Pack:
    """A pack of one tensor `w`, a difference to what is made of tensors that it removes."""
    pack = Pack()
    for name, held in tensors.items():
        pack.removed(name, held)
    made = arrange(grid, pieces, tensors)
    return pack.patched("w", made, few(made.numel)).made_of(grid, pieces)


EXPERTS = {f"e{e}.{part}": floats("bf16", (4, 6), 40 + 2 * e + (part == "up")) for e in (0, 1) for part in ("gate", "up")}
STACKED: Grid = [[1, 1], [4, 4], [6]]
IN_ORDER = [piece(name, 0, 0) for name in EXPERTS]


def experts() -> Pack:
    """Experts stacked, gate and up joined: twin of most invalid vectors."""
    return pack_of(STACKED, IN_ORDER, **EXPERTS)


def split() -> Pack:
    """q, k and v out of one tensor: changed, as it was, stored whole; v of another type."""
    qkv = floats("bf16", (12, 6), 50)
    pack = Pack().removed("qkv", qkv)
    grid: Grid = [[4], [6]]
    q, k, v = (arrange(grid, [piece("qkv", start, 0)], {"qkv": qkv}) for start in (0, 4, 8))
    pack.patched("q", q, few(24)).made_of(grid, [piece("qkv", 0, 0)])
    pack.unchanged("k", k).made_of(grid, [piece("qkv", 4, 0)])
    return pack.stored("v", floats("f32", (4, 6), 51), replaces=("v", v)).made_of(grid, [piece("qkv", 8, 0)])


def turned() -> Pack:
    """A matrix that lies the other way round in the base, where it has the same name; of another type."""
    held, grid, pieces = floats("bf16", (6, 5), 52), [[5], [6]], [piece("w", 0, 0, turned=True)]
    made = arrange(grid, pieces, {"w": held})
    return Pack().patched("w", made, few(30), dtype="f32").made_of(grid, pieces, hidden=held)


def beside() -> Pack:
    """An arranged tensor beside one that is as it was."""
    return pack_of([[4], [6]], [piece("t", 0, 0)], t=floats("bf16", (4, 6), 71)).unchanged("qkv", split().base["qkv"])


def ranks() -> Pack:
    """Tensors of more and of fewer dimensions than what they are boxes of, within larger ones."""
    pack = Pack().removed("deep", floats("f16", (2, 3, 4, 5), 53)).removed("flat", floats("f16", (9,), 54))
    held = dict(pack.base)
    for name, grid, pieces in (
        ("from-deep", [[2], [4]], [piece("deep", 1, 2, 2, 1)]),
        ("from-flat", [[1, 1], [1], [4]], [piece("flat", 5), piece("flat", 2)]),
        ("turned", [[2, 1], [3, 1], [2]], _mixed()),
        ("vector", [[1, 4, 1]], [piece("flat", 8), piece("deep", 0, 1, 3, 1), piece("flat", 0)]),
    ):
        made = arrange(grid, pieces, held)
        pack.patched(name, made, few(made.numel)).made_of(grid, pieces)
    return pack


def _mixed() -> Pieces:
    """Four pieces of [2 or 1, 3 or 1, 2], some transposed."""
    return [
        piece("deep", 0, 0, 1, 2, turned=True),
        piece("deep", 0, 1, 0, 3),
        piece("deep", 1, 1, 2, 0, turned=True),
        piece("deep", 1, 0, 3, 3),
    ]


def valid_arranged() -> Iterator[tuple[str, str, Pack]]:
    """Name, description and pack of each valid vector."""
    yield "arranged-experts", "experts stacked, gate and up joined", experts()
    yield "arranged-split", "q, k and v of one tensor", split()
    yield "arranged-transposed", "a matrix that lies the other way round, of the same name", turned()
    yield "arranged-beside", "a piece as large as its tensor, beside a tensor that is unchanged", beside()
    yield "arranged-ranks", "boxes of tensors of more and fewer dimensions", ranks()
    numbers = {name: tensor("i32", (2, 2), [seed + i for i in range(4)]) for name, seed in (("a", 10), ("b", 20))}
    grid: Grid = [[2], [2, 2]]
    pieces = [piece("b", 0, 0), piece("a", 0, 0, turned=True)]
    pack = Pack().removed("a", numbers["a"]).unchanged("b", numbers["b"])
    yield (
        "arranged-opaque",
        "integers; a piece of a tensor that is in the result, too",
        pack.unchanged("w", arrange(grid, pieces, numbers)).made_of(grid, pieces),
    )
    flat = tensor("f8_e4m3fn", (64, 64), [code if code < 0x70 else 0x30 for code in range(4096)])
    scattered = [piece("t", number % 64, number // 64) for number in range(4096)]
    yield "arranged-limit", "4,096 pieces", pack_of([[1] * 64, [1] * 64], scattered, t=flat)
    wide = 1030
    bits = [0x30 + (i < 9) + 2 * (i == 900 * wide + 1024) for i in range(1024 * wide)]
    held = tensor("f8_e4m3fn", (1024, wide), bits)
    pieces = [piece("t", 0, 0, turned=True)]
    pack = Pack().removed("t", held)
    made = arrange([[wide], [1024]], pieces, {"t": held})
    pack.patched("w", made, [Term("gaps", "bf16", [5, CHUNK - 1, CHUNK, CHUNK + 6000], [0x3A80] * 4, params={"shift": 14})])
    yield "arranged-chunks", "two chunks, chunk digests", pack.made_of([[wide], [1024]], pieces)


W = ("tensors", 4)
"""The entry of the arranged tensor in `experts`, after those of its four pieces."""


def arranged_cases() -> Iterator[Case]:
    """R6 on what an arranged base says, R11 and R12 on what the base has."""
    base = "arranged-experts"
    edits: tuple[tuple[str, Callable[[Json], None]], ...] = (
        ("named", put(*W, "base", "name", "x")),
        ("removed", lambda index: index["tensors"][0]["base"].update(grid=[[4], [6]], pieces=[piece("e0.gate", 0, 0)])),
        ("grid-short", put(*W, "base", "grid", [[1, 1], [4, 3], [6]])),
        ("grid-long", put(*W, "base", "grid", [[1, 1], [4, 5], [6]])),
        ("grid-flat", put(*W, "base", "grid", [[2], [4, 4, 4, 4]])),
        ("grid-two-dimensions", lambda index: index["tensors"][4]["base"].update(grid=[[2], [48]], pieces=IN_ORDER[:1])),
        ("piece-missing", put(*W, "base", "pieces", IN_ORDER[:-1])),
        ("piece-more", put(*W, "base", "pieces", [*IN_ORDER, IN_ORDER[0]])),
        ("piece-name-empty", put(*W, "base", "pieces", 0, "name", "")),
        ("piece-name-control", put(*W, "base", "pieces", 0, "name", "e0\x01")),
        ("from-nothing", put(*W, "base", "pieces", 0, "from", [])),
        ("from-negative", put(*W, "base", "pieces", 0, "from", [-1, 0])),
        ("from-9-dimensions", put(*W, "base", "pieces", 0, "from", [0] * 9)),
        ("from-1-dimension", put(*W, "base", "pieces", 0, "from", [0])),
        ("unknown-piece", _unspoken),
        ("base-tensors", put("base", "tensors", 3)),
    )
    no_base = {"grid-short", "grid-long", "grid-flat", "grid-two-dimensions", "from-9-dimensions", "from-1-dimension", "base-tensors"}
    for what, edit in edits:
        yield "R6", f"arranged-{what}", FORMAT, None if what in no_base else base, experts().build(edit)
    yield "R6", "arranged-shaped", FORMAT, "arranged-split", split().build(put("tensors", 3, "base", "shape", [24]))
    nothing_between = [*IN_ORDER[:2], IN_ORDER[0], *IN_ORDER[2:], IN_ORDER[0]]
    zero = lambda index: index["tensors"][4]["base"].update(grid=[[1, 1], [4, 4, 0], [6]], pieces=nothing_between)  # noqa: E731
    yield "R6", "arranged-grid-zero", FORMAT, base, experts().build(zero)
    row = {"t": tensor("f32", (1,), 0x3F800000)}
    lone = Pack().removed("t", row["t"]).patched("w", tensor("f32", (), 0x3F800000), [term("all", "f32", [0])])
    yield "R6", "arranged-scalar", FORMAT, None, lone.made_of([], [piece("t", 0)]).build()
    vector = pack_of([[6]], [piece("t", 0)], t=floats("bf16", (6,), 70))
    yield "R6", "arranged-vector-transposed", FORMAT, None, vector.build(put("tensors", 1, "base", "pieces", 0, "transposed", True))
    line = pack_of([[1], [6]], [piece("t", 0)], t=floats("bf16", (6,), 70))
    yield "R6", "arranged-row-transposed", FORMAT, None, line.build(put("tensors", 1, "base", "pieces", 0, "transposed", True))
    many = {"t": tensor("u8", (1,), 7)}
    crowd = Pack().removed("t", many["t"]).unchanged("w", tensor("u8", (4097,), 7))
    yield "R6", "arranged-4097-pieces", LIMIT, None, crowd.made_of([[1] * 4097], [piece("t", 0)] * 4097).build()
    codes = Tensor("raw8:X", (2,), b"\1\2")
    raw = Pack().removed("t", codes).unchanged("w", codes).made_of([[2]], [piece("t", 0)])
    raw.extra["required"] = ["arranged", "raw-types"]
    yield "R6", "arranged-raw", FORMAT, None, raw.build()
    hidden = Pack().removed("t", floats("bf16", (4, 6), 71))
    hidden.patched("w", hidden.base["t"], few(24)).made_of([[4], [6]], [piece("t", 0, 0)])
    hidden.patched("x", floats("bf16", (2,), 72), [], base_name="w")
    yield "R6", "arranged-used-twice", FORMAT, None, hidden.build()
    yield from arranged_base_cases()


def _unspoken(index: Any) -> None:
    """Name a piece that the base has, of which no entry speaks."""
    del index["tensors"][0]
    index["base"]["tensors"] = 4


def arranged_base_cases() -> Iterator[Case]:
    """R11 and R12, on the base of `arranged-split`: one tensor [12, 6] of bf16."""
    base, held = "arranged-split", split().base["qkv"]
    grid: Grid = [[4], [6]]
    first = arrange(grid, [piece("qkv", 0, 0)], {"qkv": held})

    def pack(made_of: Json, *, made: Tensor = first, cells: Grid = grid, speaks: str = "qkv") -> bytes:
        out = Pack().stored(speaks, tensor("u8", (1,), 1), over=held)
        out.patched("w", made, []).made_of(cells, [made_of])
        out.base = {"qkv": held}
        return out.build()

    both = Pack().stored("gone", tensor("u8", (1,), 1)).stored("qkv", tensor("u8", (1,), 1), over=held)
    both.patched("w", first, []).made_of(grid, [piece("gone", 0, 0)])
    yield "R11", "arranged-missing", MISMATCH, base, both.build()
    halves = Tensor("f16", first.shape, first.data)
    yield "R11", "arranged-dtype", MISMATCH, base, pack(piece("qkv", 0, 0), made=halves)
    yield "R11", "arranged-dimensions", MISMATCH, base, pack(piece("qkv", 0, 0, 0))
    yield "R11", "arranged-past-end", MISMATCH, base, pack(piece("qkv", 9, 0))
    yield "R11", "arranged-past-end-transposed", MISMATCH, base, pack(piece("qkv", 7, 0, turned=True), made=_square(held), cells=[[6], [6]])
    yield "R12", "arranged", MISMATCH, base, split().build(put("tensors", 1, "base", "digest", "0" * 32))


def _square(held: Tensor) -> Tensor:
    return arrange([[6], [6]], [piece("qkv", 0, 0, turned=True)], {"qkv": held})
