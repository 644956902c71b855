"""Invalid vectors of masks, codes, scales and factors that have a feature of their own, for make_vectors.py only."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import xxhash
import zstandard
from vectors import exact
from vectors.assemble import Added, Blob, Json, Pack, Root, Tensor, Term, stream, zstd
from vectors.factors import Factors, factors
from vectors.faults import CHECKSUM, FORMAT, LIMIT, UNSUPPORTED, Case, drop, put
from vectors.lossy import alike, params_of
from vectors.scalar import CHUNK
from vectors.valid import every, floats, tensor

SHAPE, BASE = (4, 3), "invalid-base"
TERM = ("tensors", 0, "terms", 0)


def pack_of(own: Added, old: Tensor | None = None, **options: Any) -> Pack:
    """A pack of one term; its base is that of v1-ok-invalid-base, unless another is given."""
    return Pack().patched("a", floats("bf16", SHAPE) if old is None else old, [own], **options)


def of(index: str = "all", values: str = "int4", how: str = "tensor", **given: Any) -> Term:
    """A term of that tensor."""
    return alike(index, values, SHAPE, how, keep=given.pop("keep", 1 << 31), **given)


def lossy_cases() -> Iterator[Case]:
    """R5 to R10 and R12."""
    for group in (index_cases, line_cases, mask_cases, trit_cases, level_cases, factor_cases):
        yield from group()


def index_cases() -> Iterator[Case]:
    """R5 and R6 on what the index says of a term."""
    yield "R5", "scales", UNSUPPORTED, BASE, pack_of(of(how="rows")).build(put(*TERM, "scales", "columns"))
    drawn = of("stratified").positions
    for feature, needing in (
        ("stratified", Term("stratified", "f32", drawn, [0x3F800000] * len(drawn), params=params_of("stratified", 1 << 31))),
        ("ternary", of(values="ternary")),
        ("uniform", of(values="uniform")),
        ("scales", of()),
        ("factors", factors(SHAPE, 1)),
    ):

        def forgotten(index: Json, feature: str = feature) -> None:
            index["required"].remove(feature)

        yield "R6", f"feature-{feature}", FORMAT, BASE, pack_of(needing).build(forgotten)
    for what, keep in (("65535", 65_535), ("2-32", 1 << 32)):
        own = of("stratified", "ternary", keep=keep)
        yield "R6", f"keep-stratified-{what}", FORMAT, BASE, pack_of(own).build()
    for what, bits in (("inf", 0x7F800000), ("minus-inf", 0xFF800000), ("nan", 0x7FC00000)):
        yield "R6", f"scale-{what}", FORMAT, BASE, pack_of(of(scale=bits)).build()
    whole = Term("all", "f32", every(1, 12), [0x3F800000] * 12, alike="tensor")
    yield "R6", "scales-of-floats", FORMAT, BASE, pack_of(whole).build()
    odd = replace(factors(SHAPE, 1), extra=(("scales", "tensor"), ("scale", "3f800000")))
    yield "R6", "scales-of-factors", FORMAT, BASE, pack_of(odd).requires("scales").build()
    for values in ("ternary", "uniform"):

        def bare(index: Json) -> None:
            for key in ("scales", "scale"):
                drop(*TERM, key)(index)

        yield "R6", f"scales-not-of-{values}", FORMAT, BASE, pack_of(of(values=values)).build(bare)
    yield "R6", "nnz-all-tensor", FORMAT, BASE, pack_of(of()).build(put(*TERM, "nnz", 11))
    yield "R6", "nnz-rows-over", FORMAT, BASE, pack_of(of(how="rows", dropped=(1,))).build(put(*TERM, "nnz", 13))


def line_cases() -> Iterator[Case]:
    """Rows and columns."""
    for how in ("rows", "outer"):
        for what, shape in (("scalar", ()), ("vector", (12,)), ("none", (0, 3))):
            count = 0 if 0 in shape else 12 if shape else 1
            own = Term("gaps", "sign", [], [], params={"shift": 0}, alike=how, columns=[128] * 3, lines=Blob(b""))
            yield "R6", f"lines-{how}-of-{what}", FORMAT, None, pack_of(own, tensor("bf16", shape, [0x3F80] * count)).build()
    count = (1 << 24) + 1
    many = Term("gaps", "sign", [], [], params={"shift": 0}, alike="rows", rows=[1], columns=[1], lines=Blob(zstd(b"\1" * count)))
    yield "R6", "lines-over-2-24", FORMAT, None, pack_of(many, tensor("f8_e5m2", (count, 1), 0x2E)).build()

    def flipped(key: str) -> Callable[[Json], None]:
        def edit(index: Json) -> None:
            index["tensors"][0]["terms"][0][key].flip = 1

        return edit

    yield "R8", "lines-hash", CHECKSUM, BASE, pack_of(of(how="rows")).build(flipped("lines"))
    yield "R8", "factors-hash", CHECKSUM, BASE, pack_of(factors(SHAPE, 1)).build(flipped("blob"))
    own = of(how="outer")
    frame = zstd(bytes(own.rows + own.columns))
    yield "R8", "lines-stored-over-raw", FORMAT, BASE, pack_of(replace(own, lines=Blob(frame))).build()
    own.columns[1] = 0
    yield "R9", "lines-column-0", FORMAT, BASE, pack_of(own).build()
    own = of(how="rows")
    yield "R10", "lines-cut", FORMAT, BASE, pack_of(replace(own, lines=Blob(bytes(own.rows[:-1])))).build()
    tall = alike("all", "sign", (256, 1), "rows")
    tall.rows = [128] * 256
    other = replace(tall, lines=Blob(zstd(bytes([128] * 255))))
    yield "R10", "lines-other-size", FORMAT, "scales-bytes", named(other, tensor("f32", (256, 1), 0), "rows")

    def swap(index: Json) -> None:
        term = index["tensors"][0]["terms"][0]
        term["blob"], term["lines"] = term["lines"], term["blob"]

    yield "R7", "lines-first", FORMAT, BASE, pack_of(of(how="rows")).build(swap, late=swap)


def named(own: Added, old: Tensor, name: str) -> bytes:
    """A pack of one term of a tensor of another name."""
    return Pack().patched(name, old, [own]).build()


def mask_cases() -> Iterator[Case]:
    """R9 on the elements that are kept."""
    own = of("stratified", "ternary")
    own.positions, own.codes = own.positions[:-1], own.codes[:-1]
    yield "R9", "stratified-count", FORMAT, BASE, pack_of(own).build()
    for index in ("all", "seeded", "stratified"):
        own = of(index, "ternary", "rows")
        own.rows[own.positions[0] // 3] = 0  # its codes are there all the same
        yield "R9", f"rows-count-{index}", FORMAT, BASE, pack_of(own).build()
    for index in ("gaps", "bitmap"):
        own = of(index, "ternary", "rows")
        own.rows[1] = 0
        yield "R9", f"rows-dropped-{index}", FORMAT, BASE, pack_of(own).build()


def respelt(place: int, edit: Callable[[bytes], bytes]) -> Callable[[Json], None]:
    """Edit the raw bytes of a stream."""

    def spoil(chunk: Json) -> None:
        stored, raw = chunk["streams"][place]
        chunk["streams"][place] = stream(edit(stored if len(stored) == raw else zstandard.decompress(stored)))

    return spoil


def trit_cases() -> Iterator[Case]:
    """Bytes that are no five trits, trits behind the last, and what a zero trit does."""

    def spoilt(edit: Callable[[bytes], bytes], codes: Sequence[int]) -> bytes:
        own = Term("all", "ternary", every(1, 12), list(codes), alike="tensor", scale=0x3C000000)
        return pack_of(replace(own, spoil=respelt(0, edit))).build()

    few = [1, 0, 0, 0, 0, 0, 1, 1, 0, 0, -1, 1]
    yield "R9", "trits-243", FORMAT, BASE, spoilt(lambda raw: b"\xf3" + raw[1:], [0] * 5 + few[5:])
    yield "R9", "trits-255", FORMAT, BASE, spoilt(lambda raw: raw[:1] + b"\xff" + raw[2:], few)
    for what, more in (("first", 9), ("last", 162)):
        yield "R9", f"trits-unused-{what}", FORMAT, BASE, spoilt(lambda raw, more=more: raw[:-1] + bytes([raw[-1] + more]), few)  # type: ignore[misc]
    yield "R8", "codes-raw-ternary-long", FORMAT, BASE, spoilt(lambda raw: raw + b"\0", few)
    yield "R8", "codes-raw-ternary-short", FORMAT, BASE, spoilt(lambda raw: raw[:-1], few)
    zeros = tensor("f32", (3,), [0x80000000, 0x80000000, 0x7FA00001])
    nothing = Term("all", "ternary", [0, 1, 2], [0, 0, 0], alike="tensor")
    made = Pack().patched("nothing", zeros, [nothing])
    touched = tensor("f32", (3,), [0, 0, 0x7FC00000])
    made.result["nothing"], made.entries[0]["digest"] = touched, touched.root
    yield "R12", "result-zero-trits", CHECKSUM, "ternary-zeros-of-terms", made.build()


def level_cases() -> Iterator[Case]:
    """R8 and R9 on levels."""
    codes = [3, -4, 0, 0, 1, -1, 7, 0, 0, 2, 1, 0]
    counts = {symbol: 0 for symbol in range(15)}
    for code in codes:
        counts[2 * code if code >= 0 else -2 * code - 1] += 1

    def spelt(edit: Callable[[Json], object], own: Sequence[int] = codes, coder: tuple[int, int] = (10, 4)) -> bytes:
        """A pack whose levels are taken apart, edited and put together again."""
        precision, lanes = coder
        symbols = [2 * code if code >= 0 else -2 * code - 1 for code in own]
        row = exact.scaled({symbol: symbols.count(symbol) for symbol in sorted(set(symbols))}, 1 << precision)
        tiles = exact.tiles_of([0] * len(symbols), symbols, [row], {"precision": precision, "lanes": lanes}, None)
        said: Json = {"head": [precision, lanes, min(row), max(row)], "tiles": tiles, "more": b""}
        said["frequencies"] = [row.get(symbol, 0) for symbol in range(min(row), max(row) + 1)]
        edit(said)
        numbers = b"".join(said.get("spelt", {}).get(i, exact.varint(count)) for i, count in enumerate(said["frequencies"]))
        raw = bytes(said["head"]) + numbers + exact.spell_tiles(said["tiles"]) + said["more"]
        t = Term("all", "uniform", every(1, 12), list(own), alike="tensor", scale=0x3C000000)
        return pack_of(replace(t, spoil=lambda chunk: chunk.update(streams=[stream(raw)]))).build()

    def keep(said: Json) -> None:
        """As it is."""

    def frequency(at: int, by: int) -> Callable[[Json], None]:
        def edit(said: Json) -> None:
            said["frequencies"][at] += by

        return edit

    def moved(at: int, to: int) -> Callable[[Json], None]:
        """A symbol at the edge without a frequency, which another has."""

        def edit(said: Json) -> None:
            said["frequencies"].insert(at if at == 0 else len(said["frequencies"]), 0)
            said["head"][2 if at == 0 else 3] = to

        return edit

    def state(value: int) -> Callable[[Json], None]:
        def edit(said: Json) -> None:
            said["tiles"]["states"][0][1] = value

        return edit

    def words(said: Json, edit: Callable[[list[int]], object]) -> None:
        edit(said["tiles"]["words"][0])
        said["tiles"]["sizes"][0] = [len(said["tiles"]["words"][0])]

    long = [0, 1, -1, 2, 5, -7] * 2
    faults: dict[str, bytes] = {
        "precision-9": spelt(keep, coder=(9, 4)),
        "precision-13": spelt(keep, coder=(13, 4)),
        "lanes-2": spelt(keep, coder=(10, 2)),
        "lanes-64": spelt(keep, coder=(10, 64)),
        "symbol-255": spelt(keep, [-128, *codes[1:]]),
        "last-before-first": spelt(lambda said: said["head"].__setitem__(3, 0) or said["head"].__setitem__(2, 1)),
        "frequency-first-0": spelt(moved(0, 3), [3, 2, 4, 3, 2, 3, 2, 4, 4, 2, 2, 2]),
        "frequency-last-0": spelt(moved(-1, 15)),
        "frequencies-over": spelt(frequency(0, 1)),
        "frequencies-under": spelt(frequency(0, -1)),
        "frequency-spelt-long": spelt(lambda said: said.update(spelt={10: b"\x80\x00"})),
        "state-low": spelt(state((1 << 15) - 1)),
        "state-high": spelt(state(1 << 31)),
        "state-end": spelt(state(1 << 15 | 1 << 20)),
        "word-missing": spelt(lambda said: words(said, list.pop), long, (12, 1)),
        "word-more": spelt(lambda said: words(said, lambda row: row.append(0))),
        "bytes-more": spelt(lambda said: said.update(more=b"\0")),
        "bytes-cut": spelt(lambda said: said["tiles"]["states"][0].pop()),
    }
    for what, data in faults.items():
        yield "R9", f"levels-{what}", FORMAT, BASE, data
    for what, raw in (("none", b""), ("short", b"\x0a\x01\0\0\x80\x08\0\0\x80\0"), ("long", bytes(514 + 131 + 24 + 1))):
        own = replace(of(values="uniform"), spoil=lambda chunk, raw=raw: chunk.update(streams=[stream(raw)]))  # type: ignore[misc]
        yield "R8", f"codes-raw-uniform-{what}", FORMAT, BASE, pack_of(own).build()
    nothing = Term("gaps", "uniform", [], [], params={"shift": 0}, alike="tensor")
    nothing.spoil = lambda chunk: chunk["streams"].__setitem__(1, stream(b"\0"))
    yield "R8", "codes-raw-uniform-of-nothing", FORMAT, BASE, pack_of(nothing).build()


def huge_factors() -> bytes:
    """Factors of 2^27 + 2^16 + 2^11 bytes, of a tensor of 2^27 elements, all zero."""
    digests = [xxhash.xxh3_128_digest(bytes(CHUNK))] * 128
    entry: Json = {"name": "a", "kind": "delta", "dtype": "f8_e5m2", "shape": [256, 1 << 19], "digest": Root(digests)}
    entry |= {"base": {"digest": Root(digests)}, "digests": Blob(b"".join(digests * 2))}
    entry["terms"] = [Factors([[]] * 256, [[]] * 256, ([0] * 256, [0] * 256), 8, blob=Blob(b"\0")).entry(1 << 27)]
    pack = Pack().requires("factors")
    pack.entries.append(entry)
    pack.extra["base"] = pack.index_base() | {"tensors": 1}
    return pack.build()


def factor_cases() -> Iterator[Case]:
    """Factors."""
    one = factors(SHAPE, 1)
    none = Factors([], [], ([], []))
    yield "R6", "rank-0", FORMAT, BASE, pack_of(none).build()
    for what, shape in (("rows", (4, 3)), ("columns", (3, 41))):
        own = factors(shape, min(shape) + 1)
        data = pack_of(own).build() if what == "rows" else named(own, floats("bf16", shape), "w")
        yield "R6", f"rank-over-{what}", FORMAT, BASE if what == "rows" else "index-bitmap", data
    full = Factors([[0] * 257] * 257, [[-1] * 257] * 257, ([0x3A800000] * 257, [0x3F800000] * 257), 2)
    yield "R6", "rank-257", FORMAT, None, pack_of(full, tensor("f8_e5m2", (257, 257), 0x2E)).build()
    for bits in (1, 3, 16):
        yield "R6", f"bits-{bits}", FORMAT, BASE, pack_of(factors(SHAPE, 1, bits)).build()
    for what, old in (("scalar", tensor("bf16", (), 0x3F80)), ("vector", floats("bf16", (12,))), ("none", tensor("bf16", (0, 3), []))):
        empty = Factors([[0] * old.numel], [[0]], ([0], [0]))
        yield "R6", f"factors-of-{what}", FORMAT, None, pack_of(empty, old).build()
    for index, more in (("bitmap", {}), ("seeded", params_of("seeded"))):
        own = replace(one, index=index, extra=tuple(more.items()))
        yield "R6", f"factors-{index}", FORMAT, BASE, pack_of(own).build()
    yield "R6", "nnz-factors", FORMAT, BASE, pack_of(replace(one, extra=(("nnz", 11),))).build()
    yield "R6", "factor-of-factors", FORMAT, BASE, pack_of(replace(one, factor=0x7F800000)).build()
    yield "R8", "factors-over-128-mib", LIMIT, None, huge_factors()
    small = factors(SHAPE, 1, 2)
    yield "R8", "factors-stored-over-raw", FORMAT, BASE, pack_of(replace(small, blob=Blob(zstd(small.raw())))).build()
    yield "R10", "factors-cut", FORMAT, BASE, pack_of(replace(small, blob=Blob(small.raw()[:-1]))).build()
    wide = Factors([[0] * 3], [[0] * 41], ([0x3A800000], [0x3F800000]), 8)
    other = replace(wide, blob=Blob(zstd(wide.raw() + b"\0")))
    yield "R10", "factors-other-size", FORMAT, "index-bitmap", named(other, floats("bf16", (3, 41)), "w")
    wide = factors((3, 41), 1)
    for what, at in (("u", 9), ("v", 30)):  # behind three codes of four bits, and behind 41
        own = replace(wide, spoil=lambda raw, at=at: raw[:at] + bytes([raw[at] | 0x80]) + raw[at + 1 :])  # type: ignore[misc]
        yield "R9", f"factors-unused-bit-{what}", FORMAT, "index-bitmap", named(own, floats("bf16", (3, 41)), "w")
    for what, scales in (
        ("u-inf", ([0x7F800000], [0x3F800000])),
        ("u-nan", ([0x7FC00000], [0x3F800000])),
        ("v-minus-inf", ([0x3F800000], [0xFF800000])),
    ):
        yield "R9", f"scale-factors-{what}", FORMAT, BASE, pack_of(replace(one, scales=scales)).build()
