"""The invalid vectors, by rule, for make_vectors.py only: each a valid pack with one fault, and all else made to fit it.

Where the fault leaves a base that fits, the vector names it: a decoder that lacks the check restores the file without complaint.
`tests/test_one_fault.py` holds every vector to that.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import xxhash
import zstandard
from vectors import scalar
from vectors.arranged import arranged_cases, valid_arranged
from vectors.assemble import (
    BASE_FILES,
    Blob,
    Json,
    Pack,
    Tensor,
    Term,
    dump,
    round_up,
    settle,
    stored_blob,
    stream,
    zstd,
    zstd_after,
)
from vectors.containers import container_cases, valid_containers
from vectors.exact_entries import exact_cases, valid_exact
from vectors.faults import CHECKSUM, FORMAT, LIMIT, MISMATCH, UNSUPPORTED, Case, drop, put
from vectors.invalid_blobs import blob_cases
from vectors.invalid_fields import field_cases
from vectors.lossy import lossy_packs
from vectors.lossy_invalid import lossy_cases
from vectors.scalar import size_of
from vectors.valid import floats, tensor, term, valid_packs


def small(**options: Any) -> Pack:
    """A pack with little of everything; its base is that of v1-ok-invalid-base."""
    gaps = term("gaps", "int4", [0, 5, 11], shift=0)
    gaps.spoil = options.get("spoil")
    gaps.scales = options.get("scales", gaps.scales)
    gaps.factor = options.get("factor", gaps.factor)
    return (
        Pack()
        .patched("a", floats("bf16", (4, 3)), options.get("terms", [gaps]))
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
        yield case("R1", f"magic-{i}", with_fields(magic=bytes(b ^ 0x80 if j == i else b for j, b in enumerate(good[:8]))))
    yield case("R1", "crlf", good.replace(b"\r\n", b"\n"))
    yield case("R1", "unfinished", bytes(64) + good[64:])
    yield case("R1", "safetensors", b"\x02\0\0\0\0\0\0\0{}" + bytes(60))
    yield case("R1", "flags", with_fields(flags=1))
    yield case("R1", "flags-high", with_fields(flags=1 << 31))
    yield case("R1", "hash", with_fields(spoil=1), CHECKSUM)
    yield case("R1", "flip", good[:10] + bytes([good[10] ^ 1]) + good[11:], CHECKSUM)  # `minor`, which is not looked at
    for major in (0, 2, 65535):
        yield case("R2", f"major-{major}", with_fields(major=major), UNSUPPORTED)
    yield case("R2", "cut", good[:-1])
    yield case("R2", "cut-to-prologue", good[:64])
    yield case("R2", "appended", good + b"\0")
    yield case("R2", "length-huge", with_fields(file_length=2**64 - 1))
    length = int.from_bytes(good[32:40], "little")
    yield case("R2", "length-one-more", with_fields(file_length=len(good) + 1, index_length=length + 1))
    yield case("R3", "offset-past-end", with_fields(index_offset=len(good) + 8))
    yield case("R3", "offset-huge", with_fields(index_offset=2**64 - 8))
    yield case("R3", "offset-wraps", with_fields(index_offset=2**64 - 8, index_length=(len(good) + 8) % 2**64))
    yield case("R3", "offset-in-prologue", with_fields(index_offset=56, index_length=len(good) - 56))
    yield case("R3", "offset-odd", small().build(blobs=lambda region: region + b"\0"))
    yield case("R3", "length-zero", small().build(frame=lambda _: b""))
    yield case("R3", "length-short", with_fields(index_length=length - 1))
    yield case("R3", "raw-one-more", small().build(lambda index: put("recipe", "x", "a" * _room(index))(index)), LIMIT)
    yield case("R3", "raw-huge", with_fields(index_raw_length=2**64 - 1), LIMIT)
    yield case("R3", "hash", with_fields(index_hash=0), CHECKSUM)
    plain = small().build(frame=raw_frame)
    at = plain.index(b"make_vectors")
    yield case("R3", "flip", plain[:at] + b"f" + plain[at + 1 :], CHECKSUM)


def _room(index: Json) -> int:
    """The length of a text in `recipe` with which the index has a byte more than the limit of 64 MiB."""
    twin = copy.deepcopy(index)
    settle(twin, lambda n, end: round_up(end))
    return (256 << 20) + 1 - len(dump(twin)) - len('"x":""')


def raw_frame(raw: bytes) -> bytes:
    """A frame of one block that is not compressed: its bytes can be found in the file."""
    assert 256 <= len(raw) < 1 << 16
    return b"\x28\xb5\x2f\xfd\x60" + (len(raw) - 256).to_bytes(2, "little") + (len(raw) << 3 | 1).to_bytes(3, "little") + raw


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
        "utf8-overlong": sub(b"make_vectors 1", b"\xc0\xae"),
        "utf8-surrogate": sub(b"make_vectors 1", b"\xed\xa0\x80"),
        "utf8-beyond": sub(b"make_vectors 1", b"\xf4\x90\x80\x80"),
        "utf8-cut": sub(b"make_vectors 1", b"\xe2\x82"),
        "utf8-in-name": sub(b'"name":"b"', b'"name":"b\xff"'),
        "utf16": lambda raw: raw.decode().encode("utf-16-le"),
        "surrogate": sub(b"make_vectors 1", b"\\ud800"),
        "escape": sub(b"make_vectors 1", b"\\u006dake"),
        "escape-upper": sub(b"make_vectors 1", b"\\u001F"),
        "escape-slash": sub(b"make_vectors 1", b"\\/"),
        "escape-unknown": sub(b"make_vectors 1", b"\\q"),
        "escape-x": sub(b"make_vectors 1", b"\\x41"),
        "escape-not-hex": sub(b"make_vectors 1", b"\\u00zz"),
        "escape-cut": sub(b"make_vectors 1", b"\\u00"),
        "escape-delete": sub(b"make_vectors 1", b"\\u007f"),
        "escape-newline-long": sub(b"make_vectors 1", b"\\u000a"),
        "escape-pair": sub(b"make_vectors 1", b"\\ud83d\\ude00"),
        "control-newline": sub(b"make_vectors 1", b"make\nvectors"),
        "control-nul": sub(b"make_vectors 1", b"make\0vectors"),
        "control-1f": sub(b"make_vectors 1", b"make\x1fvectors"),
        "space": sub(b":", b": "),
        "newline-after": lambda raw: raw + b"\n",
        "trailing": lambda raw: raw + raw,
        "duplicate-key": sub(b'"format":"dpk",', b'"format":"dpk","format":"dpk",'),
        "unsorted": lambda raw: json.dumps(later, separators=(",", ":")).encode(),
        "float": sub(b'"nnz":3', b'"nnz":3.0'),
        "float-large": sub(b'"recipe":{}', b'"recipe":{"x":1e400}'),
        "infinity": sub(b'"recipe":{}', b'"recipe":{"x":-Infinity}'),
        "int-minus-2-53": sub(b'"recipe":{}', b'"recipe":{"x":-9007199254740992}'),
        "plus": sub(b'"nnz":3', b'"nnz":+3'),
        "comma-after": sub(b'"recipe":{}', b'"recipe":{"x":[1,]}'),
        "cut-short": lambda raw: raw[:-1],
        "exponent": sub(b'"nnz":3', b'"nnz":3e0'),
        "nan": sub(b'"recipe":{}', b'"recipe":{"x":NaN}'),
        "minus-zero": sub(b'"recipe":{}', b'"recipe":{"x":-0}'),
        "leading-zero": sub(b'"nnz":3', b'"nnz":03'),
        "int-2-53": sub(b'"recipe":{}', b'"recipe":{"x":9007199254740992}'),
        "int-5000-digits": sub(b'"recipe":{}', b'"recipe":{"x":' + b"9" * 5000 + b"}"),
        "depth-9": sub(b'"recipe":{}', b'"recipe":{"x":' + b"[" * 7 + b"]" * 7 + b"}"),
        "depth-9-in-entry": sub(b'"shape":[4,3]', b'"shape":' + b"[" * 6 + b"]" * 6),
        "depth-100000": lambda raw: deep,
        "top-list": lambda raw: b"[]",
    }
    for what, text in texts.items():
        yield "R4", what, FORMAT, "invalid-base", small().build(text=text)


def _index_of(data: bytes) -> bytes:
    return data[int.from_bytes(data[24:32], "little") :]


def index_cases() -> Iterator[Case]:
    """R4 to R7 and R13 on what the index says."""
    A, TERM = ("tensors", 0), ("tensors", 0, "terms", 0)
    edits: list[tuple[str, str, str, Callable[[Json], None]]] = [
        ("R4", "format", FORMAT, put("format", "gguf")),
        ("R4", "other-index-key", FORMAT, put(*TERM, "keep", 1)),
        ("R4", "hex-upper", FORMAT, put(*TERM, "factor", "3F800000")),
        ("R4", "hex-newline", FORMAT, put(*TERM, "factor", "3f80000\n")),
        ("R4", "required-unsorted", FORMAT, put("required", ["b", "a"])),
        ("R4", "required-twice", FORMAT, put("required", ["a", "a"])),
        ("R5", "feature", UNSUPPORTED, put("required", ["x.future"])),
        ("R5", "kind", UNSUPPORTED, put(*A, "kind", "rotated")),
        ("R5", "index-codec", UNSUPPORTED, put(*TERM, "index", "csr")),
        ("R5", "value-codec", UNSUPPORTED, put(*TERM, "values", "int0")),
        ("R5", "dtype", UNSUPPORTED, put("tensors", 1, "dtype", "u12")),
        ("R5", "base-dtype", UNSUPPORTED, put("tensors", 2, "base", "dtype", "u12")),
        *(("R6", f"name-{what}", FORMAT, _renamed(name)) for what, name in NAMES.items()),
        *(("R6", f"base-name-{what}", FORMAT, put(*A, "base", "name", name)) for what, name in NAMES.items()),
        ("R6", "name-twice", FORMAT, put("tensors", 1, "name", "a")),
        ("R6", "unsorted", FORMAT, lambda index: index["tensors"].reverse()),
        ("R6", "dim-negative", FORMAT, put(*A, "shape", [-4, -3])),
        ("R6", "base-dim-negative", FORMAT, put("tensors", 2, "base", "shape", [-2, -1])),
        ("R6", "ndim-9", LIMIT, put(*A, "shape", [4, 3, 1, 1, 1, 1, 1, 1, 1])),
        ("R6", "base-ndim-9", LIMIT, put("tensors", 2, "base", "shape", [2, 1, 1, 1, 1, 1, 1, 1, 1])),
        ("R6", "numel", LIMIT, put("tensors", 2, "base", "shape", [2**24, 2**24 + 1])),
        ("R6", "numel-wraps", LIMIT, put("tensors", 2, "base", "shape", [2**32, 2**32])),
        ("R6", "shift-negative", FORMAT, put(*TERM, "shift", -1)),
        ("R6", "nnz-13", FORMAT, put(*TERM, "nnz", 13)),
        ("R6", "nnz-negative", FORMAT, put(*TERM, "nnz", -1)),
        ("R6", "terms-on-int", FORMAT, lambda index: put(*A, "base", "dtype", "bf16")(index) or put(*A, "dtype", "i16")(index)),
        ("R6", "terms-on-int-base", FORMAT, put(*A, "base", "dtype", "i16")),
        ("R6", "base-same-dtype", FORMAT, put(*A, "base", "dtype", "bf16")),
        ("R6", "base-same-name", FORMAT, put(*A, "base", "name", "a")),
        ("R6", "removed-renamed", FORMAT, put("tensors", 2, "base", "name", "d")),
        ("R6", "base-used-twice", FORMAT, put("tensors", 0, "base", "name", "c")),
        ("R6", "base-tensors", FORMAT, put("base", "tensors", 1)),
        ("R6", "result-tensors", FORMAT, put("result", "tensors", 3)),
        ("R6", "result-bytes", FORMAT, put("result", "bytes", 31)),
        ("R6", "result-fingerprint", FORMAT, put("result", "fingerprint", "0" * 64)),
        ("R6", "alias-of-nothing", FORMAT, lambda index: _alias(index, "x")),
        ("R6", "alias-of-itself", FORMAT, lambda index: _alias(index, "d")),
        ("R6", "alias-of-removed", FORMAT, lambda index: _alias(index, "c")),
        ("R6", "unchanged-digest", FORMAT, lambda index: _unchanged(index, {"digest": "1" * 32})),
        ("R6", "unchanged-dtype", FORMAT, lambda index: _unchanged(index, {"digest": "0" * 32, "dtype": "f16"})),
        *(
            ("R6", f"stats-{what}", FORMAT, put(*A, "stats", {"l1": "0", "max_abs": "0"} | {key: text}))
            for what, key, text in (
                *(("infinite", "l1", "inf"), ("max-nan", "max_abs", "nan"), ("negative", "l1", "-1"), ("empty", "l1", "")),
                *(("point-first", "max_abs", ".5"), ("space", "l1", "1 "), ("exponent-empty", "l1", "1e")),
                *(("l1-65", "l1", "0." + "1" * 63), ("max-65", "max_abs", "7" * 65)),
            )
        ),
        ("R6", "file-size-negative", FORMAT, lambda index: _file_of_base(index, -1)),
        ("R6", "file-size-limit", LIMIT, lambda index: _file_of_base(index, (256 << 20) + 1)),
    ]
    late: list[tuple[str, str, str, Callable[[Json], None]]] = [
        ("R7", "past-index", FORMAT, put("files", 0, "blob", 1, 1 << 20)),
        ("R7", "past-2-53", FORMAT, put("files", 0, "blob", 1, 2**53 - 1)),
        ("R7", "hidden-bytes", FORMAT, drop("files", 0, "blob")),
        ("R4", "blob-negative-term", FORMAT, put(*TERM, "blob", 0, -64)),
        ("R4", "blob-negative-stored", FORMAT, put("tensors", 1, "stored", 1, -1)),
        ("R4", "blob-negative-offset", FORMAT, put("files", 0, "blob", 0, -8)),
        ("R4", "blob-negative-length", FORMAT, put("files", 0, "blob", 1, -1)),
    ]
    names = {
        **{"empty": "", "absolute": "/etc/x", "parent": "../x", "parent-inside": "a/../x", "double-slash": "a//b"},
        **{"folder": "a/", "dot": "./a", "backslash": "a\\b", "drive": "c:x", "newline": "a\nb", "c1": "a\u0085"},
        **{"nul": "a\0", "1f": "a\x1fb", "delete": "a\x7f", "80": "a\x80", "9f": "a\x9f", "drive-only": "c:"},
        **{
            "hidden": ".git/x",
            "hidden-inside": "a/.b",
            "513-bytes": "n" * 255 + "/" + "n" * 255 + "/n",
            "part-256": "n" * 256,
            "weights": "model.safetensors",
        },
        **{
            "weights-upper": "sub/MODEL.SAFETENSORS",
            "weights-index": "model.safetensors.index.json",
            "weights-part": "model.safetensors/x",
            "weights-bin": "model.bin",
            "weights-pickle": "sub/state.PKL",
            "weights-bin-index": "pytorch_model.bin.index.json",
            "deep": "a/b/c/d/e/f.txt",
        },
    }
    for what, name in names.items():
        edits.append(("R13", f"name-{what}", FORMAT, put("files", 0, "name", name)))
    for rule, what, error, edit in edits:
        yield rule, what, error, None if what in NO_BASE else "invalid-base", small().build(edit)
    for rule, what, error, edit in late:
        yield rule, what, error, "invalid-base", small().build(late=edit)
    yield from layout_cases()
    yield from term_cases()
    fresh, old = tensor("i32", (2,), [1, 2]), tensor("i32", (2,), [3, 4])
    for key, same in (("name", "w"), ("dtype", "i32"), ("shape", [2])):
        other = {"name": "v"} | ({key: same} if key != "name" else {})
        twin = Pack().stored("w", fresh, replaces=("w" if key == "name" else "v", old))
        data = twin.build(lambda index, new=other | {key: same}: index["tensors"][0]["base"].update(new))  # type: ignore[misc]
        yield "R6", f"base-same-{key}-stored", FORMAT, None, data
    old = floats("bf16", (4, 3))
    unneeded = Pack().patched("w", old, [term("all", "int8", list(range(12)))], base_name="old")
    unneeded.entries[0]["digests"] = Blob(b"".join(old.chunk_digests + unneeded.result["w"].chunk_digests))
    yield "R6", "digests-not-needed", FORMAT, "kind-delta", unneeded.build()
    less = Pack().patched("w", old, [Term("all", "f32", list(range(11)), [0] * 11)])
    yield "R6", "all-nnz", FORMAT, None, less.build()
    new_key = lambda index: index.update(required=["x.future"], extra=1)  # noqa: E731
    base = "invalid-base"
    yield "R5", "feature-with-new-key", UNSUPPORTED, None, small().build(new_key)
    twice = small().file("b.json", b"1")
    yield "R6", "files-unsorted", FORMAT, base, twice.build(lambda index: index["files"].reverse())
    yield "R6", "files-twice", FORMAT, base, small().file("config.json", b"1").build()
    yield "R13", "file-is-folder", FORMAT, base, small().file("config.json/x", b"1").build()
    yield "R13", "file-is-folder-case", FORMAT, base, small().file("Config.JSON/x", b"1").build()
    yield "R13", "case-files", FORMAT, base, small().file("CONFIG.json", b"1").build()
    yield "R6", "metadata-name", FORMAT, "index-empty", Pack().stored("__metadata__", fresh).build()
    many = small()
    many.files = [{"name": f"f{i:04}", "size": 0, "sha256": "0" * 64} for i in range(1001)]
    yield "R6", "files-1001", LIMIT, None, many.build()
    big = small()
    big.files = [{"name": f"f{i}", "size": 256 << 20, "sha256": "0" * 64} for i in range(5)]
    yield "R6", "files-bytes", LIMIT, None, big.build()
    rows = bytes(2 * 3)
    for what, kind, old_shape, shape, tail in (
        ("grown-equal", "grown", (4, 3), (4, 3), b""),
        ("grown-fewer", "grown", (5, 3), (4, 3), b""),
        ("grown-trailing", "grown", (3, 2), (4, 3), 2 * rows),
        ("grown-rank", "grown", (3, 3, 1), (4, 3), rows),
        ("grown-scalar", "grown", (), (), b""),
        ("grown-from-scalar", "grown", (), (4,), 3 * bytes(2)),
        ("shrunk-to-scalar", "shrunk", (4,), (), b""),
        ("shrunk-equal", "shrunk", (4, 3), (4, 3), b""),
        ("shrunk-more", "shrunk", (4, 3), (5, 3), rows),
        ("shrunk-trailing", "shrunk", (6, 3), (5, 2), b""),
        ("shrunk-rank", "shrunk", (6, 3, 1), (5, 3), b""),
        ("shrunk-scalar", "shrunk", (), (), b""),
        ("delta-other-shape", "delta", (3, 4), (4, 3), b""),
        ("unchanged-other-shape", "unchanged", (3, 4), (4, 3), b""),
    ):
        pack = Pack().patched("a", floats("bf16", old_shape), [], shape=shape, tail=tail)
        entry = pack.entries[0]
        entry["kind"] = kind
        if kind == "grown":
            entry["stored"] = stored_blob(tail, 2)
        else:
            entry.pop("stored", None)
        if kind == "unchanged":
            del entry["terms"]
            entry["digest"] = entry["base"]["digest"].hex("bf16", old_shape)
        yield "R6", what, FORMAT, None, pack.build()
    for what, change in (("missing", None), ("short", bytes(16)), ("long", bytes(48))):
        pack = large_pack(change)
        if change is None:
            del pack.entries[0]["digests"]
        yield "R6", f"digests-{what}", FORMAT, None if change else "index-empty", pack.build()
    alias = {"kind": "alias", "name": "a", "of": "b"}
    yield "R6", "tensors-1000001", LIMIT, None, Pack().build(lambda index: index["tensors"].extend([alias] * 1_000_001))


NAMES = {
    **{"empty": "", "nul": "a\0", "1f": "a\x1f", "delete": "a\x7f", "80": "a\x80", "c1": "a\u009b", "9f": "a\x9f"},
    **{"513": "a" * 513, "513-bytes": "a" + "\u00e9" * 256},
}
"""Names that no tensor may have. The first characters that are allowed again are in v1-ok-names."""
NO_BASE = {
    *("dim-negative", "base-dim-negative", "ndim-9", "base-ndim-9", "numel", "numel-wraps", "terms-on-int", "terms-on-int-base"),
    *("base-used-twice", "dtype", "base-dtype", "feature", "kind", "removed-renamed", "base-tensors", "value-codec", "index-codec"),
    *("unchanged-digest", "unchanged-dtype"),
    *(f"base-name-{what}" for what in NAMES),
}
"""Faults that no base fits."""


def _renamed(name: str) -> Callable[[Json], None]:
    def edit(index: Json) -> None:
        index["tensors"][0]["base"]["name"] = index["tensors"][0]["name"]
        index["tensors"][0]["name"] = name

    return edit


def _file_of_base(index: Json, size: int) -> None:
    del index["files"][0]["blob"]
    index["files"][0]["size"] = size


def term_cases() -> Iterator[Case]:
    """R4 and R6 on the numbers of a term, whose chunks are written and restored as the number says."""
    base, one, key = "invalid-base", [Term("all", "f32", list(range(12)), [0x3F800000] * 12)], "0" * 16
    yield "R6", "terms-65", LIMIT, base, small(terms=one * 65).build()
    for what, bits in (("inf", 0x7F800000), ("minus-inf", 0xFF800000), ("nan", 0x7FC00000)):
        yield "R6", f"factor-{what}", FORMAT, base, small(factor=bits).build()
    single = small(terms=[Term("gaps", "f32", [5], [0x3F800000], params={"shift": 0})])
    yield "R4", "bool-as-int", FORMAT, base, single.build(put("tensors", 0, "terms", 0, "nnz", True))
    for what, keep in (("zero", 0), ("2-32", 1 << 32)):
        kept = scalar.seeded_positions(keep, 0, 0, 12)
        yield "R6", f"keep-{what}", FORMAT, base, small(terms=[term("seeded", "f32", kept, keep=keep, key=key)]).build()
    yield "R6", "shift-16", FORMAT, base, small(terms=[term("gaps", "f32", [0, 5, 11], shift=16)]).build()


def layout_cases() -> Iterator[Case]:
    """R7: where blobs stand."""
    base = "invalid-base"
    for what, number, by in (("first-not-64", 0, 8), ("hole", 1, 8), ("hole-later", 2, 8), ("hole-of-one", 1, 1)):
        place = lambda n, end, number=number, by=by: round_up(end) + (by if n == number else 0)  # noqa: E731
        yield "R7", what, FORMAT, base, small().build(place=place)
    yield "R7", "misaligned", FORMAT, base, small().build(place=lambda n, end: end if n == 1 else round_up(end))
    yield "R7", "hole-before-index", FORMAT, base, small().build(blobs=lambda region: region + bytes(8))
    twins = Pack().stored("a", tensor("u8", (3,), 1)).stored("b", tensor("u8", (3,), 1))
    yield "R7", "overlap", FORMAT, "index-empty", twins.build(place=lambda n, end: 64)
    # Of `small` each blob is followed by padding: 43 bytes of a term, 22 of a tensor, 7 of a file.
    for what, number in (("term", 0), ("stored", 1), ("file", 2)):
        yield "R7", f"padding-after-{what}", FORMAT, base, small().build(blobs=lambda region, n=number: _dirt(region, n))
    ends = Pack().unchanged("a", floats("bf16", (4, 3))).stored("w", tensor("u8", (1048577,), 0))
    ends.base, ends.entries = {}, ends.entries[1:]
    ends.file("x", b"1234567")
    odd = lambda region: region[:-1] + b"\1"  # noqa: E731
    yield "R7", "padding-before-index", FORMAT, "index-empty", ends.build(blobs=odd)


def _dirt(region: bytes, number: int) -> bytes:
    """Set the last of the bytes that rounding skips after blob `number` of `small`."""
    end = (48, 72, 80)[number]
    assert region[end - 1] == 0
    return region[: end - 1] + b"\1" + region[end:]


def _alias(index: Json, of: str) -> None:
    index["tensors"].append({"name": "d", "kind": "alias", "of": of})


def _unchanged(index: Json, base: Json) -> None:
    entry = index["tensors"][0]
    del entry["terms"]
    entry |= {"kind": "unchanged", "digest": "0" * 32, "base": base}


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
        return spoiled(streams=lambda old: [(stored, len(stored) if raw is None else raw) if j == i else s for j, s in enumerate(old)])

    def flip(data: bytes, at: int) -> bytes:
        return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]

    # The term's blob of `small`: table of 8 + 3 * 8 + 4 = 36 bytes, then gaps 00 04 05, two bytes of codes, a scale.
    good = small().build()
    codes = good[64 + 39 : 64 + 41]
    yield "R8", "table-hash", CHECKSUM, base, small().build(lambda index: _flip(index["tensors"][0]["terms"][0]["blob"]))
    yield "R8", "payload-flip", CHECKSUM, base, small().build(blobs=lambda region: flip(region, 36))
    yield "R8", "payload-hash", CHECKSUM, base, spoiled(flip=lambda _: 1)
    yield "R8", "file-hash", CHECKSUM, base, small().build(lambda index: _flip(index["files"][0]["blob"]))
    yield "R8", "file-sha256", CHECKSUM, base, small().build(put("files", 0, "sha256", "0" * 64))
    yield "R8", "file-blob-longer", FORMAT, base, small(blob=Blob(zstd(b'{"a":1}'))).build()
    yield "R8", "count-over-tile", FORMAT, "tiles-bitmap", _overfull()
    yield "R8", "count-not-nnz", FORMAT, base, small().build(put("tensors", 0, "terms", 0, "nnz", 2))
    yield "R8", "stored-over-raw", FORMAT, base, streams(1, zstd(codes), 2)
    yield "R8", "codes-raw-long", FORMAT, base, streams(1, codes + b"\0")
    yield "R8", "codes-raw-short", FORMAT, base, streams(1, codes[:1])
    yield "R8", "scales-raw-long", FORMAT, base, streams(2, b"\0\0\0\0")
    yield "R8", "scales-raw-none", FORMAT, base, streams(2, b"")
    yield "R8", "gaps-raw-short", FORMAT, base, streams(0, b"\0\4")
    yield "R8", "gaps-raw-long", FORMAT, base, streams(0, b"\0\4\5\0")
    yield "R8", "raw-huge", FORMAT, base, streams(1, b"\0\0", 2**32 - 1)
    yield "R8", "blob-under-table", FORMAT, "index-gaps-none", _one_blob(Blob(bytes(16)))
    yield "R8", "payload-past-blob", FORMAT, "index-gaps-none", _one_blob(_cut(1))
    yield "R8", "payload-then-more", FORMAT, "index-gaps-none", _one_blob(_cut(-1))
    yield "R9", "gaps-leave-tile", FORMAT, base, streams(0, b"\0\4\6")
    yield "R9", "gaps-far", FORMAT, base, streams(0, b"\0\4\xfe")
    for what, data in gap_cases():
        yield "R9", what, FORMAT, "index-gaps", data
    yield "R9", "codes-unused-bits", FORMAT, base, streams(1, codes[:1] + bytes([codes[1] | 0x10]))
    yield "R9", "scale-inf", FORMAT, base, small(scales=[0x7F80]).build()
    yield "R9", "scale-nan", FORMAT, base, small(scales=[0x7FC0]).build()
    yield from mask_cases()
    yield from frame_cases(good)


def _overfull() -> bytes:
    """The first tile counts 65,537 elements, the second none; gaps, codes and scales are those of 65,537 elements in a row."""
    every = Term("gaps", "sign", list(range(65537)), [1] * 65537, [0x3A80] * 513, params={"shift": 0})
    every.spoil = lambda chunk: chunk.update(counts=[65537, 0])
    return Pack().patched("w", tensor("bf16", (65836,), 0x3DCD), [every]).build()


def _flip(blob: Blob) -> None:
    blob.flip = 1


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
    yield "gaps-all-255", with_gaps(b"\xff\xff", 0, [])
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
    t.spoil = spoil(0, lambda raw: raw[:-1] + bytes([raw[-1] & 0x03 | 0x80]))  # bit 122 is bit 127 now: as many as before
    yield "R9", "bitmap-bit-past-end", FORMAT, "index-bitmap", build(t)
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
    t.codes, t.scales = [1, 1], [0x3F00, 0x3F00]
    t.spoil = lambda chunk: chunk.update(counts=[2, 0], streams=[*chunk["streams"][:2], (b"\0\x3f", 2)])
    yield "R9", "bitmap-count-other-tile", FORMAT, "tiles-bitmap", build(t, two)
    for codec, bits in (("f32", 0x7F800000), ("bf16", 0x7FC0), ("f16", 0xFC00)):
        count = 37
        t = term("bitmap", codec, list(range(0, count * 2, 2)))
        t.codes[5] = bits
        good = Pack().patched("w", floats("f32" if codec == "f32" else "bf16", (count * 2,)), [t])
        yield "R9", f"code-{codec}", FORMAT, f"values-{codec}", good.build()
    odd = term("bitmap", "sign", list(range(0, 522, 2)))
    odd.spoil = spoil(1, lambda raw: raw[:-1] + bytes([raw[-1] | 0x80]))
    yield "R9", "sign-unused-bits", FORMAT, "values-sign", build(odd, floats("bf16", (522,)))


def frame_cases(good: bytes) -> Iterator[Case]:
    """R10 on the index and on a stream."""
    raw = zstandard.decompress(_index_of(good))
    flat = zstd(raw)
    no_size = zstandard.ZstdCompressor(level=1, write_content_size=False).compress(raw)
    samples: list[bytes | bytearray | memoryview] = [raw[i : i + 60] for i in range(0, 400, 5)]
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
    A, gone = ("tensors", 0), small().base["c"]
    edits = (
        ("R11", "missing", put(*A, "base", "name", "x")),
        ("R11", "dtype", put(*A, "base", {"digest": small().base["a"].digest, "dtype": "f16"})),
        ("R11", "removed-shape", put("tensors", 2, "base", {"digest": gone.digest, "dtype": "f32", "shape": [1, 2]})),
        ("R11", "removed-dtype", put("tensors", 2, "base", {"digest": gone.digest, "dtype": "i32", "shape": [2]})),
        ("R12", "digest", put(*A, "base", "digest", "0" * 32)),
    )
    for rule, what, edit in edits:
        yield rule, what, MISMATCH, base, small().build(edit)
    wider = small()
    wider.removed("d", floats("f32", (2,)))
    yield "R11", "base-lacks-removed", MISMATCH, base, wider.build()
    first = floats("bf16", (4, 3))
    last = Tensor("bf16", (4, 3), first.data[:-2] + bytes(2))
    other = Pack().patched("w", last, [term("bitmap", "int4", [0, 8])], shape=(3, 3))  # the row that goes is another
    yield "R12", "other-values", MISMATCH, "kind-shrunk", other.build()
    other = Pack().unchanged("a", floats("bf16", (4, 3), 9)).unchanged("b", tensor("i64", (2,), [1, 2**63]))
    yield "R12", "unchanged", MISMATCH, "kind-unchanged", other.unchanged("c", floats("bf16", (4, 3)), "old.c").build()
    wrong = small()
    a = wrong.result["a"]
    fake = Tensor(a.dtype, a.shape, bytes(len(a.data)))
    wrong.entries[0]["digest"] = fake.root
    yield "R12", "result", CHECKSUM, base, wrong.build()
    wrong = Pack().stored("w", tensor("u8", (3,), 1))
    fake = tensor("u8", (3,), 2)
    wrong.entries[0]["digest"] = fake.root
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
    for what, (frame, length) in frames.items():
        spoil = lambda chunk, stored=(frame, length): chunk.update(streams=[stored])  # noqa: E731
        yield "R10", f"header-{what}", FORMAT, "index-empty", Pack().stored("w", tensor("u8", (length,), 97), spoil).build()
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
    small().build(put("created_by", ""), text=lambda raw: texts.append(raw) or raw)  # type: ignore[func-returns-value]
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
        ("files-false", put("files", False)),
        ("stats-empty", put(*A, "stats", {})),
    ):
        yield "R4", what, FORMAT, None, small().build(edit)
    base, vocab = "invalid-base", BASE_FILES["vocab.txt"]
    yield "R11", "file-missing", MISMATCH, base, small().file("gone.json", b"1", inside=False).build()
    yield "R12", "file-differs", MISMATCH, base, small().file("vocab.txt", vocab.upper(), inside=False).build()
    longer = small().file("vocab.txt", vocab, inside=False)
    yield "R12", "file-size", MISMATCH, base, longer.build(put("files", 1, "size", len(vocab) + 1))
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


def referring_cases() -> Iterator[Case]:
    """Side files that refer to the base's."""
    base, vocab = "invalid-base", BASE_FILES["vocab.txt"]
    content = vocab + b"more\n" * 9

    def pack(blob: bytes | None = None, **options: Any) -> Pack:
        return small().referring("vocab.txt", content, None if blob is None else Blob(blob), **options)

    frame = zstd_after(vocab, content)
    single = frame[:4] + b"\x60" + (len(content) - 256).to_bytes(2, "little")
    assert frame[4] == 0x60 and frame.startswith(single)
    blocks = frame[len(single) :]
    missing = small().referring("vocab.txt", content)
    assert missing.files is not None
    missing.files[-1]["name"] = "zzz.txt"
    yield "R11", "file-base-missing", MISMATCH, base, missing.build()
    yield "R12", "file-base-differs", MISMATCH, base, pack(to=vocab.upper()).build()
    yield "R8", "file-base-hash", CHECKSUM, base, pack().build(lambda index: _flip(index["files"][1]["blob"]))
    yield "R8", "file-base-sha256", CHECKSUM, base, pack().build(put("files", 1, "sha256", "0" * 64))
    yield "R8", "file-base-as-it-is", FORMAT, base, pack(content).build()
    yield "R10", "file-base-window", FORMAT, base, pack(frame[:4] + b"\x40\x50" + single[5:] + blocks).build()
    yield "R10", "file-base-states-256m", FORMAT, base, pack(frame[:4] + b"\xa0" + (1 << 28).to_bytes(4, "little") + blocks).build()
    yield "R10", "file-base-dictionary-0", FORMAT, base, pack(frame[:4] + b"\x61\0" + single[5:] + blocks).build()
    yield "R10", "file-base-last-byte-gone", FORMAT, base, pack(frame[:-1]).build()
    yield "R10", "file-base-byte-more", FORMAT, base, pack(frame + b"\0").build()
    far = (
        Pack()
        .referring("vocab.txt", b"x" * 7 + vocab * 9, to=vocab + b"x" * 300)
        .build(put("files", 0, "base", hashlib.sha256(vocab).hexdigest()))
    )
    yield "R10", "file-base-far", FORMAT, "index-empty", far
    yield "R5", "file-base-feature", UNSUPPORTED, None, small().build(put("required", ["files.bases"]))
    old = small().file("vocab.txt", content)
    yield "R4", "extra-file-base", FORMAT, base, old.build(put("files", 1, "base", hashlib.sha256(vocab).hexdigest()))
    yield "R4", "lacks-file-blob", FORMAT, base, small().referring("vocab.txt", vocab).build(drop("files", 1, "blob"))


def folder_cases() -> Iterator[Case]:
    """Sub-folders with tensors."""
    base, old = "folders-only", floats("bf16", (4, 3))

    def pack(folders: Any, **options: Any) -> bytes:
        made = Pack().unchanged("unet/w", old)
        made.extra = {"required": ["folders"], "folders": folders}
        for name in options.get("files", ()):
            made.file(name, b"{}")
        return made.build(options.get("edit"))

    unet = {"unet": "model"}
    yield "R4", "lacks-index-folders", FORMAT, base, pack(unet, edit=drop("folders"))
    yield "R4", "extra-index-folders", FORMAT, base, pack(unet, edit=put("required", []))
    yield "R4", "type-index-folders-type", FORMAT, base, pack([])
    yield "R4", "type-index-folders-item", FORMAT, base, pack({"unet": 7})
    yield "R6", "folders-none", FORMAT, base, pack({})
    yield "R6", "folders-no-tensor", FORMAT, base, pack(unet | {"vae": "model"})
    yield "R6", "folders-outer", FORMAT, base, pack(unet | {"une": "model"})
    nameless = Pack().unchanged("a/", old).unchanged("a/w", old)
    nameless.extra = {"required": ["folders"], "folders": {"a": "model"}}
    yield "R6", "folders-no-name", FORMAT, None, nameless.build()
    for what, names in (("alias-elsewhere", ("b/x", "a/w")), ("alias-at-top", ("x", "a/w")), ("alias-of-top", ("a/x", "w"))):
        tied = Pack().unchanged("a/w", old).unchanged("b/w", old).unchanged("w", old).alias(*names)
        tied.extra = {"required": ["folders"], "folders": {"a": "model", "b": "model"}}
        yield "R6", f"folders-{what}", FORMAT, None, tied.build()
    paths = {
        **{"parent": "../x", "absolute": "/x", "empty": "", "hidden": "a/.b", "backslash": "a\\b", "drive": "c:"},
        **{"weights": "x.safetensors", "part-256": "n" * 256},
    }
    for what, path in paths.items():
        made = Pack().unchanged(f"{path}/w", old)
        made.extra = {"required": ["folders"], "folders": {path: "model"}}
        yield "R13", f"folder-{what}", FORMAT, None, made.build()
    stems = {"slash": "a/b", "parent": "..", "empty": "", "hidden": ".a", "backslash": "a\\b", "192": "n" * 192}
    for what, stem in stems.items():
        yield "R13", f"folder-stem-{what}", FORMAT, base, pack({"unet": stem})
    yield "R13", "folder-is-file", FORMAT, base, pack(unet, files=["unet"])
    twice = Pack().unchanged("unet/w", old).unchanged("UNet/w", old)
    twice.extra = {"required": ["folders"], "folders": {"unet": "model", "UNet": "model"}}
    yield "R13", "case-folders", FORMAT, None, twice.build()
    header = Pack().unchanged("unet/__metadata__", old)
    header.extra = {"required": ["folders"], "folders": unet}
    yield "R6", "metadata-name-of-folder", FORMAT, None, header.build()


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


def metadata_cases() -> Iterator[Case]:
    """R4 on the metadata of weight files."""
    for what, found in {
        "list": [],
        "strings": {"": "x"},
        "number": {"": {"x": 1}},
        "null": {"": {"x": None}},
        "folder": {"": {}, "a": []},
    }.items():
        data = small().build(lambda index, found=found: index.update(optional={"dpk.metadata": found}))  # type: ignore[misc]
        yield "R4", f"metadata-{what}", FORMAT, "invalid-base", data


def raw_cases() -> Iterator[Case]:
    """R5 and R6 on element types that 3.6 does not list."""
    unknown = {"known": "raw16:BF16", "other-width": "raw8:F4", "lower-case": "raw8:f4", "no-width": "raw0:X", "leading-zero": "raw08:X"}
    unknown |= {"no-name": "raw8:", "name-33": "raw8:" + "X" * 33, "width-1000": "raw1000:X"}
    for what, dtype in unknown.items():
        pack = Pack().stored("w", Tensor(dtype, (2,), bytes(size_of(dtype, [2]))))
        pack.extra = {"required": ["raw-types"]}
        yield "R5", f"raw-{what}", UNSUPPORTED, "index-empty", pack.build()
    odd = Tensor("raw4:F4", (3,), b"\x01")
    for what, pack, base in (
        ("raw-odd", Pack().stored("w", odd), "index-empty"),
        ("raw-odd-base", Pack().removed("w", odd), None),
    ):
        pack.extra = {"required": ["raw-types"]}
        yield "R6", what, FORMAT, base, pack.build()
    summed = Pack().unchanged("w", Tensor("raw8:X", (2,), b"\1\2"))
    summed.extra = {"required": ["raw-types"]}
    yield "R6", "terms-on-raw", FORMAT, None, summed.build(lambda index: index["tensors"][0].update(kind="delta", terms=[]))
    huge = Pack().unchanged("w", Tensor("raw999:X", (0,), b""))
    huge.extra = {"required": ["raw-types"]}
    yield "R6", "numel-raw", LIMIT, None, huge.build(lambda index: index["tensors"][0].update(shape=[1 << 42]))


def invalid_packs() -> Iterator[Case]:
    """Rule, what, error class, base and bytes of each invalid vector."""
    names = {name for name, _, _ in (*valid_packs(), *valid_arranged(), *valid_exact(), *valid_containers(), *lossy_packs())}
    groups = (
        *(prologue_cases, json_cases, index_cases, chunk_cases, base_cases, header_cases, node_cases, file_cases),
        *(raw_cases, metadata_cases, referring_cases, folder_cases, field_cases, blob_cases, arranged_cases, exact_cases, container_cases),
        lossy_cases,
    )
    for group in groups:
        for case in group():
            assert case[3] is None or case[3] in names, case[:4]
            yield case
