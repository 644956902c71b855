"""The exact chunks of exact.json: valid ones, and ones with a fault, for make_vectors.py."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import zstandard
from vectors.exact import (
    KINDS,
    SIZES,
    Edit,
    Json,
    Kind,
    Vector,
    dense,
    edited,
    kind_of,
    noise,
    planes,
    shared,
    sparse,
    spell,
    spell_table,
    stream,
    varint,
)

BF16, U16 = KINDS["bf16"], kind_of("u16")
Make = Callable[[], Json]


def patterns(width: int) -> list[int]:
    """Zeros, ones, the least and the greatest of both signs, and what are infinities and NaNs in some type."""
    half, top = 1 << width - 1, 1 << width
    found = [0, 1, half - 1, half, half + 1, top - 1, top - 2, half // 2, half + half // 2]
    return [*found, *(half - (half >> place) for place in range(2, 8)), *((top - (half >> place) + 1) % top for place in range(2, 8))]


def pairs(dtype: str) -> tuple[list[int], list[int]]:
    """Every pattern against several, and small and large differences."""
    kind = kind_of(dtype)
    some, top = patterns(kind.width), 1 << kind.width
    base = [x for x in some for _ in range(4)]
    tuned = [y for i in range(len(some)) for y in (some[i], some[(5 * i + 1) % len(some)], (some[i] + 1) % top, (some[i] - 3) % top)]
    more = len(base) % 2  # an even number, for complex elements
    return base + [1] * more, tuned + [2] * more


def wave(count: int, seed: int) -> tuple[list[int], list[int]]:
    """`bf16` weights of a few exponents, and a fine-tune near them."""
    base = [0x3C00 + z % 0x300 + (z >> 40 & 1) * 0x8000 for z in noise(count, seed)]
    tuned = [x + ((z % 16).bit_count() - 2) * (1 + (z >> 8) % 13) for x, z in zip(base, noise(count, seed + 1), strict=True)]
    return base, tuned


def few(count: int, places: Sequence[int]) -> tuple[list[int], list[int]]:
    """Ones, of which some become a little more."""
    base = [0x3F80] * count
    return base, [x + (3 if i in set(places) else 0) for i, x in enumerate(base)]


EXAMPLE = ([0x3F80, 0x3F80, 0x3F80, 0xBF80, 0x3F80, 0x4000], [0x3F81, 0x3F80, 0x3F7F, 0xBF81, 0x3F81, 0x4000])


def example() -> Json:
    """The example of section 8."""
    chunk = dense(*EXAMPLE, BF16)
    chunk["table"]["classes"][0]["frequencies"] = [[341, 171, 512]]
    chunk["tiles"]["states"] = [[0x20600, 0x48080, 0x2FDC0, 0x10200]]
    return chunk


def valid() -> Iterator[tuple[str, Vector]]:
    """Every valid chunk, by name."""
    yield "empty", Vector("bf16", [], [], b"")
    yield "equal", Vector("bf16", EXAMPLE[0], EXAMPLE[0], b"\0")
    yield "example", Vector("bf16", *EXAMPLE, spell(example()))
    for dtype in [*KINDS, *SIZES]:
        base, tuned = pairs(dtype)
        kind = kind_of(dtype)
        yield f"dense-{dtype}", Vector(dtype, base, tuned, spell(dense(base, tuned, kind, precision=12)))
        modes = ["coded" if place % 2 == 0 else "stored" for place in range(kind.width // 8)]
        yield f"planes-{dtype}", Vector(dtype, None, tuned, spell(planes(tuned, kind, modes)))
    base, tuned = wave(160, 1)
    for precision in (10, 11, 12):
        yield f"precision-{precision}", Vector("bf16", base, tuned, spell(dense(base, tuned, BF16, precision=precision)))
    for lanes in (1, 4, 8, 32):
        yield f"lanes-{lanes}", Vector("bf16", base, tuned, spell(dense(base, tuned, BF16, lanes=lanes)))
    for name, how in hows().items():
        yield name, Vector("bf16", base, tuned, spell(dense(base, tuned, BF16, **how)))
    base, tuned = few(40 * 128, [9, 4000])
    framed = dense(base, tuned, BF16, starts=[[0], [0]], steps=[None, [0] * 64], classes=[1] * 40) | {"zstd": True}
    yield "streams-zstd", Vector("bf16", base, tuned, spell(framed))
    yield from valid_steps()
    yield from valid_far()
    yield from valid_tiles()
    yield from valid_planes()
    yield from valid_sparse()
    yield from valid_shared()


def hows() -> dict[str, dict[str, Any]]:
    """Ranges and classes for the numbers of `wave(160, 1)`."""
    return {
        "ranges-2": {"starts": [[0, 121]]},
        "ranges-16": {"starts": [[0, *range(100, 114), 122]]},
        "ranges-at-255": {"starts": [[0, 255]]},
        "classes": {"starts": [[0], [0, 122]], "classes": [0, 1]},
        "classes-first-unused": {"starts": [[0, 120], [0]], "classes": [1] * 2},
    }


def valid_steps() -> Iterator[tuple[str, Vector]]:
    """Staircases: steps that go down and wrap, of both classes."""
    base, _ = wave(160, 3)
    steps = [(-i * i) % 65_536 for i in range(64)]
    tuned = [(x + steps[x >> 1 & 63] + (i % 9 == 0)) % 65_536 for i, x in enumerate(base)]
    yield "staircase", Vector("bf16", base, tuned, spell(dense(base, tuned, BF16, steps=[steps])))
    two = dense(base, tuned, BF16, starts=[[0], [0]], steps=[None, steps], classes=[0, 1])
    yield "staircase-class-1", Vector("bf16", base, tuned, spell(two))
    wide = [x << 16 | i * 40_503 % 65_536 for i, x in enumerate(base)]
    tops = [i * 0x1000001 for i in range(64)]
    moved = [(x + tops[x >> 17 & 63]) % (1 << 32) for x in wide]
    yield "staircase-f32", Vector("f32", wide, moved, spell(dense(wide, moved, KINDS["f32"], steps=[tops])))
    halves = [x % 32_768 for x in base]
    moved = [x + (x >> 4 & 63) for x in halves]
    yield "staircase-f16", Vector("f16", halves, moved, spell(dense(halves, moved, KINDS["f16"], steps=[list(range(64))])))


def valid_far() -> Iterator[tuple[str, Vector]]:
    """Signs that change, with least far exponents of 0 and more, and exponents below it."""
    base, tuned = wave(300, 5)
    tuned = [y ^ 0x8000 if i % 3 == 0 else y for i, y in enumerate(tuned)]
    yield "far", Vector("bf16", base, tuned, spell(dense(base, tuned, BF16, far=0)))
    yield "far-some", Vector("bf16", base, tuned, spell(dense(base, tuned, BF16, far=121)))
    tuned = [y ^ 0x8000 if i % 3 else 0x7FC1 for i, y in enumerate(tuned)]
    yield "far-to-255", Vector("bf16", base, tuned, spell(dense(base, tuned, BF16, far=128)))
    halves, moved = [x % 65_536 for x in base], [y ^ 0x8000 for y in base]
    yield "far-f16", Vector("f16", halves, moved, spell(dense(halves, moved, KINDS["f16"], far=0)))


def valid_tiles() -> Iterator[tuple[str, Vector]]:
    """More than one tile, and lengths about the number of lanes; one symbol with all of the frequency."""
    base, tuned = few(65_536 + 5, [7, 65_535, 65_536, 65_540])
    yield "tiles-2", Vector("bf16", base, tuned, spell(dense(base, tuned, BF16, precision=12)))
    base, tuned = wave(33, 8)
    for count in (1, 3, 4, 5, 31, 32, 33):
        chunk = dense(base[:count], tuned[:count], BF16, lanes=32 if count > 5 else 4)
        yield f"length-{count}", Vector("bf16", base[:count], tuned[:count], spell(chunk))
    one = [x + 1 for x in base]
    yield "one-symbol", Vector("bf16", base, one, spell(dense(base, one, BF16, precision=12)))


def valid_planes() -> Iterator[tuple[str, Vector]]:
    """Every mode of a plane, and planes of what is added."""
    base, tuned = wave(60, 11)
    for low in ("stored", "coded"):
        yield f"planes-{low}", Vector("bf16", base, tuned, spell(planes(tuned, BF16, [low, "coded"])))
    repeated = [0x3F80 + i % 2 for i in range(600)]
    yield "planes-constant", Vector("bf16", None, repeated, spell(planes(repeated, BF16, ["zstd", "constant"])))
    long = [0x3F80] * 65_536 + repeated
    yield "planes-tiles", Vector("bf16", None, long, spell(planes(long, BF16, ["tiles", "constant"])))
    modes = ["stored", "coded"]
    yield "planes-added", Vector("bf16", base, tuned, spell(planes(tuned, BF16, modes, base)))
    wraps = ([0xFFFF, 0, 5], [1, 0xFFF0, 5])
    yield "planes-added-wraps", Vector("u16", *wraps, spell(planes(wraps[1], U16, modes, wraps[0])))


def valid_sparse() -> Iterator[tuple[str, Vector]]:
    """Few numbers, in a chunk of several tiles; unchanged ones among them; the rest dense or planes."""
    for shift in (1, 4, 15):
        places = [0, 3, 130, 159]
        base, tuned = few(160, places)
        inner = dense([base[i] for i in places], [tuned[i] for i in places], BF16)
        yield f"sparse-shift-{shift}", Vector("bf16", base, tuned, spell(sparse(places, shift, inner)))
    places = [65_535, 2 * 65_536]
    base, tuned = few(2 * 65_536 + 2, places)
    yield "sparse-several-tiles", Vector("bf16", base, tuned, spell(sparse(places, 12, dense([0x3F80] * 2, [0x3F83] * 2, BF16))))
    base, tuned = few(40, [4, 9])
    places = [4, 7, 9]
    inner = planes([tuned[i] for i in places], BF16, ["stored", "constant"])
    yield "sparse-planes", Vector("bf16", base, tuned, spell(sparse(places, 2, inner)))
    inner = planes([tuned[i] for i in places], BF16, ["stored", "constant"], [base[i] for i in places])
    yield "sparse-planes-added", Vector("bf16", base, tuned, spell(sparse(places, 2, inner)))


def valid_shared() -> Iterator[tuple[str, Vector]]:
    """Tables that chunks share: each number of lanes, any number of a table, classes, every kind of numbers, inside `sparse`."""
    base, tuned = wave(160, 1)
    for lanes in (1, 4, 8, 32):
        chunk, blob = shared(dense(base, tuned, BF16, lanes=lanes), lanes=lanes)
        yield f"shared-lanes-{lanes}", Vector("bf16", base, tuned, spell(chunk), [blob])
    chunk, blob = shared(dense(base, tuned, BF16, **hows()["classes"]), 40)
    yield "shared-classes-number-40", Vector("bf16", base, tuned, spell(chunk), [*[b""] * 40, blob, b""])
    chunk, blob = shared(dense(base, tuned, BF16, besides={0: 1, 50: 1}, starts=[[0, 121]]))
    yield "shared-symbols-unused", Vector("bf16", base, tuned, spell(chunk), [blob])
    base, tuned = [x % 16 for x in base], [x % 16 + x % 3 for x in base]
    for dtype in ("f8_e4m3fn", "u16", "f64"):
        chunk, blob = shared(dense(base, tuned, kind_of(dtype)))
        yield f"shared-{dtype}", Vector(dtype, base, tuned, spell(chunk), [blob])
    base, tuned = few(40 * 128, [9, 4000])
    chunk, blob = shared(dense(base, tuned, BF16, steps=[[0] * 64]))
    framed = stream(spell_table(chunk["table"], 16), True)
    assert len(framed) < len(blob)
    yield "shared-zstd", Vector("bf16", base, tuned, spell(chunk), [framed])
    chunk, blob = shared(dense([0x3F80] * 2, [0x3F83] * 2, BF16, lanes=1), 1, 1)
    yield "shared-sparse", Vector("bf16", base, tuned, spell(sparse([9, 4000], 8, chunk)), [b"", blob])


def put(*path: Any) -> Edit:
    """Set the value at a path (its last item is the value)."""

    def edit(chunk: Any) -> None:
        *keys, last, value = path
        for key in keys:
            chunk = chunk[key]
        chunk[last] = value

    return edit


def invalid() -> Iterator[tuple[str, str, Vector]]:
    """Every chunk with a fault: its name, the rule that it breaks, the chunk."""
    base, tuned = wave(160, 1)

    def bad(dtype: str, given: Sequence[int] | None, count: Sequence[int], chunk: bytes) -> Vector:
        return Vector(dtype, given, [0] * len(count), chunk)

    for name, rule, make, edit in (*dense_faults(), *table_faults(), *tile_faults()):
        yield name, rule, bad("bf16", base, base, edited(make, edit))
    yield "bytes-none", "R9", bad("bf16", base, base, b"")
    yield "bytes-for-no-elements", "R9", bad("bf16", [], [], b"\0")
    yield "bytes-after", "R9", bad("bf16", base, base, b"\0\0")
    yield "form-5", "R9", bad("bf16", base, base, b"\x05")
    yield "form-255", "R9", bad("bf16", base, base, b"\xff")
    for form in (0, 2, 3):
        chunk = {0: b"\0", 2: spell(normal()), 3: edited(few_places, lambda chunk: None)}[form]
        yield f"no-base-{form}", "R9", bad("bf16", None, base, chunk)
    for name, rule, dtype, row, tables in shared_faults():
        yield name, rule, Vector(dtype, base if dtype == "bf16" else [0] * 160, [0] * 160, row, tables)
    yield "no-base-4", "R9", Vector("bf16", None, [0] * 160, spell(shared(normal())[0]), [shared(normal())[1]])
    yield "state-last-another", "R9", bad("bf16", *EXAMPLE, edited(example, put("tiles", "states", 0, 2, 0x2FDC0 + 1024)))
    yield "far-above-mask", "R9", bad("f16", [0] * 8, [0] * 8, spell(dense([0] * 8, [0] * 8, KINDS["f16"], far=32)))
    for dtype in ("f8_e4m3fn", "i32", "f64"):
        for name, row in type_faults(dtype):
            yield f"{name}-{dtype}", "R9", bad(dtype, [0] * 160, [0] * 160, row)
    for name, rule, edit in plane_faults():
        yield name, rule, bad("bf16", base, base, edited(lambda: planes(tuned, BF16, ["coded", "zstd"]), edit))
    yield "planes-added-alone", "R9", bad("bf16", None, base, edited(lambda: planes(tuned, BF16, ["coded", "zstd"]), put("kind", 1)))
    sparse_base = few(160, [])[0]
    for name, edit in sparse_faults():
        yield name, "R9", bad("bf16", sparse_base, sparse_base, edited(few_places, edit))


def normal() -> Json:
    """A dense chunk of several ranges."""
    return dense(*wave(160, 1), BF16, starts=[[0, 121]])


def classes() -> Json:
    """One with two classes."""
    return dense(*wave(160, 1), BF16, **hows()["classes"])


def one_symbol() -> Json:
    """One whose numbers all have the symbol 2."""
    base, _ = wave(160, 1)
    return dense(base, [x + 1 for x in base], BF16)


def normal_with(how: dict[str, Any]) -> Make:
    """A dense chunk made in another way."""
    return lambda: dense(*wave(160, 1), BF16, **how)


def untouched(chunk: Json) -> None:
    """What is wrong is how the chunk was made."""


def few_places(shift: int = 4) -> Json:
    """A sparse chunk."""
    return sparse([0, 3, 130, 159], shift, dense([0x3F80] * 4, [0x3F83] * 4, BF16))


def near_places(shift: int) -> Json:
    """One whose gaps are shorter than they might be."""
    return sparse([0, 3, 40], shift, dense([0x3F80] * 3, [0x3F83] * 3, BF16))


Fault = tuple[str, str, Make, Edit]


def dense_faults() -> Iterator[Fault]:
    """Faults of streams and varints."""
    yield "cut", "R9", normal, lambda chunk: chunk["tiles"].update(raw=[chunk["tiles"]["raw"][0][:-1]])
    yield "dense-bytes-after", "R9", normal, put("more", b"\0")
    raw = spell_table(normal()["table"], 16)
    frame = zstandard.ZstdCompressor(level=19).compress(raw * 9)
    yield "table-none", "R9", normal, put("table_stream", b"\0\0")
    yield "table-too-long", "R9", normal, put("table_stream", varint(32_769) + varint(len(frame)) + frame)
    yield "table-stored-over-raw", "R9", normal, put("table_stream", varint(len(raw)) + varint(len(raw) + 1) + raw + b"\0")
    yield "table-no-frame", "R10", normal, put("table_stream", varint(len(raw) + 1) + varint(len(raw)) + raw)
    padded = varint(len(raw)) + bytes([len(raw) | 128, 0]) + raw
    yield "varint-zero-behind", "R9", normal, put("table_stream", padded)
    yield "varint-11-bytes", "R9", normal, lambda chunk: chunk["tiles"].update(spelt={0: b"\x80" * 10 + b"\0\0"})
    yield "classes-short", "R9", classes, put("classes", bytes(1))
    yield "classes-long", "R9", classes, put("classes", bytes([0, 1, 0]))
    yield "class-2", "R9", classes, put("classes", bytes([0, 2]))


def table_faults() -> Iterator[Fault]:
    """Faults of tables."""
    for field, values in (("precision", (9, 13)), ("lanes", (2, 16, 64))):
        for value in values:
            yield f"table-{field}-{value}", "R9", normal_with({field: value}), untouched
    for flags in (4, 128):
        yield f"table-flags-{flags}", "R9", normal, put("table", "flags", flags)
    yield "table-bytes-after", "R9", normal, put("table", "more", b"\0")
    yield "table-cut", "R9", normal, lambda chunk: chunk["table"]["classes"][0]["frequencies"][1].pop()
    yield "ranges-0", "R9", normal, put("table", "classes", [{"count": 0, "ranges": [], "frequencies": [], "steps": None}])
    yield "ranges-17", "R9", normal_with({"starts": [[0, *range(107, 123)]]}), untouched
    yield "range-first-not-0", "R9", normal, put("table", "classes", 0, "ranges", 0, 0, 1)
    yield "range-twice", "R9", normal_with({"starts": [[0, 121, 121]]}), untouched
    yield "range-backwards", "R9", normal_with({"starts": [[0, 122, 121]]}), untouched
    yield "symbols-backwards", "R9", normal, put("table", "classes", 0, "ranges", 0, [0, 9, 8])
    yield "frequency-first-0", "R9", one_symbol, lambda chunk: widen(chunk, first=True)
    yield "frequency-last-0", "R9", normal, lambda chunk: widen(chunk, first=False)
    yield "frequencies-sum-less", "R9", normal, lambda chunk: add(chunk, -1)
    yield "frequencies-sum-more", "R9", normal, lambda chunk: add(chunk, 1)
    yield "frequency-too-large", "R9", normal, put("table", "classes", 0, "frequencies", 0, 1, 1025)
    yield "symbol-above-top", "R9", normal_with({"besides": {112: 1}}), untouched
    yield "symbol-far-without-flag", "R9", normal_with({"besides": {128: 1}}), untouched
    yield "symbol-between-near-and-far", "R9", normal_with({"besides": {127: 1}, "far": 100}), untouched
    yield "symbol-far-above-mask", "R9", normal_with({"besides": {184: 1}, "far": 200}), untouched
    yield "step-too-large", "R9", lambda: dense(*wave(160, 1), BF16, steps=[[0] * 64]), step_too_large


def step_too_large(chunk: Json) -> None:
    """A step of 2^16, which varints can spell and numbers cannot."""
    raw = spell_table(chunk["table"], 16)
    at = 4  # precision, lanes, flags, ranges
    raw = raw[:at] + varint(1 << 16) + raw[at + 1 :]
    chunk["table_stream"] = varint(len(raw)) + varint(len(raw)) + raw


def widen(chunk: Json, first: bool) -> None:
    """Let a range have a symbol more, of frequency zero."""
    own = chunk["table"]["classes"][0]
    if first:
        own["ranges"][0][1] -= 1
        own["frequencies"][0].insert(0, 0)
    else:
        own["ranges"][0][2] += 1
        own["frequencies"][0].append(0)


def add(chunk: Json, more: int) -> None:
    """Change a frequency."""
    row = chunk["table"]["classes"][0]["frequencies"][0]
    row[row.index(max(row))] += more


def tile_faults() -> Iterator[Fault]:
    """Faults of tiles."""

    def state(value: int) -> Edit:
        return put("tiles", "states", 0, 1, value)

    yield "state-too-small", "R9", normal, state((1 << 15) - 1)
    yield "state-too-large", "R9", normal, state(1 << 31)
    yield "state-another", "R9", normal, lambda chunk: state(chunk["tiles"]["states"][0][1] ^ 1)(chunk)
    yield "words-one-less", "R9", normal, lambda chunk: words(chunk, chunk["tiles"]["words"][0][:-1])
    yield "words-one-more", "R9", normal, lambda chunk: words(chunk, [*chunk["tiles"]["words"][0], 0])
    yield "words-too-many", "R9", normal, lambda chunk: words(chunk, [0] * 161)
    yield "raw-bits-one-less", "R9", normal, lambda chunk: bits(chunk, -1)
    yield "raw-bits-one-more", "R9", normal, lambda chunk: bits(chunk, 1)
    yield "raw-bits-too-many", "R9", normal, lambda chunk: bits(chunk, 62 * 160 + 1 - chunk["tiles"]["sizes"][0][1])
    yield "raw-bit-unused", "R9", normal, unused_bit


def words(chunk: Json, given: list[int]) -> None:
    """Give a tile other words."""
    chunk["tiles"]["words"] = [given]
    chunk["tiles"]["sizes"][0][0] = len(given)


def bits(chunk: Json, more: int) -> None:
    """Let a tile have more raw bits, zeros, or fewer."""
    sizes, raw = chunk["tiles"]["sizes"][0], chunk["tiles"]["raw"][0]
    sizes[1] += more
    count = -(-sizes[1] // 8)
    number = int.from_bytes(raw, "little") & (1 << sizes[1]) - 1
    chunk["tiles"]["raw"] = [number.to_bytes(count, "little")]


def unused_bit(chunk: Json) -> None:
    """Set the last bit of the last byte."""
    assert chunk["tiles"]["sizes"][0][1] % 8
    raw = bytearray(chunk["tiles"]["raw"][0])
    raw[-1] |= 128
    chunk["tiles"]["raw"] = [bytes(raw)]


def type_faults(dtype: str) -> Iterator[tuple[str, bytes]]:
    """What numbers of a type do not have."""
    for name, chunk in type_chunks(kind_of(dtype)):
        yield name, spell(chunk)


def type_chunks(kind: Kind) -> Iterator[tuple[str, Json]]:
    """Dense chunks of 160 zeros whose tables are none for numbers of a kind."""
    zeros = [0] * 160
    yield "far", with_far(dense(zeros, zeros, kind), 0)
    yield "staircase", dense(zeros, zeros, kind, steps=[[0] * 64])
    if kind.mask < 255:
        yield "range-above-mask", dense(zeros, zeros, kind, starts=[[0, kind.mask + 1]])


def with_far(chunk: Json, least: int) -> Json:
    """Say that there are far symbols."""
    chunk["table"].update(flags=2, far=least)
    return chunk


def plane_faults() -> Iterator[tuple[str, str, Edit]]:
    """Faults of planes: the first is coded, the second a frame."""
    yield "planes-kind-2", "R9", put("kind", 2)
    yield "plane-mode-5", "R9", put("planes", 1, "mode", 5)
    yield (
        "plane-tiles-in-tiles",
        "R9",
        lambda chunk: chunk["planes"].insert(1, {"mode": 4, "tiles": [{"mode": 4, "tiles": [chunk["planes"].pop()]}]}),
    )
    yield "plane-cut", "R9", lambda chunk: chunk["planes"][1].update(mode=0, bytes=bytes(159))
    yield "plane-frame-too-long", "R9", lambda chunk: chunk["planes"][1].update(bytes=bytes(385))
    yield "plane-frame-other-size", "R10", lambda chunk: chunk["planes"][1].update(bytes=zstandard.ZstdCompressor().compress(bytes(161)))
    yield "plane-word-more", "R9", lambda chunk: words(chunk["planes"][0], [*chunk["planes"][0]["tiles"]["words"][0], 0])

    def two_classes(chunk: Json) -> None:
        table = chunk["planes"][0]["table"]
        table.update(flags=1, classes=table["classes"] * 2)

    yield "plane-two-classes", "R9", two_classes
    yield "plane-far", "R9", lambda chunk: chunk["planes"][0]["table"].update(flags=2, far=0)


def another_shift(shift: int) -> Edit:
    """Take the sparse chunk of another shift."""
    return lambda chunk: chunk.update(few_places(shift))


def sparse_faults() -> Iterator[tuple[str, Edit]]:
    """Faults of positions; what follows them is valid."""
    for shift in (0, 16):
        yield f"sparse-shift-{shift}", another_shift(shift)
    yield "sparse-none", lambda chunk: chunk.update(count=0, gaps=b"", inner={"form": 1, "kind": 0, "planes": []})
    yield "sparse-more-than-all", put("count", 161)
    yield "sparse-one-less", put("count", 3)
    yield "sparse-gaps-too-long", lambda chunk: chunk.update(gaps=chunk["gaps"] + bytes(20))
    yield "sparse-gaps-too-short", lambda chunk: chunk.update(gaps=chunk["gaps"][:2])
    yield "sparse-gaps-unused-byte", lambda chunk: chunk.update(near := near_places(4), gaps=near["gaps"] + b"\0")
    yield "sparse-gaps-one-more", lambda chunk: chunk.update(gaps=chunk["gaps"][:-1] + bytes([chunk["gaps"][-1] | 128]))
    yield "sparse-leaves-chunk", lambda chunk: chunk.update(gaps=sparse([0, 3, 130, 160], 4, {})["gaps"])
    yield "sparse-in-sparse", lambda chunk: chunk.update(inner=sparse([1], 1, dense([0], [3], BF16)))
    yield "sparse-inner-equal", lambda chunk: chunk.update(inner={"form": 0})

    def low_bit(chunk: Json) -> None:
        chunk.update(near_places(5))
        raw = bytearray(chunk["gaps"])
        raw[1] |= 128
        chunk["gaps"] = bytes(raw)

    yield "sparse-unused-low-bit", low_bit


def shared_faults() -> Iterator[tuple[str, str, str, bytes, list[bytes]]]:
    """Tables that there are not, that are damaged, or that are none for the numbers of the chunk: name, rule, type, chunk, tables."""
    chunk, blob = shared(normal())
    row, raw = spell(chunk), spell_table(chunk["table"], 16)
    yield "shared-no-tables", "R9", "bf16", row, []
    yield "shared-number-too-large", "R9", "bf16", spell(chunk | {"reference": 4}), [blob]
    yield "shared-number-over-64-bits", "R9", "bf16", spell(chunk | {"reference": 1 << 66}), [blob]
    yield "shared-reference-longer-than-it-need-be", "R9", "bf16", row[:1] + bytes([row[1] | 128, 0]) + row[2:], [blob]
    yield "shared-blob-none", "R9", "bf16", row, [b""]
    yield "shared-blob-cut", "R9", "bf16", row, [blob[:-1]]
    yield "shared-blob-bytes-after", "R9", "bf16", row, [blob + b"\0"]
    yield "shared-blob-no-frame", "R10", "bf16", row, [varint(len(raw) + 1) + varint(len(raw)) + raw]
    yield "shared-table-lanes-2", "R9", "bf16", row, [stream(raw[:1] + b"\2" + raw[2:])]
    yield "shared-other-table", "R9", "bf16", row, [shared(dense(*wave(160, 2), BF16))[1]]
    two, blob = shared(classes())
    yield "shared-class-2", "R9", "bf16", spell(two | {"classes": bytes([0, 2])}), [blob]
    kind = kind_of("f8_e4m3fn")
    for name, made in type_chunks(kind):
        yield f"shared-{name}-f8_e4m3fn", "R9", "f8_e4m3fn", spell(shared(made)[0]), [shared(made)[1]]
