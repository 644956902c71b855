"""The invalid vectors, by rule, for make_vectors.py only. Checksums fit, unless they are what is wrong."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import xxhash
import zstandard
from vectors import scalar
from vectors.assemble import Blob, Json, Pack, Tensor, Term, stream, zstd
from vectors.valid import floats, tensor, term, valid_packs

Case = tuple[
    str, str, str, str | None, bytes
]  # rule, what, error class, name of the valid vector whose base fits, file
FORMAT, CHECKSUM, LIMIT, UNSUPPORTED, MISMATCH = (
    "FormatError",
    "ChecksumError",
    "LimitError",
    "UnsupportedError",
    "BaseMismatchError",
)


def small(**options: Any) -> Pack:
    """A pack with little of everything; its base is that of v1-ok-invalid-base."""
    gaps = term("gaps", "int4", [0, 5, 11], shift=0)
    gaps.spoil = options.get("spoil")
    return (
        Pack()
        .patched("a", floats("bf16", (4, 3)), [gaps])
        .stored("b", tensor("i16", (3,), [1, 2, 3]), options.get("spoil_stored"))
        .removed("c", floats("f32", (2,)))
        .file("config.json", b'{"a":1}', blob=options.get("blob"))
    )


def prologue_cases() -> Iterator[Case]:
    """R1 to R3."""
    good = small().build()

    def case(rule: str, what: str, data: bytes, error: str = FORMAT) -> Case:
        return rule, what, error, None, data

    def with_fields(**fields: Any) -> bytes:
        return small().build(fields=fields)

    yield case("R1", "empty", b"")
    yield case("R1", "63-bytes", good[:63])
    for i in (0, 1, 4, 7):
        yield case(
            "R1", f"magic-{i}", with_fields(magic=bytes(b ^ 0x80 if j == i else b for j, b in enumerate(good[:8])))
        )
    yield case("R1", "crlf", good.replace(b"\r\n", b"\n"))
    yield case("R1", "unfinished", bytes(64) + good[64:])
    yield case("R1", "safetensors", b"\x02\0\0\0\0\0\0\0{}" + bytes(60))
    yield case("R1", "flags", with_fields(flags=1))
    yield case("R1", "flags-high", with_fields(flags=1 << 31))
    yield case("R1", "hash", with_fields(spoil=1), CHECKSUM)
    yield case("R1", "flip", good[:17] + bytes([good[17] ^ 1]) + good[18:], CHECKSUM)
    for major in (0, 2, 65535):
        yield case("R2", f"major-{major}", with_fields(major=major), UNSUPPORTED)
    yield case("R2", "cut", good[:-1])
    yield case("R2", "cut-to-prologue", good[:64])
    yield case("R2", "appended", good + b"\0")
    yield case("R2", "length-huge", with_fields(file_length=2**64 - 1))
    offset, length = int.from_bytes(good[24:32], "little"), int.from_bytes(good[32:40], "little")
    yield case("R3", "offset-past-end", with_fields(index_offset=len(good) + 8))
    yield case("R3", "offset-huge", with_fields(index_offset=2**64 - 8))
    yield case("R3", "offset-wraps", with_fields(index_offset=2**64 - 8, index_length=(len(good) + 8) % 2**64))
    yield case("R3", "offset-in-prologue", with_fields(index_offset=56, index_length=len(good) - 56))
    yield case("R3", "offset-odd", with_fields(index_offset=offset + 1, index_length=length - 1))
    yield case("R3", "length-zero", with_fields(index_offset=len(good) // 8 * 8, index_length=0))
    yield case("R3", "length-short", with_fields(index_length=length - 1))
    yield case("R3", "raw-too-large", with_fields(index_raw_length=(64 << 20) + 1), LIMIT)
    yield case("R3", "raw-huge", with_fields(index_raw_length=2**64 - 1), LIMIT)
    yield case("R3", "hash", with_fields(index_hash=0), CHECKSUM)
    yield case("R3", "flip", good[:-1] + bytes([good[-1] ^ 1]), CHECKSUM)


def json_cases() -> Iterator[Case]:
    """R4 on the spelling."""
    index = json.loads(zstandard.decompress(_index_of(small().build())))
    later = dict(reversed(index.items()))

    def sub(old: bytes, new: bytes) -> Callable[[bytes], bytes]:
        def text(raw: bytes) -> bytes:
            assert old in raw, old
            return raw.replace(old, new, 1)

        return text

    deep = b"[" * 100_000 + b"]" * 100_000
    texts: dict[str, Callable[[bytes], bytes]] = {
        "bom": lambda raw: b"\xef\xbb\xbf" + raw,
        "not-json": lambda raw: b"dpk",
        "utf8": sub(b"make_vectors 1", b"make\xff"),
        "utf16": lambda raw: raw.decode().encode("utf-16-le"),
        "surrogate": sub(b"make_vectors 1", b"\\ud800"),
        "escape": sub(b"make_vectors 1", b"\\u006dake"),
        "escape-upper": sub(b"make_vectors 1", b"\\u001F"),
        "escape-slash": sub(b"make_vectors 1", b"\\/"),
        "space": sub(b":", b": "),
        "newline-after": lambda raw: raw + b"\n",
        "trailing": lambda raw: raw + raw,
        "duplicate-key": sub(b'"format":"dpk",', b'"format":"dpk","format":"dpk",'),
        "unsorted": lambda raw: json.dumps(later, separators=(",", ":")).encode(),
        "float": sub(b'"nnz":3', b'"nnz":3.0'),
        "exponent": sub(b'"nnz":3', b'"nnz":3e0'),
        "nan": sub(b'"recipe":{}', b'"recipe":{"x":NaN}'),
        "minus-zero": sub(b'"recipe":{}', b'"recipe":{"x":-0}'),
        "leading-zero": sub(b'"nnz":3', b'"nnz":03'),
        "int-2-53": sub(b'"recipe":{}', b'"recipe":{"x":9007199254740992}'),
        "int-5000-digits": sub(b'"recipe":{}', b'"recipe":{"x":' + b"9" * 5000 + b"}"),
        "depth-9": sub(b'"recipe":{}', b'"recipe":{"x":' + b"[" * 7 + b"]" * 7 + b"}"),
        "depth-100000": lambda raw: deep,
        "top-list": lambda raw: b"[]",
    }
    for what, text in texts.items():
        yield "R4", what, FORMAT, None, small().build(text=text)


def _index_of(data: bytes) -> bytes:
    return data[int.from_bytes(data[24:32], "little") :]


def put(*path: Any) -> Callable[[Json], None]:
    """Set the value at a path (its last item is the value)."""

    def edit(index: Any) -> None:
        *keys, last, value = path
        for key in keys:
            index = index[key]
        index[last] = value

    return edit


def drop(*path: Any) -> Callable[[Json], None]:
    """Remove the key at a path."""

    def edit(index: Any) -> None:
        for key in path[:-1]:
            index = index[key]
        del index[path[-1]]

    return edit


def index_cases() -> Iterator[Case]:
    """R4 to R7 and R13 on what the index says."""
    A, TERM = ("tensors", 0), ("tensors", 0, "terms", 0)
    edits: list[tuple[str, str, str, Callable[[Json], None]]] = [
        ("R4", "format", FORMAT, put("format", "gguf")),
        ("R4", "missing-recipe", FORMAT, drop("recipe")),
        ("R4", "missing-files", FORMAT, drop("files")),
        ("R4", "missing-required", FORMAT, drop("required")),
        ("R4", "unknown-key", FORMAT, put("extra", 1)),
        ("R4", "unknown-entry-key", FORMAT, put(*A, "extra", 1)),
        ("R4", "unknown-term-key", FORMAT, put(*TERM, "keep", 1)),
        ("R4", "missing-shift", FORMAT, drop(*TERM, "shift")),
        ("R4", "missing-stored", FORMAT, drop("tensors", 1, "stored")),
        ("R4", "stored-with-base-path", FORMAT, put("tensors", 1, "base", {"digest": "0" * 32, "path": "x"})),
        ("R6", "stored-repeats-base", FORMAT, put("tensors", 1, "base", {"digest": "0" * 32, "name": "b"})),
        ("R4", "bool-as-int", FORMAT, put(*TERM, "nnz", True)),
        ("R4", "string-as-int", FORMAT, put(*TERM, "nnz", "3")),
        ("R4", "null-as-string", FORMAT, put("created_by", None)),
        ("R4", "hex-upper", FORMAT, put(*TERM, "factor", "3F800000")),
        ("R4", "hex-short", FORMAT, put(*A, "digest", "0" * 31)),
        ("R4", "hex-newline", FORMAT, put(*TERM, "factor", "3f80000\n")),
        ("R4", "blob-negative", FORMAT, put(*TERM, "blob", 1, -1)),
        ("R4", "blob-two-items", FORMAT, put(*TERM, "blob", [64, 8])),
        ("R4", "required-unsorted", FORMAT, put("required", ["b", "a"])),
        ("R4", "required-twice", FORMAT, put("required", ["a", "a"])),
        ("R4", "optional-list", FORMAT, put("optional", [])),
        ("R5", "feature", UNSUPPORTED, put("required", ["x.future"])),
        ("R5", "kind", UNSUPPORTED, put(*A, "kind", "rotated")),
        ("R5", "index-codec", UNSUPPORTED, put(*TERM, "index", "csr")),
        ("R5", "value-codec", UNSUPPORTED, put(*TERM, "values", "int5")),
        ("R5", "dtype", UNSUPPORTED, put(*A, "dtype", "f4")),
        ("R6", "name-empty", FORMAT, put(*A, "name", "")),
        ("R6", "name-nul", FORMAT, put(*A, "name", "a\0")),
        ("R6", "name-c1", FORMAT, put(*A, "name", "a\u009b")),
        ("R6", "name-513", FORMAT, put(*A, "name", "a" * 513)),
        ("R6", "name-twice", FORMAT, put("tensors", 1, "name", "a")),
        ("R6", "unsorted", FORMAT, lambda index: index["tensors"].reverse()),
        ("R6", "dim-negative", FORMAT, put(*A, "shape", [-4, -3])),
        ("R6", "ndim-9", LIMIT, put(*A, "shape", [4, 3, 1, 1, 1, 1, 1, 1, 1])),
        ("R6", "numel", LIMIT, put(*A, "shape", [2**40, 2**40])),
        ("R6", "numel-wraps", LIMIT, put(*A, "shape", [2**32, 2**32])),
        ("R6", "terms-65", LIMIT, lambda index: put(*A, "terms", index["tensors"][0]["terms"] * 65)(index)),
        ("R6", "keep-zero", FORMAT, lambda index: _seeded(index, 0)),
        ("R6", "keep-2-32", FORMAT, lambda index: _seeded(index, 2**32)),
        ("R6", "shift-16", FORMAT, put(*TERM, "shift", 16)),
        ("R6", "shift-negative", FORMAT, put(*TERM, "shift", -1)),
        ("R6", "factor-inf", FORMAT, put(*TERM, "factor", "7f800000")),
        ("R6", "factor-nan", FORMAT, put(*TERM, "factor", "7fc00000")),
        ("R6", "nnz-13", FORMAT, put(*TERM, "nnz", 13)),
        ("R6", "nnz-negative", FORMAT, put(*TERM, "nnz", -1)),
        ("R6", "terms-on-int", FORMAT, put(*A, "dtype", "i16")),
        ("R6", "terms-on-int-base", FORMAT, put(*A, "base", "dtype", "i16")),
        ("R6", "base-same-dtype", FORMAT, put(*A, "base", "dtype", "bf16")),
        ("R6", "base-same-name", FORMAT, put(*A, "base", "name", "a")),
        ("R6", "base-same-shape", FORMAT, put(*A, "base", "shape", [4, 3])),
        ("R6", "delta-other-shape", FORMAT, put(*A, "base", "shape", [3, 4])),
        ("R6", "removed-renamed", FORMAT, put("tensors", 2, "base", "name", "d")),
        ("R6", "base-used-twice", FORMAT, put("tensors", 0, "base", "name", "c")),
        ("R6", "base-tensors", FORMAT, put("base", "tensors", 1)),
        ("R6", "result-tensors", FORMAT, put("result", "tensors", 3)),
        ("R6", "result-bytes", FORMAT, put("result", "bytes", 31)),
        ("R6", "result-fingerprint", FORMAT, put("result", "fingerprint", "0" * 64)),
        ("R6", "alias-of-nothing", FORMAT, lambda index: _alias(index, "x")),
        ("R6", "alias-of-itself", FORMAT, lambda index: _alias(index, "d")),
        ("R6", "alias-of-removed", FORMAT, lambda index: _alias(index, "c")),
        ("R6", "unchanged-digest", FORMAT, lambda index: _unchanged(index, {"digest": "0" * 32})),
        (
            "R6",
            "unchanged-dtype",
            FORMAT,
            lambda index: _unchanged(index, {"digest": index["tensors"][0]["digest"], "dtype": "f16"}),
        ),
        ("R6", "stats", FORMAT, put(*A, "stats", {"l1": "inf", "max_abs": "0"})),
        ("R6", "digests-not-needed", FORMAT, put(*A, "digests", [64, 0, "0" * 16])),
        ("R6", "file-size-negative", FORMAT, put("files", 0, "size", -1)),
        ("R6", "file-size-limit", LIMIT, put("files", 0, "size", (64 << 20) + 1)),
        ("R7", "hole", FORMAT, lambda index: _shift(index, 8)),
        ("R7", "overlap", FORMAT, lambda index: _shift(index, -8)),
        ("R7", "misaligned", FORMAT, lambda index: _shift(index, 1)),
        ("R7", "first-not-64", FORMAT, put(*TERM, "blob", 0, 72)),
        ("R7", "past-index", FORMAT, put("files", 0, "blob", 1, 1 << 20)),
        ("R7", "past-2-53", FORMAT, put("files", 0, "blob", 1, 2**53 - 1)),
        ("R7", "short-of-index", FORMAT, drop("files", 0, "blob")),
    ]
    names = {
        **{"empty": "", "absolute": "/etc/x", "parent": "../x", "parent-inside": "a/../x", "double-slash": "a//b"},
        **{"folder": "a/", "dot": "./a", "backslash": "a\\b", "drive": "c:x", "newline": "a\nb", "c1": "a\u0085"},
        **{"hidden": ".git/x", "hidden-inside": "a/.b", "513-bytes": "n" * 513, "weights": "model.safetensors"},
        **{"weights-upper": "sub/MODEL.SAFETENSORS", "weights-index": "model.safetensors.index.json"},
    }
    for what, name in names.items():
        edits.append(("R13", f"name-{what}", FORMAT, put("files", 0, "name", name)))
    for rule, what, error, edit in edits:
        yield rule, what, error, None, small().build(edit)
    new_key = lambda index: (put("required", ["x.future"])(index), put("extra", 1)(index))  # noqa: E731
    yield "R5", "feature-with-new-key", UNSUPPORTED, None, small().build(new_key)
    twice = small().file("b.json", b"1")
    yield "R6", "files-unsorted", FORMAT, None, twice.build(lambda index: index["files"].reverse())
    yield "R6", "files-twice", FORMAT, None, small().file("config.json", b"1").build()
    yield "R13", "file-is-folder", FORMAT, None, small().file("config.json/x", b"1").build()
    many = small()
    many.files = [{"name": f"f{i:04}", "size": 0, "sha256": "0" * 64} for i in range(1001)]
    yield "R6", "files-1001", LIMIT, None, many.build()
    big = small()
    big.files = [{"name": f"f{i}", "size": 64 << 20, "sha256": "0" * 64} for i in range(5)]
    yield "R6", "files-bytes", LIMIT, None, big.build()
    for what, kind, shape in (
        ("grown-not", "grown", (5, 3)),
        ("grown-trailing", "grown", (5, 2)),
        ("grown-rank", "grown", (12, 1, 2)),
        ("shrunk-not", "shrunk", (5, 3)),
        ("grown-scalar", "grown", ()),
    ):
        old = floats("bf16", shape)
        pack = Pack().patched("a", old, [], shape=(4, 3) if kind == "grown" else (6, 3), tail=bytes(24))
        pack.entries[0]["kind"] = kind
        if kind == "shrunk":
            del pack.entries[0]["stored"]
        yield "R6", what, FORMAT, None, pack.build()
    yield "R6", "digests-missing", FORMAT, None, large_pack().build(lambda index: index["tensors"][0].pop("digests"))
    yield "R7", "padding", FORMAT, None, small().build(blobs=lambda region: region[:-1] + b"\1")


def _seeded(index: Json, keep: int) -> None:
    entry = index["tensors"][0]["terms"][0]
    del entry["shift"]
    entry |= {"index": "seeded", "keep": keep, "key": "0" * 16}


def _alias(index: Json, of: str) -> None:
    index["tensors"].append({"name": "d", "kind": "alias", "of": of})


def _unchanged(index: Json, base: Json) -> None:
    entry = index["tensors"][0]
    del entry["terms"]
    entry |= {"kind": "unchanged", "base": base}


def _shift(index: Json, by: int) -> None:
    index["tensors"][1]["stored"][0] += by


def large_pack(digests: bytes | None = None) -> Pack:
    """Two chunks of zeros, stored."""
    pack = Pack().stored("w", tensor("u8", (1048577,), 0))
    if digests is not None:
        pack.entries[0]["digests"] = Blob(digests)
    return pack


def chunk_cases() -> Iterator[Case]:
    """R8 to R10, found where a chunk is read."""
    base = "invalid-base"

    def spoiled(**changes: Any) -> bytes:
        def spoil(chunk: Json) -> None:
            for key, value in changes.items():
                chunk[key] = value(chunk[key])

        return small(spoil=spoil).build()

    def streams(i: int, stored: bytes, raw: int | None = None) -> bytes:
        return spoiled(
            streams=lambda old: [
                (stored, len(stored) if raw is None else raw) if j == i else s for j, s in enumerate(old)
            ]
        )

    def flip(data: bytes, at: int) -> bytes:
        return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]

    # The term's blob of `small`: table of 8 + 3 * 8 + 4 = 36 bytes, then gaps 00 04 05, two bytes of codes, a scale.
    good = small().build()
    yield "R8", "table-flip", CHECKSUM, base, small().build(blobs=lambda region: flip(region, 35))
    yield "R8", "payload-flip", CHECKSUM, base, small().build(blobs=lambda region: flip(region, 36))
    yield "R8", "payload-hash", CHECKSUM, base, spoiled(flip=lambda _: 1)
    yield "R8", "file-flip", CHECKSUM, base, small().build(blobs=lambda region: flip(region, len(region) - 8))
    yield "R8", "file-sha256", CHECKSUM, base, small().build(put("files", 0, "sha256", "0" * 64))
    yield "R8", "file-blob-longer", FORMAT, base, small(blob=Blob(zstd(b'{"a":1}'))).build()
    yield "R8", "count-over-tile", FORMAT, base, spoiled(counts=lambda _: [13])
    yield "R8", "count-not-nnz", FORMAT, base, small().build(put("tensors", 0, "terms", 0, "nnz", 2))
    yield "R8", "stored-over-raw", FORMAT, base, streams(0, b"\0\4\5", 2)
    yield "R8", "codes-raw-long", FORMAT, base, streams(1, b"\0\0\0")
    yield "R8", "codes-raw-short", FORMAT, base, streams(1, b"\0")
    yield "R8", "scales-raw-long", FORMAT, base, streams(2, b"\0\0\0\0")
    yield "R8", "scales-raw-none", FORMAT, base, streams(2, b"")
    yield "R8", "gaps-raw-short", FORMAT, base, streams(0, b"\0\4")
    yield "R8", "gaps-raw-long", FORMAT, base, streams(0, b"\0\4\5\0")
    yield "R8", "raw-huge", FORMAT, base, streams(1, b"\0\0", 2**32 - 1)
    yield "R8", "blob-under-table", FORMAT, "index-gaps-none", _one_blob(Blob(bytes(16)))
    yield "R8", "payload-past-blob", FORMAT, "index-gaps-none", _one_blob(_cut(1))
    yield "R8", "payload-then-more", FORMAT, "index-gaps-none", _one_blob(_cut(-1))
    yield (
        "R8",
        "stored-raw-long",
        FORMAT,
        base,
        small(spoil_stored=lambda chunk: chunk.update(streams=[(bytes(8), 8)])).build(),
    )
    yield "R9", "gaps-leave-tile", FORMAT, base, streams(0, b"\0\4\6")
    yield "R9", "gaps-far", FORMAT, base, streams(0, b"\0\4\xfe")
    for what, data in gap_cases():
        yield "R9", what, FORMAT, "index-gaps", data
    yield "R9", "codes-unused-bits", FORMAT, base, streams(1, b"\0\x10")
    yield "R9", "scale-inf", FORMAT, base, streams(2, b"\x80\x7f")
    yield "R9", "scale-nan", FORMAT, base, streams(2, b"\xc0\x7f")
    yield from mask_cases()
    yield "R9", "digests-root", FORMAT, None, large_pack(bytes(32)).build()
    yield from frame_cases(good)


def _cut(by: int) -> Blob:
    t = term("gaps", "bf16", [3], shift=0)
    whole = t.blob(2000)
    data = whole.data[:-by] if by > 0 else whole.data + bytes(-by)
    return Blob(data, whole.hashed)


def _one_blob(blob: Blob) -> bytes:
    old = tensor("bf16", (2000,), 0x3DCD)
    pack = Pack().patched("w", old, [term("gaps", "bf16", [3], shift=0)])
    pack.entries[0]["terms"][0]["blob"] = blob
    return pack.build()


def gap_cases() -> Iterator[tuple[str, bytes]]:
    """Gap streams over the base of v1-ok-index-gaps: 2000 elements, 2 kept."""

    def with_gaps(raw: bytes, shift: int, places: list[int]) -> bytes:
        t = term("gaps", "bf16", places, shift=shift)
        t.spoil = lambda chunk: chunk["streams"].__setitem__(0, (raw, len(raw)))
        return Pack().patched("w", tensor("bf16", (2000,), 0x3DCD), [t]).build()

    yield "gaps-end-in-255", with_gaps(b"\0\0\xff", 0, [0, 1])
    yield "gaps-all-255", with_gaps(b"\xff\xff", 0, [0, 1])
    yield "gaps-one-more", with_gaps(b"\0\0\0", 0, [0, 1])
    yield "gaps-one-less", with_gaps(b"\xff\0", 0, [0, 1])
    yield "gaps-none-but-bytes", with_gaps(b"\xff", 0, [])
    yield "gaps-escapes-leave-tile", with_gaps(b"\xff" * 7 + b"\xfe", 0, [0])
    # shift 4, two gaps of 0: low bits 00, unary 03
    yield "rice-one-more", with_gaps(b"\0\7", 4, [0, 1])
    yield "rice-one-less", with_gaps(b"\0\1", 4, [0, 1])
    yield "rice-unused-byte", with_gaps(b"\0\3\0", 4, [0, 1])
    yield "rice-unused-low-bits", with_gaps(b"\x10\1", 4, [0])
    yield "rice-leaves-tile", with_gaps(b"\0" + (1 << 125).to_bytes(16, "little"), 4, [0])
    yield "rice-none-but-bytes", with_gaps(b"\0", 4, [])


def mask_cases() -> Iterator[Case]:
    """R9 on the other index codecs and on float codes."""
    old, key, keep = floats("bf16", (3, 41)), 0x0123456789ABCDEF, 1 << 30

    def spoil(i: int, edit: Callable[[bytes], bytes]) -> Callable[[Json], None]:
        def apply(chunk: Json) -> None:
            stored, raw = chunk["streams"][i]
            plain = edit(stored if len(stored) == raw else zstandard.decompress(stored))
            chunk["streams"][i] = stream(plain)

        return apply

    def build(t: Term, old: Tensor = old) -> bytes:
        return Pack().patched("w", old, [t]).build()

    t = term("bitmap", "int2", list(range(0, 123, 2)))
    t.spoil = spoil(0, lambda raw: raw[:-1] + bytes([raw[-1] | 0x80]))
    yield "R9", "bitmap-unused-bits", FORMAT, "index-bitmap", build(t)
    t = term("bitmap", "int2", list(range(0, 123, 2)))
    t.spoil = spoil(0, lambda raw: b"\x57" + raw[1:])
    yield "R9", "bitmap-count", FORMAT, "index-bitmap", build(t)
    t = term("bitmap", "int2", list(range(0, 123, 2)))
    t.spoil = spoil(0, lambda raw: raw + b"\0")
    yield "R8", "bitmap-raw-long", FORMAT, "index-bitmap", build(t)
    t = term("all", "int8", list(range(145)))
    t.codes, t.positions = t.codes[1:], t.positions[1:]
    whole = floats("bf16", (5, 29))
    data = Pack().patched("w", whole, [t]).build(put("tensors", 0, "terms", 0, "nnz", 145))
    yield "R8", "all-nnz", FORMAT, "index-all", data
    two = tensor("bf16", (65836,), 0x3DCD)
    for what, move in (("seeded-count", 1),):
        kept = scalar.seeded_positions(keep, key, 0, 300)
        t = term("seeded", "int4", kept[:-move], keep=keep, key=f"{key:016x}")
        yield "R9", what, FORMAT, "index-seeded", build(t, floats("bf16", (300,)))
    t = term("bitmap", "int8", [0, 65536])
    t.codes, t.scales = [1, 1], [0x3F80, 0x3F80]
    t.spoil = lambda chunk: chunk.update(counts=[2, 0], streams=[*chunk["streams"][:2], (b"\0\x3f", 2)])
    yield "R9", "bitmap-count-other-tile", FORMAT, "tiles-bitmap", build(t, two)
    for codec, bits in (("f32", 0x7F800000), ("bf16", 0x7FC0), ("f16", 0xFC00)):
        count = 37
        t = term("bitmap", codec, list(range(0, count * 2, 2)))
        good = Pack().patched("w", floats("f32" if codec == "f32" else "bf16", (count * 2,)), [t])
        t.codes[5] = bits
        good.entries[0]["terms"][0]["blob"] = t.blob(count * 2)
        yield "R9", f"code-{codec}", FORMAT, f"values-{codec}", good.build()
    odd = term("bitmap", "sign", list(range(0, 522, 2)))
    odd.spoil = spoil(1, lambda raw: raw[:-1] + bytes([raw[-1] | 0x80]))
    yield "R9", "sign-unused-bits", FORMAT, "values-sign", build(odd, floats("bf16", (522,)))


def frame_cases(good: bytes) -> Iterator[Case]:
    """R10 on the index and on a stream."""
    raw = zstandard.decompress(_index_of(good))
    flat = zstd(raw)
    no_size = zstandard.ZstdCompressor(level=1, write_content_size=False).compress(raw)
    samples = [raw[i : i + 60] for i in range(0, 400, 5)]
    words = zstandard.train_dictionary(256, samples * 5)
    dictionary = zstandard.ZstdCompressor(level=1, dict_data=words).compress(raw)
    skippable = b"\x50\x2a\x4d\x18\4\0\0\0abcd"
    header = b"\x28\xb5\x2f\xfd"
    bomb = header + b"\xe0" + (2**40).to_bytes(8, "little") + b"\1\0\0"
    empty = header + b"\x20\0" + b"\1\0\0"
    frames = {
        "index-raw": raw,
        "index-cut": flat[:-1],
        "index-trailing": flat + b"\0",
        "index-two-frames": zstd(raw[:9]) + zstd(raw[9:]),
        "index-skippable-first": skippable + flat,
        "index-skippable-last": flat + skippable,
        "index-no-size": no_size,
        "index-dictionary": dictionary,
        "index-bomb": bomb,
        "index-states-zero": empty + flat,
        "index-window": _wide(raw),
    }
    for what, frame in frames.items():
        yield "R10", what, FORMAT, None, small().build(frame=lambda _, frame=frame: frame)
    yield "R10", "index-raw-length", FORMAT, None, small().build(fields={"index_raw_length": len(raw) + 1})
    yield "R10", "index-raw-zero", FORMAT, None, small().build(fields={"index_raw_length": 0})
    content = bytes(400)
    frame = zstd(content)
    for what, stored in (
        ("cut", frame[:-1]),
        ("trailing", frame + b"\0"),
        ("other-size", zstd(bytes(399))),
        ("skippable", frame + skippable),
        ("bomb", bomb),
        ("empty", b""),
        ("garbage", b"\0" * 9),
        ("window", _wide(content)),
        ("checksum", zstd(content, write_checksum=True)[:-1] + b"\0"),
    ):
        spoil = lambda chunk, stored=stored: chunk.update(streams=[(stored, 400)])  # noqa: E731
        pack = Pack().stored("w", tensor("u8", (400,), 0), spoil)
        yield "R10", f"stream-{what}", FORMAT, "index-empty", pack.build()


def _wide(raw: bytes) -> bytes:
    """A frame with a window of 16 MiB: raw blocks, content size in 8 bytes, window descriptor 24 - 10 << 3."""
    size = len(raw)
    block = (size << 3 | 1).to_bytes(3, "little") + raw
    if raw.count(raw[:1]) == size:
        block = (size << 3 | 3).to_bytes(3, "little") + raw[:1]
    return b"\x28\xb5\x2f\xfd\xc0" + bytes([14 << 3]) + size.to_bytes(8, "little") + block


def base_cases() -> Iterator[Case]:
    """R11 and R12: packs that want another base than the one they are given."""
    base = "invalid-base"
    A = ("tensors", 0)
    edits = (
        ("R11", "missing", put(*A, "base", "name", "x")),
        ("R11", "dtype", put(*A, "base", "dtype", "f16")),
        ("R11", "removed-shape", put("tensors", 2, "base", "shape", [1, 2])),
        ("R11", "removed-dtype", put("tensors", 2, "base", "dtype", "i32")),
        ("R11", "more-tensors", put("base", "tensors", 3)),
        ("R12", "digest", put(*A, "base", "digest", "0" * 32)),
    )
    for rule, what, edit in edits:
        yield rule, what, MISMATCH, base, small().build(edit)
    wider = small()
    wider.removed("d", floats("f32", (2,)))
    yield "R11", "base-lacks-removed", MISMATCH, base, wider.build()
    fewer = small()
    del fewer.entries[2], fewer.base["c"]
    yield "R11", "base-has-another", MISMATCH, base, fewer.build()
    other = Pack().patched("w", floats("bf16", (300,), 8), [])
    yield "R12", "other-values", MISMATCH, "index-seeded", other.build()
    other = Pack().unchanged("a", floats("bf16", (4, 3), 9)).unchanged("b", tensor("i64", (2,), [1, 2**63]))
    yield "R12", "unchanged", MISMATCH, "kind-unchanged", other.unchanged("c", floats("bf16", (4, 3)), "old.c").build()
    wrong = small()
    a = wrong.result["a"]
    fake = Tensor(a.dtype, a.shape, bytes(len(a.data)))
    wrong.entries[0]["digest"], wrong.result["a"] = fake.digest, fake
    yield "R12", "result", CHECKSUM, base, wrong.build()
    wrong = Pack().stored("w", tensor("u8", (3,), 1))
    fake = tensor("u8", (3,), 2)
    wrong.entries[0]["digest"], wrong.result["w"] = fake.digest, fake
    yield "R12", "result-stored", CHECKSUM, "index-empty", wrong.build()


def block(kind: int, size: int, body: bytes, last: bool = True) -> bytes:
    """A block of a zstd frame: type 0 raw, 1 repeated byte, 2 compressed, 3 reserved."""
    return (int(last) | kind << 1 | size << 3).to_bytes(3, "little") + body


def header_cases() -> Iterator[Case]:
    """R10 on the headers of frame and blocks, where versions of libzstd differ or let too much pass. 3,000 bytes of content."""
    content = b"abcdefgh" * 375
    plain = zstd(content)
    assert plain[4] == 0x60  # single segment, content size in two bytes
    magic, size, packed = plain[:4], plain[5:7], plain[7:]
    wide = (200_000).to_bytes(4, "little")
    frames: dict[str, tuple[bytes, int]] = {
        "unused-bit": (magic + b"\x70" + size + packed, 3000),
        "reserved-bit": (magic + b"\x68" + size + packed, 3000),
        "dictionary-0": (magic + b"\x61\0" + size + packed, 3000),
        "dictionary-0-of-2": (magic + b"\x62\0\0" + size + packed, 3000),
        "dictionary-0-of-4": (magic + b"\x63\0\0\0\0" + size + packed, 3000),
        "no-size-field": (magic + b"\0\x50" + packed, 3000),
        "no-magic": (b"\x27" + plain[1:], 3000),
        "header-cut": (plain[:6], 3000),
        "descriptor-cut": (plain[:4], 3000),
        "block-header-cut": (plain[:9], 3000),
        "window-1k": (magic + b"\x40\0" + size + packed, 3000),
        "window-1k-blocks": (
            magic + b"\x40\0" + size + b"".join(block(1, 1000, b"a", last) for last in (False, False, True)),
            3000,
        ),
        "window-120k": (
            magic + b"\x80" + bytes([6 << 3 | 7]) + wide + block(1, 120_000, b"a", False) + block(1, 80_000, b"a"),
            200_000,
        ),
        "window-9m": (magic + b"\x40" + bytes([13 << 3 | 1]) + size + packed, 3000),
        "block-repeats-128k-1": (magic + b"\xa0" + wide + block(1, 131_073, b"a", False) + block(1, 68_927, b"a"), 200_000),
        "block-repeats-all": (magic + b"\xa0" + wide + block(1, 200_000, b"a"), 200_000),
        "block-type-3": (magic + b"\x60" + size + block(3, 5, packed[3:8], False) + packed, 3000),
        "block-over-content": (magic + b"\x60" + size + block(1, 3001, b"a"), 3000),
        "no-last-block": (magic + b"\x60" + size + block(1, 3000, b"a", False), 3000),
        "after-last-block": (plain + block(1, 0, b"a"), 3000),
        "checksum-cut": (zstd(content, write_checksum=True)[:-1], 3000),
        "no-checksum-flag": (plain + zstd(content, write_checksum=True)[-4:], 3000),
    }
    for what, (stored, raw) in frames.items():
        spoil = lambda chunk, stored=stored, raw=raw: chunk.update(streams=[(stored, raw)])  # noqa: E731
        yield "R10", f"header-{what}", FORMAT, "index-empty", Pack().stored("w", tensor("u8", (raw,), 97), spoil).build()
    long = b"a" * (65 << 17)
    frame = magic + b"\xa0" + len(long).to_bytes(4, "little") + b"".join(block(1, 1 << 17, b"a", i == 64) for i in range(65))
    yield "R10", "header-single-segment-over-8m", FORMAT, "index-empty", Pack().file("a.txt", long, blob=Blob(frame)).build()
    note = put("recipe", {"note": "a" * 1000})
    raw = zstandard.decompress(_index_of(small().build(note)))
    stored = zstd(raw)
    assert stored[4] == 0x60
    literals = (len(raw) << 4 | 0xC).to_bytes(3, "little") + raw + b"\0"  # a compressed block that is longer than its content
    for what, frame in (
        ("index-unused-bit", stored[:4] + b"\x70" + stored[5:]),
        ("index-dictionary-0", stored[:4] + b"\x61\0" + stored[5:]),
        ("index-window-1k", stored[:4] + b"\x40\0" + stored[5:7] + block(2, len(literals), literals)),
        ("index-block-over-window", stored[:7] + block(2, len(literals), literals)),
    ):
        yield "R10", f"header-{what}", FORMAT, None, small().build(note, frame=lambda _, frame=frame: frame)


def node_cases() -> Iterator[Case]:
    """R4: limits on what the format leaves free. Each file is small and unfolds to much."""
    fill = 65_536 - head_values(small())

    def with_text(text: bytes, recipe: bytes) -> bytes:
        return small().build(text=lambda raw: raw.replace(text, recipe, 1))

    def lists(count: int) -> bytes:
        return b"[" + b"[]," * (count - 1) + b"[]]"

    def first(raw: bytes) -> bytes:
        index = json.loads(raw)
        return json.dumps({"tensors": index.pop("tensors")} | index, separators=(",", ":")).encode()

    recipe, shape = b'"recipe":{}', b'"shape":[4,3]'
    yield "R4", "recipe-values", LIMIT, None, small().build(put("recipe", {"a": [0] * fill}))
    yield "R4", "recipe-values-nested", LIMIT, None, small().build(put("recipe", {"a": [[0]] * (fill // 2 + 1)}))
    yield "R4", "optional-values", LIMIT, None, small().build(put("optional", {"a": [0] * (fill - 1)}))
    yield "R4", "recipe-60-mb", LIMIT, None, with_text(recipe, b'"recipe":{"a":' + lists(20_000_000) + b"}")
    texts: list[bytes] = []
    small().build(put("created_by", ""), text=lambda raw: texts.append(raw) or raw)
    head = texts[0].index(b'"tensors":[') + len(b'"tensors":')
    yield "R4", "head-4-mib", LIMIT, None, small().build(put("created_by", "a" * ((4 << 20) + 1 - head)))
    yield "R4", "entry-values", LIMIT, None, with_text(shape, b'"shape":' + lists(70_000))
    yield "R4", "entries-are-lists", FORMAT, None, small().build(put("tensors", [[]] * 70_000))
    yield "R4", "tensors-object", FORMAT, None, small().build(put("tensors", {}))
    yield "R4", "tensors-number", FORMAT, None, small().build(put("tensors", 1))
    yield "R4", "tensors-first", FORMAT, None, small().build(text=first)
    yield "R4", "tensors-cut", FORMAT, None, small().build(text=lambda raw: raw[:-2])
    yield "R4", "tensors-comma-last", FORMAT, None, small().build(text=lambda raw: raw[:-2] + b",]}")
    yield "R4", "tensors-brace-more", FORMAT, None, small().build(text=lambda raw: raw + b"}")
    yield "R4", "key-after-tensors", FORMAT, None, small().build(text=lambda raw: raw[:-1] + b',"u":1}')


def head_values(pack: Pack) -> int:
    """JSON values of the index outside `tensors`."""

    def count(value: Any) -> int:
        inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
        return 1 + sum(map(count, inner))

    index = json.loads(zstandard.decompress(_index_of(pack.build())))
    return count({key: value for key, value in index.items() if key != "tensors"})


def file_cases() -> Iterator[Case]:
    """R4 on side files, statistics and blob references; R11 and R12 on files of the base; R12 where no base is needed."""
    A = ("tensors", 0)
    for what, edit in (
        ("files-object", put("files", {})),
        ("files-false", put("files", False)),
        ("file-blob-null", put("files", 0, "blob", None)),
        ("file-size-string", put("files", 0, "size", "7")),
        ("stats-l1-missing", put(*A, "stats", {"max_abs": "1"})),
        ("stats-max-abs-missing", put(*A, "stats", {"l1": "1"})),
        ("stats-one-more", put(*A, "stats", {"l1": "1", "l2": "1", "max_abs": "1"})),
        ("stats-empty", put(*A, "stats", {})),
        ("stats-number", put(*A, "stats", {"l1": 1, "max_abs": "1"})),
        ("blob-offset-negative", put(*A, "terms", 0, "blob", 0, -64)),
        ("stored-length-negative", put("tensors", 1, "stored", 1, -1)),
        ("file-length-negative", put("files", 0, "blob", 1, -1)),
    ):
        yield "R4", what, FORMAT, None, small().build(edit)
    base = "invalid-base"  # with the file LICENSE, "from the base"
    yield "R11", "file-missing", MISMATCH, base, small().file("gone.json", b"1", inside=False).build()
    yield "R12", "file-differs", MISMATCH, base, small().file("LICENSE", b"from the BASE", inside=False).build()
    longer = small().file("LICENSE", b"from the base", inside=False)
    yield "R12", "file-size", MISMATCH, base, longer.build(put("files", 0, "size", 14))
    wrong = small()
    lie(wrong, "b", "0" * 32)
    yield "R12", "stored-alone", CHECKSUM, None, wrong.build()
    empty = small().stored("d", tensor("i16", (0, 3), []))
    lie(empty, "d", "0" * 32)
    yield "R12", "no-elements-alone", CHECKSUM, None, empty.build()
    for what, width, chunk in (("tail-alone", 1 << 20, 1), ("tail-alone-last", (1 << 20) - 1, 2), ("tail-alone-moved", (1 << 20) - 1, 1)):
        grown = Pack().patched("w", tensor("f8_e5m2", (1, width), 0x2E), [], shape=(3, width), tail=bytes(2 * width))
        digests = list(grown.result["w"].chunk_digests)
        digests[chunk] = bytes(16)
        blob = grown.base["w"].chunk_digests + digests
        grown.entries[0]["digests"] = Blob(b"".join(blob))
        text = f"f8_e5m2\0{3},{width}\0".encode()
        lie(grown, "w", xxhash.xxh3_128_hexdigest(text + b"".join(digests)))
        yield "R12", what, CHECKSUM, None, grown.build()


def lie(pack: Pack, name: str, digest: str) -> None:
    """Give a tensor of the result another digest, which `result.fingerprint` then fits."""
    new = pack.result[name]
    pack.result[name] = Liar(new.dtype, new.shape, new.data, digest)
    next(entry for entry in pack.entries if entry["name"] == name)["digest"] = digest


@dataclass(frozen=True)
class Liar(Tensor):
    """A tensor that states a digest of its own."""

    stated: str

    @property
    def digest(self) -> str:
        """Not the one of its elements."""
        return self.stated


def invalid_packs() -> Iterator[Case]:
    """Rule, what, error class, base and bytes of each invalid vector."""
    names = {name for name, _, _ in valid_packs()}
    for group in (prologue_cases, json_cases, index_cases, chunk_cases, base_cases, header_cases, node_cases, file_cases):
        for case in group():
            assert case[3] is None or case[3] in names, case[:4]
            yield case
