"""The valid vectors, by name, for make_vectors.py only."""

from __future__ import annotations

import random
from collections.abc import Iterator

from vectors import scalar
from vectors.assemble import BASE_FILES, Blob, Pack, Tensor, Term, zstd
from vectors.scalar import CHUNK, ITEMSIZE, TILE

ONE = 0x3F80  # 1.0 as bf16
SMALL = 0x3A80  # 2^-10 as bf16
BASE_BITS = {
    "f64": 0x3FB999999999999A,
    "f32": 0x3DCCCCCD,
    "f16": 0x2E66,
    "bf16": 0x3DCD,
    "f8_e4m3fn": 0x1D,
    "f8_e5m2": 0x2E,
}
# 0, -0, smallest, largest, -inf (-largest where there is none), NaN with payload, -NaN, 1, -1, odd numbers
SPECIAL = {
    "f64": "0 8000000000000000 1 7fefffffffffffff fff0000000000000 7ff4000000000001 fff8000000000000 3ff0000000000000 "
    "bff0000000000000 3fb999999999999a 3ff0000010000001 47efffffefffffff",
    "f32": "0 80000000 1 7f7fffff ff800000 7fa00001 ffc00000 3f800000 bf800000 3f808000 3f818000 3f801000",
    "f16": "0 8000 1 7bff fc00 7d01 fe00 3c00 bc00 3c40 3cc0 0400",
    "bf16": "0 8000 1 7f7f ff80 7fa1 ffc0 3f80 bf80 3f81 3f83 4780",
    "f8_e4m3fn": "0 80 1 7e fe 7f ff 38 b8 39 3b 08",
    "f8_e5m2": "0 80 1 7b fc 7d fe 3c bc 3d 3f 04",
}


LEVELS = {"ternary": (-1, 1), "uniform": (-9, 9)}


def tensor(dtype: str, shape: tuple[int, ...], bits: list[int] | int) -> Tensor:
    """A tensor from the bits of its elements, or of each element."""
    count, size = 1, ITEMSIZE[dtype]
    for dim in shape:
        count *= dim
    if isinstance(bits, int):
        return Tensor(dtype, shape, bits.to_bytes(size, "little") * count)
    assert len(bits) == count
    return Tensor(dtype, shape, b"".join(word.to_bytes(size, "little") for word in bits))


def floats(dtype: str, shape: tuple[int, ...], seed: int = 1) -> Tensor:
    """Small random numbers."""
    rng, count = random.Random(seed), 1
    for dim in shape:
        count *= dim
    return tensor(dtype, shape, [scalar.element(dtype, rng.gauss(0, 0.05)) for _ in range(count)])


def special(dtype: str) -> Tensor:
    """Numbers where implementations differ, each twice."""
    bits = [int(word, 16) for word in SPECIAL[dtype].split()]
    return tensor(dtype, (2, len(bits)), bits * 2)


def codes_for(codec: str, count: int, seed: int = 2) -> tuple[list[int], list[int]]:
    """Codes and, per 128 of them, scales."""
    rng = random.Random(seed)
    if codec in ("f32", "bf16", "f16"):
        return [scalar.element(codec, rng.gauss(0, 0.01)) for _ in range(count)], []
    low, high = {"int8": (-128, 127), "int4": (-8, 7), "int3": (-4, 3), "int2": (-2, 1), "sign": (0, 1), **LEVELS}[codec]
    codes = [rng.randint(low, high) for _ in range(count)]
    codes = [2 * code - 1 for code in codes] if codec == "sign" else codes
    return codes, [SMALL + 7 * group for group in range(-(-count // 128))]


def term(index: str, values: str, positions: list[int], **params: int | str) -> Term:
    """A term with random codes; all positions in one tile."""
    codes, scales = codes_for(values, len(positions))
    return Term(index, values, positions, codes, scales, params=dict(params))


def every(step: int, stop: int) -> list[int]:
    """Every step-th position."""
    return list(range(0, stop, step))


def codecs() -> Iterator[tuple[str, str, Pack]]:
    """One vector per codec."""
    key, keep = 0x0123456789ABCDEF, 1 << 30
    seeded = scalar.seeded_positions(keep, key, 0, 300)
    yield (
        "index-seeded",
        "density 1/4, one tile",
        Pack().patched("w", floats("bf16", (300,)), [term("seeded", "int4", seeded, keep=keep, key=f"{key:016x}")]),
    )
    seeded = scalar.seeded_positions(1 << 22, key, 0, 3000)
    yield (
        "index-seeded-sparse",
        "density 1/1024: gaps of 255 and more",
        Pack().patched("w", tensor("f16", (3000,), 0x2E66), [term("seeded", "f16", seeded, keep=1 << 22, key=f"{key:016x}")]),
    )
    seeded = scalar.seeded_positions(2**32 - 1, key, 0, 40)
    yield (
        "index-seeded-dense",
        "keep = 2^32 - 1",
        Pack().patched("w", floats("f32", (40,)), [term("seeded", "int8", seeded, keep=2**32 - 1, key=f"{key:016x}")]),
    )
    edge = [254, 510, 766, 1022, 1277, 1278, 1999]  # gaps of 254, 255, 255, 255, 254, 0 and 720
    for name, what, places, shift in (
        ("gaps", "shift 0: gaps around 255", edge, 0),
        ("gaps-none", "shift 0: nothing kept", [], 0),
        ("gaps-first-last", "shift 0: the first and the last element", [0, 1999], 0),
        ("gaps-shift1", "Rice codes", edge, 1),
        ("gaps-shift5", "Rice codes", edge, 5),
        ("gaps-shift15", "Rice codes", edge, 15),
        ("gaps-shift3-none", "Rice codes: nothing kept", [], 3),
    ):
        yield (
            f"index-{name}",
            what,
            Pack().patched("w", tensor("bf16", (2000,), 0x3DCD), [term("gaps", "bf16", places, shift=shift)]),
        )
    yield (
        "index-bitmap",
        "one bit per element, 5 unused",
        Pack().patched("w", floats("bf16", (3, 41)), [term("bitmap", "int2", every(2, 123))]),
    )
    yield (
        "index-all",
        "every element kept",
        Pack().patched("w", floats("bf16", (5, 29)), [term("all", "int8", every(1, 145))]),
    )
    for codec in ("f32", "bf16", "f16", "int8", "int4", "int3", "int2", "sign"):
        count = 261 if codec in ("int8", "int4", "int3", "int2", "sign") else 37
        old = floats("f32" if codec == "f32" else "bf16", (count * 2,))
        yield f"values-{codec}", f"{count} kept", Pack().patched("w", old, [term("bitmap", codec, every(2, count * 2))])
    t = term("all", "int4", every(1, 130))
    t.factor, t.scales = 0x41200000, [0xBC23, 0x0001]
    yield (
        "values-scales",
        "factor 10, a negative and a subnormal scale",
        Pack().patched("w", floats("f32", (130,)), [t]),
    )
    t = Term("all", "int3", [0, 1, 2, 3], [-8, 7, -5, 4], [ONE])
    yield "values-int3-wide", "int3 decodes as int4", Pack().patched("w", floats("f32", (4,)), [t])


def arithmetic() -> Iterator[tuple[str, str, Pack]]:
    """Element types, roundings, several terms."""
    for old in SPECIAL:
        pack = Pack()
        base = special(old)
        half = base.numel // 2
        for new in SPECIAL:
            codes = [scalar.element("f32", value) for value in (0.0, -0.0, 1e-3, 3e38, 1.0, 0.5, -0.5, 2**-9, -1.0)]
            codes = (codes * 2)[:half]
            places = list(range(half))
            pack.patched(f"to_{new}", base, [Term("bitmap", "f32", places, codes)], dtype=new, base_name=f"of_{new}")
        yield f"dtypes-{old.replace('_', '-')}", f"{old} to every float type; kept and not kept", pack
    big = Term("all", "int8", [0, 1, 2, 3], [127, -128, 1, 0], [0x7F7F], factor=0x7F7FFFFF)
    base = tensor("bf16", (4,), [0x3F80, 0x3F80, 0xFF80, 0x8000])
    yield (
        "overflow",
        "scale times factor is infinite; infinity minus infinity, zero times infinity",
        (Pack().patched("w", base, [big])),
    )
    zeros = tensor("f32", (3,), [0x80000000, 0x80000000, 0])
    minus = Term("bitmap", "f32", [0, 2], [0x80000000, 0x80000000])
    yield "negative-zero", "-0 stays where nothing is kept; -0 + (+0 + -0) = +0", Pack().patched("w", zeros, [minus])
    two = [term("all", "int4", every(1, 50)), term("gaps", "f32", [0, 7, 49], shift=0)]
    yield "terms-two", "dense int4 plus sparse f32", Pack().patched("w", floats("bf16", (50,)), two)
    order = [Term("all", "f32", [0, 1], [bits, bits]) for bits in (0x4B800000, 0x3F800000, 0xCB800000)]
    yield "terms-order", "2^24 + 1 - 2^24: the order of terms shows", Pack().patched("w", floats("f32", (2,)), order)
    yield "terms-none", "no terms: bits of the base", Pack().patched("w", floats("bf16", (9,)), [])
    yield "terms-none-convert", "no terms, other type", Pack().patched("w", special("f32"), [], dtype="bf16")
    pack = Pack()
    pack.weight = "0.3"
    t = term("all", "int4", every(1, 20))
    t.factor = 0x41200000
    pack.patched("a", floats("bf16", (20,)), [t])
    pack.patched("b", floats("f32", (4,)), [term("all", "f32", every(1, 4))])
    yield "weight", "`weighted` holds the result with weight 0.3", pack


def raw_types() -> Iterator[tuple[str, str, Pack]]:
    """Element types that 3.6 does not list: bytes, of a width in bits."""
    four = Tensor("raw4:F4", (3, 4), bytes(range(6)))
    pack = Pack().unchanged("a", four).unchanged("b", Tensor("raw6:F6_E3M2", (4,), b"\1\2\3"), "old.b")
    pack.stored("c", Tensor("raw6:F6_E2M3", (2, 2), b"\4\5\6"), replaces=("c", floats("bf16", (2, 2))))
    pack.stored("d", Tensor("raw128:C128", (), bytes(range(16)))).stored("e", Tensor("raw8:F8_E4M3FNUZ", (0, 3), b""))
    pack.stored("f", Tensor("raw8:F8_E5M2FNUZ", (3,), b"\x7f\x80\xff"), replaces=("f", Tensor("raw8:F8_E4M3FNUZ", (3,), b"\1\2\3")))
    pack.stored("g", tensor("u8", (2,), [1, 2]), replaces=("old.g", Tensor("raw999:X_1", (8,), bytes(999))))
    pack.removed("h", Tensor("raw1:1", (16,), b"\xaa\x55")).patched("w", floats("bf16", (3,)), [term("all", "int8", every(1, 3))])
    pack.extra = {"required": ["raw-types"]}
    yield "raw-types", "unchanged, stored, replaced, removed", pack
    pack = Pack().stored("w", Tensor("raw4:F4", (CHUNK + 1, 2), bytes(CHUNK) + b"\1"))
    pack.unchanged("v", Tensor("raw12:X", (2, CHUNK), bytes(3 * CHUNK)))
    pack.extra = {"required": ["raw-types"]}
    yield "chunks-raw-types", "chunks count bytes", pack


def kinds() -> Iterator[tuple[str, str, Pack]]:
    """Entry kinds and what the index can say."""
    old = floats("bf16", (4, 3))
    new = floats("bf16", (2, 3), 5).data
    yield "kind-delta", "renamed", Pack().patched("new", old, [term("all", "int8", every(1, 12))], base_name="old")
    yield (
        "kind-unchanged",
        "float, integer, renamed",
        (Pack().unchanged("a", old).unchanged("b", tensor("i64", (2,), [1, 2**63])).unchanged("c", old, "old.c")),
    )
    grow = [term("gaps", "int4", [0, 5, 11], shift=2)]
    yield "kind-grown", "2 rows more", Pack().patched("w", old, grow, shape=(6, 3), tail=new)
    wide = tensor("f32", (6,), [0x3F800000] * 6).data
    yield "kind-grown-convert", "bf16 to f32", Pack().patched("w", old, grow, shape=(6, 3), dtype="f32", tail=wide)
    yield "kind-shrunk", "1 row less", (Pack().patched("w", old, [term("bitmap", "int4", [0, 8])], shape=(3, 3)))
    pack = Pack()
    for i, (dtype, size) in enumerate(ITEMSIZE.items()):
        pack.stored(f"t{i:02}", Tensor(dtype, (2, 2), bytes((i + j) & 1 for j in range(4 * size))))
    yield "kind-stored", "every type", pack
    yield "kind-stored-zstd", "a frame and byte planes", Pack().stored("w", tensor("i32", (200,), list(range(200))))
    pack = Pack().stored("w", tensor("i32", (2,), [1, 2]), over=old)
    yield "kind-stored-over", "the base has a tensor of that name, and the entry does not say so", pack
    fresh = tensor("i32", (2,), [1, 2])
    yield "kind-stored-replaces", "a tensor of that name", Pack().stored("w", fresh, replaces=("w", old))
    yield "kind-stored-renames", "a tensor of another name and the same shape", Pack().stored("p.w", fresh, replaces=("w", fresh))
    yield "chunks-stored-replaces", "a tensor of two chunks", Pack().stored("w", fresh, replaces=("w", tensor("u8", (1048577,), 0)))
    yield "kind-removed", "", Pack().removed("gone", old).unchanged("kept", old)
    yield "kind-alias", "tied weights", Pack().unchanged("embed", old).alias("head", "embed")
    swap = [term("all", "int8", every(1, 12))]
    yield (
        "kind-delta-swapped",
        "a comes from b and b from a",
        (Pack().patched("a", old, swap, base_name="b").patched("b", floats("bf16", (4, 3), 9), swap, base_name="a")),
    )
    yield "index-empty", "no tensors, no files", Pack()
    yield (
        "scalar",
        "shape []",
        (Pack().patched("d", floats("f32", ()), [term("all", "f32", [0])]).stored("s", tensor("i64", (), [7]))),
    )
    none = tensor("bf16", (0, 3), [])
    yield (
        "no-elements",
        "shape [0,3]: blobs of length 0",
        (
            Pack()
            .patched("d", none, [term("gaps", "int4", [], shift=0), term("all", "f32", [])])
            .patched("g", none, [], shape=(2, 3), tail=new)
            .patched("h", floats("bf16", (2, 3)), [term("bitmap", "sign", [])], shape=(0, 3))
            .stored("s", none)
            .unchanged("u", none)
        ),
    )
    yield (
        "names",
        "non-ASCII, sorted by UTF-8 bytes; looks like a path",
        (Pack().unchanged("z", old).unchanged("\ufffd", old).unchanged("\U0001f600", old).unchanged("../\u00fc", old)),
    )
    pack = Pack().unchanged("w", old)
    pack.extra = {
        "optional": {"x.unknown": [True, None, {"deep": [-1, 2**53 - 1]}]},
        "recipe": {"text": 'q"\\\n\u0001'},
    }
    yield "optional", "unknown optional features, escapes", pack
    pack = Pack().unchanged("w", old)
    strings = {"format": "mlx", "modelspec.title": 'q"\\\n\u0001\u00fc', "ss_tag": "w", "": "\U0001f600"}
    pack.extra = {"optional": {"dpk.metadata": {"": strings, "unet": {"format": "pt"}}}}
    yield "metadata", "free strings for the headers of weight files", pack
    pack = Pack().unchanged("w", old)
    pack.extra = {"optional": {"dpk.metadata": {}}}
    yield "metadata-none", "no folder, which is as if nothing were said", pack
    pack = Pack().unchanged("w", old)
    pack.minor = 1
    yield "minor", "minor version 1", pack
    yield (
        "files",
        "one as it is, one compressed, one empty, one that the base has, one in a folder",
        (
            Pack()
            .file("config.json", b'{"a":1}')
            .file("tokenizer.json", b"0123456789" * 50)
            .file("empty.txt", b"")
            .file("LICENSE", b"from the base", inside=False)
            .file("sub/chat template.jinja", "\u00fc".encode())
        ),
    )
    yield from raw_types()
    vocab, merges = BASE_FILES["vocab.txt"], BASE_FILES["merges.txt"]
    unix = merges.replace(b"\r\n", b"\n")
    pack = Pack().file("merges.txt", unix, inside=False).file("vocab.txt", vocab.replace(b"\n", b"\r\n"), inside=False)
    yield "files-line-ends", "the base has other line ends than at packing: the result has those of packing", pack
    pack = (
        Pack()
        .file("LICENSE", b"of packing", inside=False)
        .file("README.md", b"gone", inside=False)
        .file("docs/NOTICE.txt", b"", inside=False)
    )
    pack.file("config.json", b"{}")
    pack.contents = {"LICENSE": BASE_FILES["LICENSE"], "config.json": b"{}"}
    yield "files-descriptive", "files for people: the base's of today, or none", pack
    odd = b'{"a":[1,{},[],"x\\\\","\\"]"],"b":"{,","c":1e52}]],"cut\\"'
    lines = b'{\n  "a": [\n    1,\n    {},\n    [],\n    "x\\\\",\n    "\\"]"\n  ],\n  "b": "{,",\n  "c": 1e52\n}\n]\n],\n"cut\\"'
    for what, form in (("joined", odd), ("joined-lf", odd + b"\n"), ("spread", lines), ("spread-lf", lines + b"\n")):
        yield f"files-{what}", "JSON of the base, laid out otherwise", Pack().file("odd.json", form, inside=False)
    pack = Pack().referring("odd.json", lines * 9, to=lines)
    yield "files-base-spread", "one that refers to the base's JSON, laid out otherwise", pack
    pack = Pack().referring("vocab.txt", vocab[:200] + b"new token\n" + vocab[200:])
    yield "files-base", "a file that refers to the base's", pack.file("config.json", b"{}")
    pack = (
        Pack().referring("merges.txt", unix * 40 + b"e f\n", to=unix).referring("vocab.txt", vocab * 2 + b"z", Blob(zstd(vocab * 2 + b"z")))
    )
    yield "files-base-line-ends", "one refers to the base's file with other line ends, one refers to it in name only", pack
    pack = Pack()
    pack.files = []
    yield "files-none", "an empty list of files: the result has none", pack
    yield "files-null", "null: the result has the files of the base", Pack().unchanged("w", old)
    pack = Pack().patched("w", old, grow, shape=(6, 3), tail=new)
    pack.entries[0]["stats"] = {"l1": "0.125", "max_abs": "1e-3"}
    yield "stats", "", pack


def folders() -> Iterator[tuple[str, str, Pack]]:
    """Weights in sub-folders, and bases that have more than they had at packing."""
    old, some = floats("bf16", (4, 3)), [term("all", "int8", every(1, 12))]
    pack = Pack().unchanged("top/w", old).patched("w", old, some).patched("2_Dense/w", old, some).patched("a/b/w", old, some)
    pack.stored("a/b/new", tensor("i8", (1,), [1])).alias("a/tied", "a/c/w").unchanged("a/c/w", old).removed("gone/w", old)
    pack.extra = {"required": ["folders"], "folders": {"2_Dense": "model", "a": "adapter_model", "a/b": "diffusion_pytorch_model"}}
    yield "folders", "three folders, one in another; a name with a slash that is in none", pack.file("2_Dense/config.json", b"{}")
    pack = Pack().unchanged("unet/w", old)
    pack.extra = {"required": ["folders"], "folders": {"unet": "m" * 191}}
    yield "folders-only", "no tensor at the top; the longest name of a weight file", pack
    pack = Pack().patched("w", old, some)
    pack.extra = {"base": pack.index_base()}
    pack.base["more"] = floats("f32", (2,))
    yield "base-has-another", "the base has a tensor that it did not have at packing", pack
    pack = Pack().patched("w", old, some)
    pack.extra = {"base": pack.index_base() | {"tensors": 3}}
    yield "base-had-more", "the base has fewer tensors than it had at packing, but all that the pack names", pack


def invalid_base() -> Iterator[tuple[str, str, Pack]]:
    """What most invalid vectors are made from."""
    pack = Pack().patched("a", floats("bf16", (4, 3)), [term("gaps", "int4", [0, 5, 11], shift=0)])
    pack.stored("b", tensor("i16", (3,), [1, 2, 3])).removed("c", floats("f32", (2,))).file("config.json", b'{"a":1}')
    example = Term("gaps", "int4", [0, 2], [3, -4], [0x3C00], factor=0x41200000, params={"shift": 0})
    three = tensor("bf16", (3,), [0x3F80, 0x3F00, 0xBE80])
    yield "example", "spec/02-container.md section 2.6", Pack().patched("w", three, [example])
    yield "invalid-base", "valid twin of most invalid vectors", pack


def large() -> Iterator[tuple[str, str, Pack]]:
    """Several tiles, several chunks."""
    count, key = TILE + 300, 7
    base = tensor("bf16", (count,), 0x3DCD)
    at = [0, 999, TILE - 1, TILE, TILE + 1, count - 1]

    def two_tiles(index: str, values: str, places: list[int], **params: int | str) -> Term:
        codes, _ = codes_for(values, len(places))
        groups = sum(-(-sum(a <= p < a + TILE for p in places) // 128) for a in (0, TILE))
        return Term(index, values, places, codes, [SMALL + g for g in range(groups)], params=dict(params))

    keep = 2**32 // 512
    seeded = [a + p for t, a, n in ((0, 0, TILE), (1, TILE, 300)) for p in scalar.seeded_positions(keep, key, t, n)]
    yield (
        "tiles-seeded",
        "two tiles, density 1/512",
        (Pack().patched("w", base, [two_tiles("seeded", "int4", seeded, keep=keep, key=f"{key:016x}")])),
    )
    yield "tiles-gaps", "tile borders", Pack().patched("w", base, [two_tiles("gaps", "int8", at, shift=0)])
    yield "tiles-gaps-shift9", "tile borders", Pack().patched("w", base, [two_tiles("gaps", "int8", at, shift=9)])
    yield (
        "tiles-gaps-one-empty",
        "the first tile keeps nothing",
        (Pack().patched("w", base, [two_tiles("gaps", "int4", [TILE + 299], shift=0)])),
    )
    yield "tiles-bitmap", "tile borders", Pack().patched("w", base, [two_tiles("bitmap", "sign", at)])
    count = CHUNK + TILE + 5
    base = tensor("f8_e4m3fn", (count,), 0x30)
    at = [3, CHUNK - 1, CHUNK, CHUNK + TILE, count - 1]
    keep = 2**32 // 20000
    places = [a + p for a in range(0, count, TILE) for p in scalar.seeded_positions(keep, key, a // TILE, min(TILE, count - a))]
    groups = len({p // TILE for p in places})
    seeded_term = Term("seeded", "int2", places, codes_for("int2", len(places))[0], [ONE] * groups)
    seeded_term.params = {"keep": keep, "key": f"{key:016x}"}
    yield (
        "chunks-delta",
        "two chunks, two terms, chunk digests",
        (Pack().patched("w", base, [Term("gaps", "f16", at, codes_for("f16", 5)[0], params={"shift": 13}), seeded_term])),
    )
    old = tensor("i8", (CHUNK + 2,), 5)
    yield "chunks-stored", "two chunks, chunk digests", Pack().stored("w", old)
    base, tail = tensor("bf16", (2, CHUNK - 1), 0x3DCD), bytes(2 * (CHUNK - 1))
    some = Term("gaps", "bf16", [1, CHUNK, 2 * CHUNK - 3], codes_for("bf16", 3)[0], params={"shift": 0})
    yield (
        "chunks-grown",
        "chunks of the rest count from its start",
        (Pack().patched("w", base, [some], shape=(3, CHUNK - 1), tail=tail)),
    )
    near = Term("all", "sign", [0, 1, 2], [1, -1, 1], [SMALL])
    yield (
        "chunks-shrunk",
        "chunk digests because the base has two chunks",
        (Pack().patched("w", tensor("bf16", (CHUNK + 1,), 0x3DCD), [near], shape=(3,))),
    )


def frames() -> Iterator[tuple[str, str, Pack]]:
    """zstd frames that are not what a library writes by itself, all allowed."""
    magic = b"\x28\xb5\x2f\xfd"

    def run(size: int, last: bool = True) -> bytes:
        return (int(last) | 1 << 1 | size << 3).to_bytes(3, "little") + b"a"

    def header(descriptor: int, size: int, width: int, window: int | None = None) -> bytes:
        return magic + bytes([descriptor, *([] if window is None else [window])]) + size.to_bytes(width, "little")

    many = b"".join(run(1 << 17, last=False) for _ in range(7))
    spellings = {
        "size-1": (header(0x20, 200, 1) + run(200), 200),
        "size-2": (header(0x60, 744, 2) + run(1000), 1000),
        "size-4": (header(0xA0, 1000, 4) + run(1000), 1000),
        "size-8": (header(0xE0, 1000, 8) + run(1000), 1000),
        "window-128k": (header(0x80, (7 << 17) + 5, 4, 7 << 3) + many + run(5), (7 << 17) + 5),
        "window-8m": (header(0x40, 744, 2, 13 << 3) + run(1000), 1000),
        "window-content": (header(0x40, 1536 - 256, 2, 4) + run(1536), 1536),
        "last-empty": (header(0xA0, 7 << 17, 4) + many + run(0), 7 << 17),
        "empty-blocks": (header(0x60, 744, 2) + (run(0, last=False) + b"\0\0\0") * 2 + run(1000), 1000),
        "checksum": (zstd(b"a" * 1000, write_checksum=True), 1000),
    }
    pack = Pack()
    for name, (stored, raw) in sorted(spellings.items()):
        pack.stored(name, tensor("u8", (raw,), 97), lambda chunk, stream=(stored, raw): chunk.update(streams=[stream]))  # type: ignore[misc]
    yield "frames", "content size in 1, 2, 4 and 8 bytes; windows of 128 KiB, of 8 MiB and of the content; empty blocks; a checksum", pack


def free_values() -> Iterator[tuple[str, str, Pack]]:
    """As much as the limits allow of what the format leaves free."""
    pack = Pack().stored("w", tensor("u8", (2,), 7))
    # Outside `tensors` stand the index, base 3, created_by, files, format, recipe, required, result 4 and optional with its two lists.
    pack.extra = {"optional": {"a": ["tensors", {"tensors": [1]}], "b": [0] * (65_536 - 13 - 6 - 1)}}
    yield "limit-values", "65,536 JSON values outside `tensors`, keys of that name among them", pack
    pack = Pack().stored("w", tensor("u8", (2,), 7))
    pack.extra = {"created_by": "\\" * 100}
    texts: list[bytes] = []
    pack.build(text=lambda raw: texts.append(raw) or raw)  # type: ignore[func-returns-value]
    head = texts[0].index(b'"tensors":[') + len(b'"tensors":')
    pack.extra = {"created_by": "\\" * 100 + "a" * ((4 << 20) - head)}
    yield "limit-head", "4 MiB before the list of `tensors`", pack


def valid_packs() -> Iterator[tuple[str, str, Pack]]:
    """Name, description and pack of each valid vector."""
    for group in (codecs, arithmetic, kinds, folders, invalid_base, large, frames, free_values):
        yield from group()
