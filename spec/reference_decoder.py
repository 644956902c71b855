"""Reference decoder of the .dpk format, version 1.0: the specification as a program.

It follows the pages of this folder in their order and shares no code with deltapack. It prefers
clarity to speed and memory: it reads whole files and whole tensors. Where it and the pages differ,
one of them has a bug; see errata.md.

    python spec/reference_decoder.py BASE PACK [PACK ...] OUT.safetensors [--weight W ...] [--prefer N] [--factor F]

BASE is a .safetensors file or a folder that holds one or several. Weights are one for all packs, or one for each in their
order; N is the number of the pack that decides, from 1. A pack in parts is named by its index. Needs numpy, zstandard, xxhash.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import importlib.util
import itertools
import json
import math
import re
import struct
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import numpy as np
import xxhash
import zstandard

__all__ = [
    "Conflict",
    "Invalid",
    "check_alone",
    "read_pack",
    "restore",
    "restore_containers",
    "restore_files",
    "restore_several",
    "second_names",
    "side_files",
    "side_files_of_several",
]

Tensor = tuple[str, tuple[int, ...], bytes]  # dtype name, shape, little-endian bytes
Json = dict[str, Any]


class Invalid(Exception):
    """A rule of 04-reader-rules.md is broken."""

    def __init__(self, rule: str, message: str) -> None:
        """Name the rule, such as `"R7"`, and say what is wrong."""
        super().__init__(f"{rule}: {message}")
        self.rule = rule


class Conflict(Exception):
    """Packs disagree on what cannot be added, and no preferred pack decides (09-weights-and-several-packs.md)."""


def fail(rule: str, message: str) -> NoReturn:
    """Raise `Invalid`."""
    raise Invalid(rule, message)


def need(condition: object, rule: str, message: str) -> None:
    """Raise `Invalid` unless the condition holds."""
    if not condition:
        fail(rule, message)


# ---------------------------------------------------------------------------------------------------------------------
# 02-container.md
# ---------------------------------------------------------------------------------------------------------------------

MAGIC = b"\x89DPK\r\n\x1a\n"
TILE = 65_536
CHUNK = 16 * TILE
MIB = 1 << 20
MAX_WINDOW, MAX_BLOCK = 8 * MIB, 128 * 1024
MAX_INDEX, MAX_HEAD, MAX_VALUES = 64 * MIB, 4 * MIB, 65_536


def xxh3(data: bytes) -> int:
    """xxh3_64 as an integer."""
    return int(xxhash.xxh3_64_intdigest(data))


def round_up(offset: int) -> int:
    """The next multiple of 8."""
    return -(-offset // 8) * 8


def spans(numel: int, size: int) -> list[tuple[int, int]]:
    """The (start, end) of each tile or chunk of `numel` elements."""
    return [(start, min(start + size, numel)) for start in range(0, numel, size)]


def read_prologue(data: bytes) -> tuple[bytes, int]:
    """R1 to R3: return the index as stored and its raw length."""
    need(len(data) >= 64 and data[:8] == MAGIC, "R1", "not a pack")
    major, _minor, flags, file_length, offset, length, raw_length, index_hash, own_hash = struct.unpack_from("<HHIQQQQQQ", data, 8)
    need(xxh3(data[:56]) == own_hash, "R1", "the prologue is damaged")
    need(flags == 0, "R1", "reserved flags are set")
    need(major == 1, "R2", f"major version {major}")
    need(file_length == len(data), "R2", f"{len(data)} bytes, but the prologue says {file_length}")
    need(offset % 8 == 0 and offset >= 64, "R3", f"index at {offset}")
    need(length > 0 and offset + length == file_length, "R3", "the index is not the end of the file")
    need(max(length, raw_length) <= MAX_INDEX, "R3", "the index is too large")
    index = data[offset:]
    need(xxh3(index) == index_hash, "R3", "the index is damaged")
    return index, raw_length


def unzstd(frame: bytes, raw_length: int, before: bytes | None = None) -> bytes:
    """R10: the content of exactly one zstd frame of exactly `raw_length` bytes; matches may begin in `before`, if that is given."""
    check_frame(frame, raw_length, refers=before is not None)
    prefix = zstandard.ZstdCompressionDict(before, dict_type=zstandard.DICT_TYPE_RAWCONTENT) if before else None
    try:
        content = zstandard.ZstdDecompressor(dict_data=prefix).decompress(frame, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise Invalid("R10", str(error)) from error
    need(len(content) == raw_length, "R10", "the frame holds another size")
    return content


def check_frame(frame: bytes, raw_length: int, refers: bool = False) -> None:
    """R10: the frame header and the block headers, whatever the zstd library would let pass."""

    def take(count: int) -> int:
        nonlocal at
        at += count
        need(at <= len(frame), "R10", "the frame is cut")
        return int.from_bytes(frame[at - count : at], "little")

    at = 0
    need(take(4) == 0xFD2FB528, "R10", "not a zstd frame")
    descriptor = take(1)
    size_flag, single_segment, has_checksum = descriptor >> 6, descriptor >> 5 & 1, descriptor >> 2 & 1
    need(descriptor & 0b00000011 == 0, "R10", "the frame has a field for a dictionary")
    need(descriptor & 0b00011000 == 0, "R10", "the unused or the reserved bit is set")
    need(size_flag or single_segment, "R10", "the frame states no size")
    if not single_segment:
        exponent, mantissa = divmod(take(1), 8)
        window = (1 << 10 + exponent) * (8 + mantissa) // 8
    size = take(1 << size_flag) + (256 if size_flag == 1 else 0)
    need(raw_length > 0 and size == raw_length, "R10", "the frame states another size")
    if single_segment:
        window = size
    need(single_segment or not refers, "R10", "the window is not the content")
    most = MAX_FILE if refers else MAX_WINDOW
    need(min(size, MAX_BLOCK) <= window <= most, "R10", "the window is too small or too large")
    is_last = 0
    while not is_last:
        header = take(3)
        is_last, block_type, block_size = header & 1, header >> 1 & 3, header >> 3
        need(block_type != 3, "R10", "a block of the reserved type")
        need(block_size <= min(window, MAX_BLOCK), "R10", "a block is too long")
        take(1 if block_type == 1 else block_size)
    take(4 * has_checksum)
    need(at == len(frame), "R10", "bytes after the frame")


def unstream(stored: bytes, raw_length: int) -> bytes:
    """A stream: as it is, or one zstd frame where that is smaller."""
    need(len(stored) <= raw_length, "R8", "stored length exceeds raw length")
    return stored if len(stored) == raw_length else unzstd(stored, raw_length)


def blob_bytes(data: bytes, ref: list[Any]) -> bytes:
    """The bytes of a blob; R7 was checked before."""
    return data[ref[0] : ref[0] + ref[1]]


def plain_blob(data: bytes, ref: list[Any]) -> bytes:
    """A blob whose hash covers all of it."""
    blob = blob_bytes(data, ref)
    need(f"{xxh3(blob):016x}" == ref[2], "R8", "a blob is damaged")
    return blob


def merge_planes(planes: bytes, itemsize: int) -> bytes:
    """Section 2.5: byte planes to elements."""
    return np.frombuffer(planes, np.uint8).reshape(itemsize, -1).T.tobytes()


# ---------------------------------------------------------------------------------------------------------------------
# 03-index.md: canonical JSON
# ---------------------------------------------------------------------------------------------------------------------


# A string that is cut ends with the text: looking for its end from each of its quotes would take for ever.
TOKEN = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*(?:"|\\?\Z)|[\[\]{}:]|[^"\[\]{}:,]+', re.DOTALL)


def check_head(raw: bytes) -> None:
    """Limits of section 4.1 on what stands before the list of `tensors`, checked before anything is built of it."""
    depth, values, end = 0, 0, len(raw)
    for token in TOKEN.finditer(raw[: MAX_HEAD + 1]):
        is_key = raw[token.end() : token.end() + 1] == b":"
        if is_key and depth == 1 and token[0] == b'"tensors"':
            end = token.end() + 1
            break
        depth += (token[0] in b"[{") - (token[0] in b"]}")
        values += not is_key and token[0] not in (b"]", b"}", b":")
        need(depth <= 8, "R4", "nested too deeply")
        need(values <= MAX_VALUES, "R4", "too many values outside `tensors`")
    need(end <= MAX_HEAD, "R4", "too many bytes before the list of `tensors`")


def parse_canonical(raw: bytes) -> Any:
    """R4: the only value of which `raw` is the canonical spelling."""
    check_head(raw)

    def pairs(items: list[tuple[str, Any]]) -> Json:
        need(len(dict(items)) == len(items), "R4", "duplicate key")
        return dict(items)

    def integer(digits: str) -> int:
        need(len(digits) <= 17 and abs(int(digits)) < 1 << 53, "R4", "integer out of range")
        return int(digits)

    def no_float(text: str) -> NoReturn:
        fail("R4", f"{text} is not an integer")

    try:
        value = json.loads(
            raw.decode("utf-8"),
            object_pairs_hook=pairs,
            parse_int=integer,
            parse_float=no_float,
            parse_constant=no_float,
        )
        need(depth(value) <= 8, "R4", "nested too deeply")
        spelling = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode("utf-8")
    except (ValueError, RecursionError) as error:
        raise Invalid("R4", str(error)) from error
    need(spelling == raw, "R4", "the JSON is not canonical")
    return value


def depth(value: Any) -> int:
    """Nesting depth: 0 for a scalar, 1 for an object or list of scalars."""
    if not isinstance(value, (dict, list)):
        return 0
    return 1 + max(map(depth, value.values() if isinstance(value, dict) else value), default=0)


def check_type(value: Any, kind: str, where: str) -> None:
    """R4: a value has the type that the tables of 03-index.md name; `true` is not an integer."""
    if kind.startswith("hex"):
        ok = type(value) is str and re.fullmatch(f"[0-9a-f]{{{kind[3:]}}}", value) is not None
    elif kind == "blob":
        ok = type(value) is list and [type(item) for item in value] == [int, int, str]
        ok = ok and min(value[:2]) >= 0 and re.fullmatch("[0-9a-f]{16}", value[2]) is not None
    elif kind == "true":
        ok = value is True
    elif kind in ("ints", "strings"):
        ok = type(value) is list and all(type(item) is {"ints": int, "strings": str}[kind] for item in value)
    else:
        ok = type(value) is {"int": int, "string": str, "object": dict, "list": list}[kind]
    need(ok, "R4", f"{where}: {value!r:.60} is not of type {kind}")


def check_fields(value: Any, where: str, required: str, optional: str = "") -> None:
    """R4: an object has exactly these fields, given as `key:type` words."""
    check_type(value, "object", where)
    must = dict(word.split(":") for word in required.split())
    may = dict(word.split(":") for word in optional.split())
    need(must.keys() <= value.keys(), "R4", f"{where}: missing {sorted(must.keys() - value.keys())}")
    need(value.keys() <= must.keys() | may.keys(), "R4", f"{where}: unknown keys in {sorted(value)}")
    for key in value:
        check_type(value[key], (must | may)[key], f"{where}.{key}")


# ---------------------------------------------------------------------------------------------------------------------
# 03-index.md: what the index says
# ---------------------------------------------------------------------------------------------------------------------

ITEMSIZE = {
    **{"f64": 8, "f32": 4, "f16": 2, "bf16": 2, "f8_e4m3fn": 1, "f8_e5m2": 1, "f8_e8m0fnu": 1, "c64": 8},
    **{"i64": 8, "i32": 4, "i16": 2, "i8": 1, "u64": 8, "u32": 4, "u16": 2, "u8": 1, "bool": 1},
}
FLOATS = ("f64", "f32", "f16", "bf16", "f8_e4m3fn", "f8_e5m2")
GROUPED = ("int8", "int4", "int3", "int2", "sign")  # with a scale for each group, unless a term says otherwise
SCALED = (*GROUPED, "ternary", "uniform")
VALUES = ("f32", "bf16", "f16", *SCALED, "factors")
SCALES = ("tensor", "rows", "outer")
CODEC_FEATURES = ("stratified", "ternary", "uniform", "factors")  # codecs that are features of the same name
FEATURES = ("arranged", "containers", "exact", "files.base", "folders", "raw-types", "scales", *CODEC_FEATURES)
RAW = re.compile(r"raw([1-9][0-9]{0,2}):([A-Z0-9_]{1,32})")
RAW_WIDTHS = {"F4": "4", "F6_E2M3": "6", "F6_E3M2": "6", "F8_E4M3FNUZ": "8", "F8_E5M2FNUZ": "8"}
MAX_TENSORS, MAX_NAME, MAX_NDIM, MAX_NUMEL, MAX_TERMS = 1_000_000, 512, 8, 1 << 48, 64
MAX_PIECES = 4096
MAX_STEPS, MAX_TABLES, MAX_TABLE = 64, 4096, 32_774
MAX_FILE, MAX_FILES_BYTES, MAX_FILES = 256 * MIB, 1024 * MIB, 1000
MAX_HEAD_BYTES, MAX_CONTAINERS = 100_000_008, 2048
MAX_STATS, MAX_RANK, MAX_LINES, MAX_FACTORS = 64, 256, 1 << 24, 128 * MIB

COMMON = "name:string kind:string dtype:string shape:ints digest:hex32"
PATCHED = f"{COMMON} base:object terms:list"
FIELDS = {  # kind -> fields that must, fields that may be there
    "delta": (PATCHED, "digests:blob stats:object"),
    "unchanged": (f"{COMMON} base:object", ""),
    "grown": (f"{PATCHED} stored:blob", "digests:blob stats:object"),
    "shrunk": (PATCHED, "digests:blob stats:object"),
    "stored": (f"{COMMON} stored:blob", "base:object digests:blob"),
    "exact": (f"{COMMON} exact:list", "base:object digests:blob"),
    "removed": ("name:string kind:string base:object", ""),
    "alias": ("name:string kind:string of:string", ""),
}
WHOLE = ("stored", "exact")  # kinds that say what all elements are, and not what is added to them
BASE_MAY = "name:string dtype:string shape:ints grid:list pieces:list"
TERM = "index:string values:string factor:hex8 nnz:int blob:blob"
MASK = f"{TERM} keep:int key:hex16"
TERM_FIELDS = {"seeded": MASK, "stratified": MASK, "gaps": f"{TERM} shift:int", "bitmap": TERM, "all": TERM}
SCALES_FIELDS = {"": "", "tensor": " scales:string scale:hex8", **dict.fromkeys(SCALES[1:], " scales:string scale:hex8 lines:blob")}


def is_raw(dtype: str) -> bool:
    """Whether this is the name of a raw type (section 3.6)."""
    match = RAW.fullmatch(dtype)
    return bool(match) and match[2] not in SAFETENSORS and RAW_WIDTHS.get(match[2], match[1]) == match[1]


def itemsize(dtype: str) -> int:
    """The bytes of an element; those of a raw type are counted by the byte."""
    return 1 if RAW.fullmatch(dtype) else ITEMSIZE[dtype]


def numel(dtype: str, shape: Sequence[int]) -> int:
    """The number of elements; of a raw type, of bytes."""
    match = RAW.fullmatch(dtype)
    return math.prod(shape) * int(match[1]) // 8 if match else math.prod(shape)


def chunk_count(count: int) -> int:
    """The number of chunks of `count` elements."""
    return -(-count // CHUNK)


def check_index(index: Any) -> None:
    """R4 to R6 and R13 on the parsed index. R5 comes early: a later version may have other keys."""
    check_type(index, "object", "index")
    need(index.get("format") == "dpk", "R4", "`format` is not dpk")
    check_type(index.get("required"), "strings", "required")
    need(index["required"] == sorted(set(index["required"])), "R4", "`required` is not sorted")
    for feature in index["required"]:
        need(feature in FEATURES, "R5", f"unknown feature {feature!r}")
    top = "format:string required:list created_by:string base:object result:object recipe:object tensors:list"
    top += " folders:object" if "folders" in index["required"] else ""
    top += " containers:list" if "containers" in index["required"] else ""
    top += " tables:list" if "exact" in index["required"] else ""
    check_fields({k: v for k, v in index.items() if k != "files"}, "index", top, "optional:object")
    check_fields(index["base"], "base", "fingerprint:hex64 tensors:int")
    check_fields(index["result"], "result", "fingerprint:hex64 tensors:int bytes:int")
    need("files" in index, "R4", "no `files`")
    check_metadata(index.get("optional", {}).get("dpk.metadata", {}))
    for table in index.get("tables", []):
        check_type(table, "blob", "tables")
    need(len(index.get("tables", [])) <= MAX_TABLES, "R6", "too many tables")
    need(all(length <= MAX_TABLE for _, length, _ in index.get("tables", [])), "R6", "a table is too long")
    need(len(index["tensors"]) <= MAX_TENSORS, "R6", "too many tensors")
    for entry in index["tensors"]:
        check_entry(entry)
        need(entry["kind"] != "exact" or "tables" in index, "R6", f"{entry['name']!r} is exact, the feature is not there")
        for feature in features_of(entry):
            need(feature in index["required"], "R6", f"{entry['name']!r} has a term of the feature {feature}, which is not there")
    check_together(index)
    if "folders" in index["required"]:
        check_folders(index["folders"], index["tensors"])
    for name in (entry["name"] for entry in index["tensors"] if "dtype" in entry):
        folder = folder_of(name, index.get("folders", {}))
        need(
            (name[len(folder) + 1 :] if folder else name) != "__metadata__",
            "R6",
            f"tensor {name!r} has the name of metadata",
        )
    check_files(index["files"], "files.base" in index["required"], index.get("folders", {}))
    if "containers" in index["required"]:
        check_containers(index["containers"], index.get("folders", {}))


def check_metadata(folders: Any) -> None:
    """R4 on what the index says of the headers of weight files (section 3.11)."""
    check_type(folders, "object", "dpk.metadata")
    for folder, metadata in folders.items():
        check_type(metadata, "object", f"dpk.metadata {folder!r}")
        for key, text in metadata.items():
            check_type(text, "string", f"dpk.metadata {key!r}")


def is_clean(name: str) -> bool:
    """Whether a name is free of control characters."""
    return not any(ord(char) < 0x20 or 0x7F <= ord(char) < 0xA0 for char in name)


def check_name(name: str, rule: str = "R6") -> None:
    """The length and the characters of a name."""
    need(1 <= len(name.encode()) <= MAX_NAME, rule, f"name {name!r:.40} has a wrong length")
    need(is_clean(name), rule, f"control character in name {name!r}")


def check_tensor(dtype: str, shape: list[int], where: str) -> None:
    """The element type and the shape of a tensor."""
    need(dtype in ITEMSIZE or is_raw(dtype), "R5", f"{where}: unknown dtype {dtype!r}")
    need(len(shape) <= MAX_NDIM and all(dim >= 0 for dim in shape), "R6", f"{where}: shape {shape}")
    need(max(math.prod(shape), numel(dtype, shape)) <= MAX_NUMEL, "R6", f"{where}: too many elements")
    match = RAW.fullmatch(dtype)
    need(not match or math.prod(shape) * int(match[1]) % 8 == 0, "R6", f"{where}: not whole bytes")


def base_of(entry: Json) -> tuple[str, str, list[int]]:
    """The name, dtype and shape of the base tensor that an entry uses."""
    base = entry["base"]
    name, dtype, shape = (base.get(key, entry.get(key)) for key in ("name", "dtype", "shape"))
    return name, dtype, shape


def common_numel(entry: Json) -> int:
    """The number of elements that the base tensor and the result share."""
    return 0 if entry["kind"] in WHOLE else min(numel(entry["dtype"], entry["shape"]), numel(*base_of(entry)[1:]))


def matrix_of(entry: Json) -> tuple[int, int]:
    """Section 3.4: rows and columns of the elements that base and result share; none where there are fewer than two dimensions."""
    common, shape = common_numel(entry), entry["shape"]
    return (common // shape[-1], shape[-1]) if len(shape) > 1 and common else (0, 0)


def features_of(entry: Json) -> set[str]:
    """The features that the terms of an entry need."""
    terms = entry.get("terms", [])
    codecs = {term[key] for term in terms for key in ("index", "values")}
    return codecs & set(CODEC_FEATURES) | {"scales" for term in terms if "scales" in term}


def digests_length(entry: Json) -> int:
    """The length of a `digests` blob."""
    base = chunk_count(numel(*base_of(entry)[1:])) if "base" in entry else 0
    return 16 * (base + chunk_count(numel(entry["dtype"], entry["shape"])))


def check_entry(entry: Any) -> None:
    """R4 and R6 on one entry by itself."""
    check_type(entry, "object", "tensor")
    check_type(entry.get("kind"), "string", "kind")
    check_type(entry.get("name"), "string", "name")
    kind, where = entry["kind"], f"tensor {entry['name']!r}"
    need(kind in FIELDS, "R5", f"{where}: unknown kind {kind!r}")
    check_fields(entry, where, *FIELDS[kind])
    check_name(entry["name"])
    if "base" in entry:
        must = " dtype:string shape:ints" if kind == "removed" else ""
        check_fields(entry["base"], f"{where} base", f"digest:hex32{must}", BASE_MAY)
        need(kind != "removed" or "name" not in entry["base"], "R6", f"{where}: removed under another name")
        check_name(base_of(entry)[0])
        check_tensor(*base_of(entry)[1:], where)
        for key in entry["base"].keys() - {"digest"}:
            need(entry["base"][key] != entry.get(key), "R6", f"{where}: base.{key} does not differ")
        if entry["base"].keys() & {"grid", "pieces"}:
            check_arranged(entry, f"{where} base")
    if "dtype" in entry:
        check_tensor(entry["dtype"], entry["shape"], where)
        biggest = max(numel(entry["dtype"], entry["shape"]), numel(*base_of(entry)[1:]) if "base" in entry else 0)
        wanted = kind != "unchanged" and chunk_count(biggest) > 1 and not has_partner(entry)
        need(("digests" in entry) == wanted, "R6", f"{where}: `digests` is {'missing' if wanted else 'not needed'}")
        need(not wanted or entry["digests"][1] == digests_length(entry), "R6", f"{where}: length of `digests`")
    if kind in ("delta", "unchanged"):
        need("shape" not in entry["base"], "R6", f"{where}: {kind}, but the shapes differ")
    if kind == "unchanged":
        need("dtype" not in entry["base"], "R6", f"{where}: unchanged, but the dtypes differ")
        need(entry["base"]["digest"] == entry["digest"], "R6", f"{where}: unchanged, but the digests differ")
    if kind in ("grown", "shrunk"):
        new, old = entry["shape"], base_of(entry)[2]
        need(new and len(new) == len(old) and new[1:] == old[1:], "R6", f"{where}: shapes {old} and {new}")
        need(new[0] > old[0] if kind == "grown" else new[0] < old[0], "R6", f"{where}: not {kind}")
    if "terms" in entry:
        need(entry["dtype"] in FLOATS and base_of(entry)[1] in FLOATS, "R6", f"{where}: terms on an opaque type")
        need(len(entry["terms"]) <= MAX_TERMS, "R6", f"{where}: too many terms")
        for term in entry["terms"]:
            check_term(term, where, entry)
    if "exact" in entry:
        need(1 <= len(entry["exact"]) <= MAX_STEPS, "R6", f"{where}: number of steps")
        for step in entry["exact"]:
            check_fields(step, f"{where} step", "blob:blob", "tables:int")
            need(step.get("tables", 1) >= 1, "R6", f"{where}: tables of a step begin at {step.get('tables')}")
    if "stats" in entry:
        check_fields(entry["stats"], f"{where} stats", "l1:string max_abs:string")
        decimal = r"[0-9]+(\.[0-9]+)?(e[+-]?[0-9]+)?"
        need(all(re.fullmatch(decimal, value) for value in entry["stats"].values()), "R6", f"{where}: stats")
        need(all(len(value) <= MAX_STATS for value in entry["stats"].values()), "R6", f"{where}: stats are too long")


def has_partner(entry: Json) -> bool:
    """Section 3.12: whether an exact tensor starts from its base tensor, or merely replaces it."""
    if entry["kind"] != "exact" or "base" not in entry:
        return False
    _, old_dtype, old = base_of(entry)
    dtype, new = entry["dtype"], entry["shape"]
    rows = len(old) == len(new) >= 1 and old[1:] == new[1:]
    return (old == new or rows) and (old_dtype == dtype or {old_dtype, dtype} <= set(FLOATS))


def check_arranged(entry: Json, where: str) -> None:
    """R4 and R6 on a base tensor that is made of others (section 3.10)."""
    base = entry["base"]
    need({"grid", "pieces"} <= base.keys(), "R4", f"{where}: `grid` without `pieces`, or `pieces` without `grid`")
    need(not base.keys() & {"name", "shape"}, "R6", f"{where}: arranged, with a name or shape of its own")
    grid, pieces = base["grid"], base["pieces"]
    for extents in grid:
        check_type(extents, "ints", f"{where}.grid")
    need(len(pieces) <= MAX_PIECES, "R6", f"{where}: too many pieces")
    need(all(extent >= 1 for extents in grid for extent in extents), "R6", f"{where}: a cell without elements")
    need(base_of(entry)[1] in ITEMSIZE, "R6", f"{where}: an arranged tensor of a raw type")
    need(grid and [sum(extents) for extents in grid] == entry["shape"], "R6", f"{where}: the grid does not cover the tensor")
    need(len(pieces) == math.prod(len(extents) for extents in grid), "R6", f"{where}: number of pieces")
    for piece, cell in zip(pieces, itertools.product(*grid), strict=False):
        check_fields(piece, f"{where} piece", "name:string from:ints", "transposed:true")
        check_name(piece["name"])
        rank = len(piece["from"])
        need(1 <= rank <= MAX_NDIM and min(piece["from"]) >= 0, "R6", f"{where}: a piece from {piece['from']}")
        need(set(cell[: max(0, len(cell) - rank)]) <= {1}, "R6", f"{where}: a piece with too few dimensions")
        need("transposed" not in piece or min(rank, len(cell)) >= 2, "R6", f"{where}: a vector transposed")


def box_of(piece: Json, cell: Sequence[int]) -> list[int]:
    """Section 3.10: the extent of a piece in the dimensions of its own tensor."""
    rank, extent = len(piece["from"]), list(cell)
    if "transposed" in piece:
        extent[-2:] = extent[:-3:-1]
    return [1] * (rank - len(cell)) + extent[max(0, len(cell) - rank) :]


def pieces_of(entry: Json) -> list[tuple[Json, tuple[int, ...]]]:
    """The pieces that the base tensor of an entry is made of, with the extents of their cells; none if it is a tensor of the base."""
    base = entry.get("base", {})
    return list(zip(base["pieces"], itertools.product(*base["grid"]), strict=True)) if "pieces" in base else []


def check_term(term: Any, where: str, entry: Json) -> None:
    """R4 to R6 on one term."""
    check_type(term, "object", where)
    for key, known in (("index", TERM_FIELDS), ("values", VALUES)):
        check_type(term.get(key), "string", f"{where} {key}")
        need(term[key] in known, "R5", f"{where}: unknown codec {term[key]!r}")
    scales, is_factors = term.get("scales", ""), term["values"] == "factors"
    check_type(scales, "string", f"{where} scales")
    need("scales" not in term or scales in SCALES, "R5", f"{where}: unknown way to scale {scales!r}")
    check_fields(term, where, TERM_FIELDS[term["index"]] + SCALES_FIELDS[scales] + " rank:int bits:int" * is_factors)
    need(scales == "" or term["values"] in SCALED, "R6", f"{where}: {term['values']} has no scales")
    need(scales or term["values"] not in ("ternary", "uniform"), "R6", f"{where}: {term['values']} without scales")
    need((1 << 16 if term["index"] == "stratified" else 1) <= term.get("keep", 1 << 16) < 1 << 32, "R6", f"{where}: keep is out of range")
    need(0 <= term.get("shift", 0) <= 15, "R6", f"{where}: shift is out of range")
    need(math.isfinite(f32_of_bits(term["factor"])), "R6", f"{where}: factor is not finite")
    need(math.isfinite(f32_of_bits(term.get("scale", "0" * 8))), "R6", f"{where}: scale is not finite")
    common, (rows, columns) = common_numel(entry), matrix_of(entry)
    need(0 <= term["nnz"] <= common, "R6", f"{where}: nnz is out of range")
    need(term["index"] != "all" or "lines" in term or term["nnz"] == common, "R6", f"{where}: nnz of `all` is not the number of elements")
    need("lines" not in term or rows, "R6", f"{where}: there are no rows")
    need("lines" not in term or lines_length(scales, rows, columns) <= MAX_LINES, "R6", f"{where}: too many rows and columns")
    if is_factors:
        need(term["index"] == "all", "R6", f"{where}: factors of some elements")
        need(term["bits"] in (2, 4, 8), "R6", f"{where}: codes of {term['bits']} bits")
        need(1 <= term["rank"] <= min(MAX_RANK, rows, columns), "R6", f"{where}: rank {term['rank']}")


def lines_length(scales: str, rows: int, columns: int) -> int:
    """The bytes that `lines` holds."""
    return rows + columns if scales == "outer" else rows


def check_together(index: Json) -> None:
    """R6 on the entries as a list, and on `base` and `result`."""
    entries = index["tensors"]
    names = [entry["name"].encode() for entry in entries]
    need(all(a < b for a, b in itertools.pairwise(names)), "R6", "names are not unique and sorted")
    held = {entry["name"] for entry in entries if "dtype" in entry}
    for entry in entries:
        if entry["kind"] == "alias":
            need(entry["of"] in held, "R6", f"alias {entry['name']!r} of {entry['of']!r}, which is no tensor")
    used = [base_of(entry)[0] for entry in entries if "base" in entry]
    need(len(set(used)) == len(used), "R6", "two entries use one base tensor")
    held = held_by_base(entries)
    need(held <= {*used, *named(entries)}, "R6", "a piece of a tensor that no entry speaks of")
    need(len(held) <= index["base"]["tensors"], "R6", "base.tensors is too small")
    rows = [(e["name"], e["dtype"], e["shape"], e["digest"]) for e in entries if "dtype" in e]
    size = sum(numel(dtype, shape) * itemsize(dtype) for _, dtype, shape, _ in rows)
    need(index["result"]["tensors"] == len(rows), "R6", "result.tensors is wrong")
    need(index["result"]["bytes"] == size, "R6", "result.bytes is wrong")
    need(index["result"]["fingerprint"] == fingerprint(rows), "R6", "result.fingerprint is wrong")


def held_by_base(entries: Sequence[Json]) -> set[str]:
    """The tensors that a base must hold."""
    based = [entry for entry in entries if "base" in entry]
    pieces = {piece["name"] for entry in based for piece, _ in pieces_of(entry)}
    return pieces | {base_of(entry)[0] for entry in based if not pieces_of(entry)}


def named(entries: Sequence[Json]) -> set[str]:
    """The tensors of the base that entries replace or drop by their names alone."""
    return {entry["name"] for entry in entries if entry["kind"] in (*WHOLE, "alias")}


WEIGHTS = (".safetensors", ".safetensors.index.json")
FORBIDDEN = (
    *(".bin", ".pt", ".pth", ".gguf", ".ggml", ".onnx", ".onnx_data", ".h5", ".msgpack", ".ot", ".ckpt", ".npz", ".npy", ".pkl"),
    *(".pickle", ".joblib", ".dpk", ".tflite", ".pb", ".nemo", ".distcp", ".engine", ".mlmodel", ".llamafile"),
)
MAX_PARTS = 5


def fold(name: str) -> str:
    """A name with a to z in place of A to Z."""
    return "".join(char.lower() if "A" <= char <= "Z" else char for char in name)


def check_apart(names: Iterable[str]) -> None:
    """R13: a file system that does not tell upper from lower case tells the names apart."""
    names = list(names)
    need(len(set(map(fold, names))) == len(set(names)), "R13", "two names differ in case alone")


def check_path(name: str, weights: bool = False) -> None:
    """R13: a path that stays below the output folder, and stands in for tensors where, and only where, it is one of `weights`."""
    check_name(name, "R13")
    need(not set(name) & set("\\:"), "R13", f"path {name!r}")
    parts = name.split("/")
    need(all(part and part[0] != "." for part in parts), "R13", f"part of path {name!r}")
    need(all(len(part.encode()) <= 255 for part in parts), "R13", f"a part of path {name!r:.40} is too long")
    others = parts[:-1] if weights else parts
    need(not any(part.lower().endswith(WEIGHTS) for part in others), "R13", f"{name!r} would stand in for restored tensors")
    need(not weights or name.endswith(WEIGHTS), "R13", f"{name!r} is no weight file")


def folder_of(name: str, folders: Iterable[str]) -> str:
    """Section 3.9: the sub-folder that a tensor is in; empty for the top."""
    return max((folder for folder in folders if name.startswith(folder + "/")), key=len, default="")


def check_folders(folders: Json, entries: Sequence[Json]) -> None:
    """R4, R6 and R13 on the sub-folders with tensors."""
    need(folders, "R6", "no folders")
    check_apart(folders)
    for folder, stem in folders.items():
        check_type(stem, "string", f"folder {folder!r}")
        check_path(folder)
        check_path(stem)
        need("/" not in stem, "R13", f"weight file {stem!r} of a folder")
        need(len(stem.encode()) <= 191, "R13", f"weight file {stem!r:.40} of a folder is too long")
    staying = [entry for entry in entries if entry["kind"] != "removed"]
    held = {entry["name"]: folder_of(entry["name"], folders) for entry in staying}
    need(set(folders) <= set(held.values()), "R6", "a folder without tensors")
    need(not any(folder + "/" in held for folder in folders), "R6", "a tensor of a folder without a name of its own")
    ties = [(held[entry["name"]], folder_of(entry["of"], folders)) for entry in staying if entry["kind"] == "alias"]
    need(all(own == other for own, other in ties), "R6", "an alias of a tensor in another folder")


def check_files(files: Any, may_refer: bool, folders: Iterable[str]) -> None:
    """R4 and R6 on the side files; R13: they stay in their folder."""
    if files is None:
        return
    check_type(files, "list", "files")
    need(len(files) <= MAX_FILES, "R6", "too many files")
    for file in files:
        check_fields(file, "file", "name:string size:int sha256:hex64", "blob:blob" + " base:hex64" * may_refer)
        need("blob" in file or "base" not in file, "R4", "`base` of a file without `blob`")
        name = file["name"]
        check_path(name)
        need(name.count("/") < MAX_PARTS, "R13", f"file {name!r} is too deep")
        need(not name.lower().removesuffix(".index.json").endswith(FORBIDDEN), "R13", f"file {name!r} looks like weights")
        need(0 <= file["size"] <= MAX_FILE, "R6", f"file {name!r} is too large")
    names = [file["name"].encode() for file in files]
    need(all(a < b for a, b in itertools.pairwise(names)), "R6", "file names are not unique and sorted")
    check_apart(file["name"] for file in files)
    folded = {fold(file["name"]) for file in files}
    paths = [*folded, *(fold(folder) + "/" for folder in folders)]
    above = {"/".join(path.split("/")[:i]) for path in paths for i in range(1, path.count("/") + 1)}
    need(not above & folded, "R13", "a file is also a folder")
    need(sum(file["size"] for file in files) <= MAX_FILES_BYTES, "R6", "the files are too large together")


def check_containers(containers: Sequence[Any], folders: Iterable[str]) -> None:
    """R4, R6 and R13 on the heads of weight files (section 3.13)."""
    need(containers, "R6", "no containers")
    need(len(containers) <= MAX_CONTAINERS, "R6", "too many containers")
    for row in containers:
        check_fields(row, "container", "name:string size:int sha256:hex64", "blob:blob base:hex64")
        need("blob" in row or "base" not in row, "R4", "`base` of a container without `blob`")
        check_path(row["name"], weights=True)
        need(0 <= row["size"] <= MAX_HEAD_BYTES, "R6", f"container {row['name']!r} is too large")
    names = [row["name"] for row in containers]
    need(all(a.encode() < b.encode() for a, b in itertools.pairwise(names)), "R6", "container names are not unique and sorted")
    check_apart(names)
    need(sum(row["size"] for row in containers) <= MAX_FILES_BYTES, "R6", "the containers are too large together")
    for folder in {folder_part(name) for name in names}:
        need(not folder or folder[:-1] in folders, "R6", f"containers in {folder!r}, which has no tensors")
        files, indices = files_and_indices(names, folder)
        need(files and len(indices) <= 1 and (indices or len(files) == 1), "R6", f"the containers in {folder!r} do not go together")


def folder_part(name: str) -> str:
    """The folder of a path, with its `/`; empty for the top."""
    return name[: name.rfind("/") + 1]


def files_and_indices(names: Iterable[str], folder: str) -> tuple[list[str], list[str]]:
    """Safetensors files and indices of shards among the containers of a folder."""
    own = [name for name in names if folder_part(name) == folder]
    return [name for name in own if not name.endswith(".json")], [name for name in own if name.endswith(".json")]


def blobs_in_order(index: Json) -> Iterator[list[Any]]:
    """All blob references in the order of section 2.3."""
    for entry in index["tensors"]:
        for term in entry.get("terms", []):
            yield term["blob"]
            if "lines" in term:
                yield term["lines"]
        if "stored" in entry:
            yield entry["stored"]
        for step in entry.get("exact", []):
            yield step["blob"]
        if "digests" in entry:
            yield entry["digests"]
    for file in [*(index["files"] or []), *index.get("containers", [])]:
        if "blob" in file:
            yield file["blob"]
    yield from index.get("tables", [])


def check_layout(index: Json, data: bytes, index_offset: int) -> None:
    """R7: the blobs cover everything between the prologue and the index."""
    end = 64
    for offset, length, _ in [*blobs_in_order(index), [index_offset, 0, ""]]:
        need(offset == round_up(end), "R7", f"offset {offset} after a blob that ends at {end}")
        need(not any(data[end:offset]), "R7", f"bytes before {offset} are not zero")
        end = offset + length


# ---------------------------------------------------------------------------------------------------------------------
# 11-parts.md
# ---------------------------------------------------------------------------------------------------------------------


def pack_bytes(path: Path) -> tuple[bytes, str | None]:
    """Return the bytes of a pack; of one that comes in parts also its id. Such a pack is named by its index."""
    if not path.name.endswith(".dpk.index.json"):
        return path.read_bytes(), None
    raw = path.read_bytes()
    need(len(raw) <= 1 << 25, "parts", "the index is too long")
    index = parse_json(raw, "parts")
    need(isinstance(index, dict) and set(index) == {"format", "version", "pack_id", "size", "parts"}, "parts", "fields of the index")
    right = index["format"] == "deltapack-parts" and type(index["version"]) is int and index["version"] == 1
    need(right, "parts", "no index of parts that is read")
    need(is_sha256(index["pack_id"]), "parts", "no id of a pack")
    rows = index["parts"]
    need(isinstance(rows, list) and 1 <= len(rows) <= 1000, "parts", "no parts, or too many")
    data, stem = b"", ""
    for number, row in enumerate(rows, 1):
        need(isinstance(row, dict) and set(row) == {"name", "size", "sha256"}, "parts", f"fields of part {number}")
        name, size = row["name"], row["size"]
        plain = isinstance(name, str) and not set(name) & set("/\\") and name.isprintable() and len(name.encode()) <= 255
        need(plain, "parts", f"the name of part {number} is none of a file beside the index")
        stem = stem or name.removesuffix("-00001" + f"-of-{len(rows):05d}.dpk")
        need(stem and name == f"{stem}-{number:05d}-of-{len(rows):05d}.dpk", "parts", f"the name of part {number}")
        need((path.parent / name).is_file(), "parts", f"part {number} is missing")
        part = (path.parent / name).read_bytes()
        need(type(size) is int and len(part) == size > 0, "parts", f"part {number} has another size")
        need(hashlib.sha256(part).hexdigest() == row["sha256"], "parts", f"part {number} is another")
        data += part
    need(type(index["size"]) is int and len(data) == index["size"], "parts", "the sizes do not add up")
    return data, index["pack_id"]


def is_sha256(value: object) -> bool:
    """Whether a value is 64 lower-case hexadecimal digits."""
    return type(value) is str and re.fullmatch("[0-9a-f]{64}", value) is not None


def read_pack(path: str | Path) -> Json:
    """Parse a pack and check rules R1 to R7, R13 and those limits that the index alone can exceed.

    Returns:
        `index`, the parsed index, and `data`, the bytes of the file, into which its blob references point.
    """
    data, pack_id = pack_bytes(Path(path))
    stored, raw_length = read_prologue(data)
    raw = unzstd(stored, raw_length)
    need(pack_id in (None, hashlib.sha256(raw).hexdigest()), "parts", "the parts are of another pack")
    index = parse_canonical(raw)
    check_index(index)
    check_layout(index, data, len(data) - len(stored))
    return {"index": index, "data": data}


# ---------------------------------------------------------------------------------------------------------------------
# 02-container.md: chunked blobs
# ---------------------------------------------------------------------------------------------------------------------


def read_chunks(data: bytes, ref: list[Any], count: int, streams: int, nnz: int | None = None) -> Iterator[Json]:
    """R8: check the table of a chunked blob over `count` elements, then yield its chunks one by one.

    A term gives its `nnz`; the tables of `stored` and `exact`, which have no counts, do not need it.
    """
    blob, chunks = blob_bytes(data, ref), spans(count, CHUNK)
    tiles = 0 if nnz is None else len(spans(count, TILE))
    length = len(chunks) * (8 + 8 * streams) + 4 * tiles
    need(length <= len(blob), "R8", "the blob is shorter than its table")
    need(f"{xxh3(blob[:length]):016x}" == ref[2], "R8", "the table of a blob is damaged")
    table, at = [], 0
    for start, stop in chunks:
        sizes = [hi - lo for lo, hi in spans(stop - start, TILE)]
        own_hash, *words = struct.unpack_from(f"<Q{2 * streams + (len(sizes) if tiles else 0)}I", blob, at)
        at += 8 + 4 * len(words)
        lengths, counts = words[: 2 * streams], words[2 * streams :]
        need(all(n <= size for n, size in zip(counts, sizes, strict=False)), "R8", "count exceeds the tile")
        table.append((start, sizes, own_hash, lengths, counts))
    need(nnz is None or sum(sum(row[4]) for row in table) == nnz, "R8", "nnz is not the sum of the counts")
    stored = sum(sum(row[3][::2]) for row in table)
    need(length + stored == len(blob), "R8", "the blob does not end with its last payload")
    at = length
    for start, sizes, own_hash, lengths, counts in table:
        parts = []
        for size in lengths[::2]:
            parts.append(blob[at : at + size])
            at += size
        need(xxh3(b"".join(parts)) == own_hash, "R8", "a chunk is damaged")
        pairs = list(zip(parts, lengths[1::2], strict=True))
        yield {"start": start, "tiles": sizes, "counts": counts, "streams": pairs}


# ---------------------------------------------------------------------------------------------------------------------
# codecs/index.md
# ---------------------------------------------------------------------------------------------------------------------


def philox(counter: list[np.ndarray], key: int, rounds: int = 10) -> np.ndarray:
    """Philox4x32 on arrays of counter words; [blocks, 4] uint32, kept in uint64."""
    mask = np.uint64(0xFFFFFFFF)
    c0, c1, c2, c3 = counter
    k0, k1 = key & 0xFFFFFFFF, key >> 32
    for _ in range(rounds):
        p0, p1 = c0 * np.uint64(0xD2511F53), c2 * np.uint64(0xCD9E8D57)
        high0, high1 = p0 >> np.uint64(32), p1 >> np.uint64(32)
        c0, c1, c2, c3 = high1 ^ c1 ^ np.uint64(k0), p1 & mask, high0 ^ c3 ^ np.uint64(k1), p0 & mask
        k0, k1 = (k0 + 0x9E3779B9) & 0xFFFFFFFF, (k1 + 0xBB67AE85) & 0xFFFFFFFF
    return np.stack([c0, c1, c2, c3], axis=1)


@functools.lru_cache(maxsize=4)
def gap_thresholds(keep: int) -> np.ndarray:
    """2^32 - S[i] for i = 1..255."""
    survivors = [1 << 32]
    for _ in range(255):
        survivors.append(survivors[-1] * ((1 << 32) - keep) >> 32)
    return np.array([(1 << 32) - s for s in survivors[1:]], np.uint64)


def seeded_tile(keep: int, key: int, tile: int, size: int) -> np.ndarray:
    """The positions that a seeded mask keeps in tile number `tile` of the tensor."""
    gaps = np.zeros(0, np.int64)
    blocks = int(size * keep / 2**32 / 4) + size // 1000 + 8  # usually enough; doubled until it is
    while True:
        b = np.arange(blocks, dtype=np.uint64)
        zero = np.zeros_like(b)
        samples = philox([b, zero + np.uint64(tile), zero, zero], key).reshape(-1)
        gaps = np.searchsorted(gap_thresholds(keep), samples, side="right")
        cursor = np.cumsum(np.where(gaps == 255, 255, gaps + 1))
        if cursor[-1] >= size:
            return np.asarray((cursor - 1)[(gaps < 255) & (cursor <= size)])
        blocks *= 2


def stratified_tile(keep: int, key: int, tile: int, size: int) -> np.ndarray:
    """The positions that a stratified mask keeps in tile number `tile` of the tensor."""
    step = (1 << 48) // keep
    i = np.arange(-(-(size << 16) // step))
    begin, end = i * step >> 16, (i + 1) * step >> 16
    b = np.arange(len(i) // 8 + 1, dtype=np.uint64)
    zero = np.zeros_like(b)
    words = philox([b, zero + np.uint64(tile), zero + np.uint64(1), zero], key, rounds=7).reshape(-1).astype(np.int64)
    samples = words[i >> 1] >> 16 * (i & 1) & 0xFFFF
    kept = begin + (samples * (end - begin) >> 16)
    return np.asarray(kept[kept < size])


def bits_of(data: bytes) -> np.ndarray:
    """The bits of a byte string, least significant first."""
    return np.unpackbits(np.frombuffer(data, np.uint8), bitorder="little")


def plain_gaps(raw: bytes, count: int) -> np.ndarray:
    """Codec `gaps` with shift 0: the gap of each kept element."""
    stream = np.frombuffer(raw, np.uint8).astype(np.int64)
    is_kept = stream != 255
    need(np.count_nonzero(is_kept) == count, "R9", "the number of gaps is not the number of kept elements")
    need(is_kept[-1:].all(), "R9", "the gap stream ends in 255")
    total = np.cumsum(stream)[is_kept]
    return np.diff(total, prepend=0)


def rice_gaps(raw: bytes, count: int, shift: int) -> np.ndarray:
    """Codec `gaps` with a shift: the gap of each kept element."""
    low_bytes = -(-count * shift // 8)
    low_bits, high_bits = bits_of(raw[:low_bytes]), bits_of(raw[low_bytes:])
    need(not low_bits[count * shift :].any(), "R9", "unused bits are set")
    low = low_bits[: count * shift].reshape(count, shift).astype(np.int64) @ (1 << np.arange(shift))
    ones = np.flatnonzero(high_bits)
    need(len(ones) == count, "R9", "the number of gaps is not the number of kept elements")
    need(len(high_bits) // 8 == (ones[-1] // 8 + 1 if count else 0), "R9", "the gap stream has unused bytes")
    return np.asarray((np.diff(ones, prepend=-1) - 1 << shift) + low)


def check_index_length(term: Json, chunk: Json, raw_length: int) -> None:
    """R8: the raw length of an index stream is one that its codec can have."""
    count, tiles = sum(chunk["counts"]), chunk["tiles"]
    if term["index"] == "bitmap":
        low = high = -(-sum(tiles) // 8)
    elif term["shift"] == 0:
        low, high = count, count + sum(size // 255 for size in tiles)
    else:
        first, zeros = -(-count * term["shift"] // 8), sum(size >> term["shift"] for size in tiles)
        low, high = first + -(-count // 8), first + -(-(count + zeros) // 8)
    need(low <= raw_length <= high, "R8", f"raw length {raw_length} of an index stream")


def positions(term: Json, chunk: Json, lines: Lines | None) -> np.ndarray:
    """R9: the positions, counted from the start of the chunk, that a term keeps in it."""
    tiles, counts, codec = chunk["tiles"], chunk["counts"], term["index"]
    if codec == "all" and lines is None:  # nnz is `common` and no count exceeds its tile, so each count is its tile's length
        return np.arange(sum(tiles))
    if codec in ("all", "seeded", "stratified"):
        parts = []
        for i, size in enumerate(tiles):
            tile = chunk["start"] // TILE + i
            own = np.arange(size) if codec == "all" else masked(term, tile, size)
            parts.append(own if lines is None else own[stays(own + tile * TILE, lines)])
        need([len(part) for part in parts] == counts, "R9", "counts differ from the mask and the rows that stay")
        return np.concatenate([part + i * TILE for i, part in enumerate(parts)])
    found = stored_positions(term, chunk)
    need(lines is None or stays(found + chunk["start"], lines).all(), "R9", "a position in a row that is dropped")
    return found


def masked(term: Json, tile: int, size: int) -> np.ndarray:
    """The positions that a random mask keeps in tile number `tile` of the tensor."""
    draw = seeded_tile if term["index"] == "seeded" else stratified_tile
    return draw(term["keep"], int(term["key"], 16), tile, size)


def stored_positions(term: Json, chunk: Json) -> np.ndarray:
    """The positions of codecs `gaps` and `bitmap`."""
    tiles, counts, codec = chunk["tiles"], chunk["counts"], term["index"]
    stored, raw_length = chunk["streams"][0]
    check_index_length(term, chunk, raw_length)
    raw = unstream(stored, raw_length)
    if codec == "bitmap":
        bits = bits_of(raw)
        need(not bits[sum(tiles) :].any(), "R9", "unused bits are set")
        ones = [int(bits[i * TILE : i * TILE + size].sum()) for i, size in enumerate(tiles)]
        need(ones == counts, "R9", "counts differ from the bitmap")
        return np.flatnonzero(bits)
    gaps = plain_gaps(raw, sum(counts)) if term["shift"] == 0 else rice_gaps(raw, sum(counts), term["shift"])
    result = []
    for i, part in enumerate(np.split(gaps, np.cumsum(counts)[:-1])):
        inside = np.cumsum(part + 1) - 1
        need(not len(inside) or inside[-1] < tiles[i], "R9", "a position leaves its tile")
        result.append(inside + i * TILE)
    return np.concatenate(result)


# ---------------------------------------------------------------------------------------------------------------------
# codecs/values.md
# ---------------------------------------------------------------------------------------------------------------------


def f32_of_bits(digits: str) -> float:
    """The number that 8 hexadecimal digits stand for."""
    return float(struct.unpack(">f", bytes.fromhex(digits))[0])


def codes_fit(codec: str, count: int, raw_length: int) -> bool:
    """Whether the codes of so many kept elements can have this raw length."""
    if codec == "ternary":
        return raw_length == -(-count // 5)
    if codec == "uniform":
        tiles = len(spans(count, TILE))
        return raw_length == 0 if count == 0 else 6 + 5 * tiles <= raw_length <= 514 + 131 * tiles + 2 * count
    width = {"f32": 32, "bf16": 16, "f16": 16, "int8": 8, "int4": 4, "int3": 4, "int2": 2, "sign": 1}[codec]
    return raw_length == -(-count * width // 8)


def unpack_levels(raw: bytes, count: int) -> np.ndarray:
    """R9: the codes of `uniform` as float32; tables and tiles are those of codecs/exact.md."""
    if count == 0:
        return np.zeros(0, np.float32)
    exact = exact_decoder()
    reader = exact.Reader(raw)
    precision, lanes, first, last = (reader.byte() for _ in range(4))
    need(precision in (10, 11, 12), "R9", f"precision {precision}")
    need(lanes in (1, 4, 8, 32), "R9", f"{lanes} lanes")
    need(last <= 254, "R9", f"symbol {last}")
    table = exact.Table(precision, lanes, None, [[0]], [None], [])
    table.frequencies.append(exact.read_frequencies(reader, first, last, table, exact.BYTES))
    symbols = np.array(exact.decode_tiles(reader, [0] * count, table, has_raw=False)[0])
    reader.end()
    return np.where(symbols % 2 == 1, -(symbols + 1) // 2, symbols // 2).astype(np.float32)


def unpack_codes(raw: bytes, codec: str, count: int) -> np.ndarray:
    """R9: the codes of a chunk as float32, which holds each exactly."""
    if codec == "uniform":
        return unpack_levels(raw, count)
    if codec == "ternary":
        digits = np.frombuffer(raw, np.uint8)
        need((digits < 3**5).all(), "R9", "a byte is no five trits")
        trits = (digits[:, None] // 3 ** np.arange(5) % 3).reshape(-1)
        need(not trits[count:].any(), "R9", "unused trits are not zero")
        return np.array([0, 1, -1], np.float32)[trits[:count]]
    if codec in ("f32", "bf16", "f16"):
        codes = to_f32(codec, merge_planes(raw, ITEMSIZE[codec]))
        need(np.isfinite(codes).all(), "R9", "a code is not finite")
        return codes
    if codec == "int8":
        return np.frombuffer(raw, np.int8).astype(np.float32)
    width = {"int4": 4, "int3": 4, "int2": 2, "sign": 1}[codec]
    bits = bits_of(raw)
    need(not bits[count * width :].any(), "R9", "unused bits are set")
    words = bits[: count * width].reshape(count, width).astype(np.int64) @ (1 << np.arange(width))
    if codec == "sign":
        return np.where(words == 1, -1, 1).astype(np.float32)
    return np.where(words >> (width - 1) == 1, words - (1 << width), words).astype(np.float32)


class Lines(NamedTuple):
    """The scales of the rows of a term and, of `outer`, of the columns; as bytes."""

    width: int
    rows: np.ndarray
    columns: np.ndarray


def read_lines(data: bytes, term: Json, entry: Json) -> Lines | None:
    """R8 and R9: the scales of rows and columns."""
    if term.get("scales", "tensor") == "tensor":
        return None
    rows, columns = matrix_of(entry)
    raw = unstream(plain_blob(data, term["lines"]), lines_length(term["scales"], rows, columns))
    found = Lines(columns, np.frombuffer(raw[:rows], np.uint8), np.frombuffer(raw[rows:], np.uint8))
    need(found.columns.all(), "R9", "a column without a scale")
    return found


def stays(where: np.ndarray, lines: Lines) -> np.ndarray:
    """Which of these elements are in rows that are not dropped."""
    return np.asarray(lines.rows[where // lines.width] > 0)


ROOTS = np.array([0x3F800000, 0x3F8B95C2, 0x3F9837F0, 0x3FA5FED7, 0x3FB504F3, 0x3FC5672A, 0x3FD744FD, 0x3FEAC0C7], np.uint32)


def line_scales(lines: np.ndarray) -> np.ndarray:
    """The numbers that bytes of lines stand for, float32."""
    return ROOTS.view(np.float32)[lines & 7] * np.float32(2) ** ((lines >> 3).astype(np.float32) - 16)


def code_scales(term: Json, chunk: Json, where: np.ndarray, lines: Lines | None, factor: np.float32) -> np.ndarray:
    """R8, R9 and section 6.1: what the code of each kept element is multiplied with, float32; `where` they are in the tensor."""
    if "scales" not in term:
        group_sizes = [min(128, n - start) for n in chunk["counts"] for start in range(0, n, 128)]
        stored, raw_length = chunk["streams"][-1]
        need(raw_length == 2 * len(group_sizes), "R8", "raw length of the scales")
        scales = to_f32("bf16", merge_planes(unstream(stored, raw_length), 2))
        need(np.isfinite(scales).all(), "R9", "a scale is not finite")
        return np.repeat(scales * factor, group_sizes)
    scale = np.float32(f32_of_bits(term["scale"]))
    if lines is None:
        return np.repeat(scale * factor, len(where))
    own = line_scales(lines.rows)[where // lines.width]
    if term["scales"] == "outer":
        own = own * line_scales(lines.columns)[where % lines.width]
    return own * scale * factor


def addends(term: Json, chunk: Json, lines: Lines | None, factor: np.float32) -> tuple[np.ndarray, np.ndarray]:
    """R8, R9 and section 6.1: where the elements are in the tensor that a chunk of a term adds to, and the values, float32."""
    codec, count = term["values"], sum(chunk["counts"])
    where = positions(term, chunk, lines) + chunk["start"]
    stored, raw_length = chunk["streams"][int(term["index"] in ("gaps", "bitmap"))]
    need(codes_fit(codec, count, raw_length), "R8", "raw length of the codes")
    codes = unpack_codes(unstream(stored, raw_length), codec, count)
    if codec not in SCALED:
        return where, codes * factor
    values = codes * code_scales(term, chunk, where, lines, factor)
    added = codes != 0 if codec == "ternary" else np.full(count, True)  # a zero trit leaves its element alone
    return where[added], values[added]


# ---------------------------------------------------------------------------------------------------------------------
# codecs/factors.md
# ---------------------------------------------------------------------------------------------------------------------


def factor_values(data: bytes, term: Json, entry: Json, factor: np.float32) -> np.ndarray:
    """R8, R9 and sections 6.1 and 6.2: what a product of factors adds to each element of `common`, float32."""
    rank, bits, sizes = term["rank"], term["bits"], matrix_of(entry)
    lengths = [-(-size * bits // 8) for size in sizes]
    raw_length = rank * (8 + sum(lengths))
    need(raw_length <= MAX_FACTORS, "R8", "the factors are too large")
    raw = unstream(plain_blob(data, term["blob"]), raw_length)
    scales = np.frombuffer(raw[: 8 * rank], "<f4").reshape(2, rank)
    need(np.isfinite(scales).all(), "R9", "a scale of a factor is not finite")
    at, numbers = 8 * rank, []
    for size, length in zip(sizes, lengths, strict=True):
        for _ in range(rank):
            fields = bits_of(raw[at : at + length])
            need(not fields[size * bits :].any(), "R9", "unused bits are set")
            words = fields[: size * bits].reshape(size, bits).astype(np.int64) @ (1 << np.arange(bits))
            codes = np.where(words >> (bits - 1) == 1, words - (1 << bits), words)
            numbers.append((2 * codes + 1).astype(np.float32))
            at += length
    value = np.zeros(sizes, np.float32)
    for k in range(rank):
        u, v = numbers[k] * (scales[0, k] * factor), numbers[rank + k] * scales[1, k]
        product = u[:, None] * v[None, :]
        value = product if k == 0 else value + product
    return value.reshape(-1)


# ---------------------------------------------------------------------------------------------------------------------
# 06-arithmetic.md
# ---------------------------------------------------------------------------------------------------------------------

NUMPY = {"f64": "<f8", "f32": "<f4", "f16": "<f2", "bf16": "<u2", "f8_e4m3fn": "u1", "f8_e5m2": "u1"}
NAN = {"f64": 0x7FF8 << 48, "f32": 0x7FC00000, "f16": 0x7E00, "bf16": 0x7FC0, "f8_e4m3fn": 0x7F, "f8_e5m2": 0x7E}


@functools.lru_cache(maxsize=2)
def f8_values(dtype: str) -> np.ndarray:
    """The values of the codes 0..127, that is of those with a cleared sign, as float64."""
    mantissa_bits, bias = (3, 7) if dtype == "f8_e4m3fn" else (2, 15)
    values = []
    for code in range(128):
        exponent, mantissa = code >> mantissa_bits, code & (1 << mantissa_bits) - 1
        significand = mantissa + (1 << mantissa_bits if exponent else 0)
        values.append(significand * 2.0 ** (max(exponent, 1) - bias - mantissa_bits))
    if dtype == "f8_e4m3fn":
        values[0x7F] = math.nan
    else:
        values[0x7C:] = [math.inf, math.nan, math.nan, math.nan]
    return np.array(values)


def to_f32(dtype: str, raw: bytes) -> np.ndarray:
    """Elements of a type other than f64 as float32: exact."""
    words = np.frombuffer(raw, NUMPY[dtype])
    if dtype == "bf16":
        return (words.astype(np.uint32) << 16).view(np.float32)
    if dtype.startswith("f8"):
        magnitude = f8_values(dtype)[words & 0x7F]
        words = np.where(words & 0x80, -magnitude, magnitude)
    numbers: np.ndarray = words.astype(np.float32)
    return numbers


def to_numbers(dtype: str, raw: bytes) -> np.ndarray:
    """Elements as float64 where that is their type, else as float32."""
    return np.frombuffer(raw, "<f8") if dtype == "f64" else to_f32(dtype, raw)


def convert(values: np.ndarray, dtype: str) -> np.ndarray:
    """Section 6.3: float32 or float64 numbers to elements of `dtype`."""
    if dtype != "f64":
        values = values.astype(np.float32)
    if dtype == "bf16":
        u = values.view(np.uint32).astype(np.uint64)
        out = (u + np.uint64(0x7FFF) + (u >> np.uint64(16) & np.uint64(1)) >> np.uint64(16)).astype("<u2")
    elif dtype.startswith("f8"):
        finite = f8_values(dtype)[: 0x7F if dtype == "f8_e4m3fn" else 0x7C]
        middles = (finite[:-1] + finite[1:]) / 2
        magnitude = np.abs(values).astype(np.float64)
        code = np.searchsorted(middles, magnitude, side="left")  # how many midpoints are smaller
        is_tie = np.searchsorted(middles, magnitude, side="right") != code
        code = code + (is_tie & (code % 2 == 1))
        out = (code + 0x80 * np.signbit(values)).astype(np.uint8)
    else:
        out = values.astype(NUMPY[dtype])
    bits = out.view(f"<u{ITEMSIZE[dtype]}").copy()
    bits[np.isnan(values)] = NAN[dtype]
    return bits


def add_chunk(base: bytes, base_dtype: str, dtype: str, kept: np.ndarray, acc: np.ndarray) -> bytes:
    """Section 6.2 on one chunk: `kept` bool and `acc` float32, one per element."""
    start = to_numbers(base_dtype, base)
    if "f64" in (base_dtype, dtype):
        start = start.astype(np.float64)
        total = start + acc.astype(np.float64)
    else:
        total = start + acc
    same = np.frombuffer(base, f"<u{ITEMSIZE[dtype]}") if base_dtype == dtype else convert(start, dtype)
    out: np.ndarray = np.where(kept, convert(total, dtype), same)
    return out.tobytes()


# ---------------------------------------------------------------------------------------------------------------------
# 03-index.md: digests
# ---------------------------------------------------------------------------------------------------------------------


def dims(shape: Sequence[int]) -> str:
    """The dimensions in decimal."""
    return ",".join(map(str, shape))


def root_digest(dtype: str, shape: Sequence[int], chunk_digests: Sequence[bytes]) -> str:
    """The digest of a tensor from the digests of its chunks."""
    return xxhash.xxh3_128_hexdigest(f"{dtype}\0{dims(shape)}\0".encode() + b"".join(chunk_digests))


def tensor_digest(dtype: str, shape: Sequence[int], raw: bytes) -> str:
    """The digest of a tensor."""
    size = itemsize(dtype)
    chunks = [xxhash.xxh3_128_digest(raw[a * size : b * size]) for a, b in spans(len(raw) // size, CHUNK)]
    return root_digest(dtype, shape, chunks)


def fingerprint(rows: Sequence[tuple[str, str, Sequence[int], str]]) -> str:
    """The SHA-256 of a checkpoint, from name, dtype, shape and digest of its tensors."""
    rows = sorted(rows, key=lambda row: row[0].encode())
    text = "".join(f"{name}\0{dtype}\0{dims(shape)}\0{digest}\n" for name, dtype, shape, digest in rows)
    return hashlib.sha256(text.encode()).hexdigest()


def content_id(index: Json) -> str:
    """Section 3.14: the SHA-256 of what a pack restores."""
    lines = ["dpk-content-1", f"tensors\0{index['result']['fingerprint']}"]
    lines += [f"alias\0{entry['name']}\0{entry['of']}" for entry in index["tensors"] if entry["kind"] == "alias"]
    lines += [f"folder\0{folder}" for folder in sorted(index.get("folders", {}), key=str.encode)]
    if index["files"] is not None:
        lines.append("files")
        lines += [f"file\0{file['name']}\0{file['sha256']}" for file in index["files"] if not is_descriptive(file["name"])]
    return hashlib.sha256("".join(f"{line}\n" for line in lines).encode()).hexdigest()


def check_digests_blob(data: bytes, entry: Json) -> None:
    """R8 and R9: the chunk digests have the roots that the index states."""
    blob = plain_blob(data, entry["digests"])
    base = chunk_count(numel(*base_of(entry)[1:])) if "base" in entry else 0
    parts = [blob[i : i + 16] for i in range(0, len(blob), 16)]
    root = root_digest(entry["dtype"], entry["shape"], parts[base:])
    need(root == entry["digest"], "R9", "chunk digests do not match the digest")
    if "base" in entry:
        root = root_digest(*base_of(entry)[1:], parts[:base])
        need(root == entry["base"]["digest"], "R9", "chunk digests do not match the base digest")


# ---------------------------------------------------------------------------------------------------------------------
# Restoring
# ---------------------------------------------------------------------------------------------------------------------


def check_base(index: Json, base: Mapping[str, Tensor]) -> None:
    """R11: the base has the tensors that the index names."""
    for entry in index["tensors"]:
        for piece, cell in pieces_of(entry):
            name, extent = piece["name"], box_of(piece, cell)
            need(name in base, "R11", f"the base has no tensor {name!r}")
            need(base[name][0] == base_of(entry)[1], "R11", f"type of {name!r}")
            need(len(base[name][1]) == len(extent), "R11", f"dimensions of {name!r}")
            ends = [start + size for start, size in zip(piece["from"], extent, strict=True)]
            need(all(end <= size for end, size in zip(ends, base[name][1], strict=False)), "R11", f"{name!r} ends before {ends}")
        if "base" in entry and not pieces_of(entry):
            name, dtype, shape = base_of(entry)
            need(name in base, "R11", f"the base has no tensor {name!r}")
            need((dtype, tuple(shape)) == (base[name][0], tuple(base[name][1])), "R11", f"type or shape of {name!r}")
            need(len(base[name][2]) == numel(dtype, shape) * itemsize(dtype), "R11", f"size of {name!r}")


def arranged(entry: Json, base: Mapping[str, Tensor]) -> Tensor:
    """Section 3.10: a base tensor that is made of pieces of others; R11 was checked before."""
    _, dtype, shape = base_of(entry)
    element = np.dtype(f"V{ITEMSIZE[dtype]}")
    out = np.empty(shape, element)
    corners = itertools.product(*([sum(extents[:i]) for i in range(len(extents))] for extents in entry["base"]["grid"]))
    for (piece, cell), corner in zip(pieces_of(entry), corners, strict=True):
        _, own_shape, raw = base[piece["name"]]
        box = [slice(start, start + size) for start, size in zip(piece["from"], box_of(piece, cell), strict=True)]
        elements = np.frombuffer(raw, element).reshape(own_shape)[tuple(box)]
        elements = elements.swapaxes(-1, -2) if "transposed" in piece else elements
        out[tuple(slice(start, start + size) for start, size in zip(corner, cell, strict=True))] = elements.reshape(cell)
    return dtype, tuple(shape), out.tobytes()


def with_arranged(packs: Sequence[Json], base: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Section 3.10: the base with the tensors that packs make of it; each hides a tensor of the base that has its name."""
    made = [{e["name"]: (e["base"]["grid"], e["base"]["pieces"]) for e in pack["index"]["tensors"] if pieces_of(e)} for pack in packs]
    if any(others != made[0] for others in made):
        raise Conflict("the packs arrange tensors of the base differently")
    return {**base, **{e["name"]: arranged(e, base) for e in packs[0]["index"]["tensors"] if pieces_of(e)}}


def restore_stored(data: bytes, entry: Json, common: int) -> bytes:
    """The elements from `common` to the end."""
    size, out = itemsize(entry["dtype"]), []
    for chunk in read_chunks(data, entry["stored"], numel(entry["dtype"], entry["shape"]) - common, 1):
        stored, raw_length = chunk["streams"][0]
        need(raw_length == sum(chunk["tiles"]) * size, "R8", "raw length of stored elements")
        out.append(merge_planes(unstream(stored, raw_length), size))
    return b"".join(out)


@functools.cache
def exact_decoder() -> Any:
    """codecs/exact.md as a program: the file beside this one, which takes its checks from here."""
    spec = importlib.util.spec_from_file_location("exact_decoder", Path(__file__).with_name("exact_decoder.py"))
    assert spec is not None and spec.loader is not None
    sys.modules.setdefault("reference_decoder", sys.modules[__name__])
    module: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.need, module.unzstd = need, unzstd  # also where this program runs under another name
    return module


def shared_tables(pack: Json) -> list[bytes]:
    """Section 3.12: the tables that exact chunks of a pack share."""
    return [plain_blob(pack["data"], ref) for ref in pack["index"].get("tables", [])]


def exact_chunks(data: bytes, entry: Json, step: Json) -> Iterator[tuple[int, int, bytes]]:
    """R8: of each chunk of a step the start and the length, in bytes of the tensor, and its bytes."""
    size = itemsize(entry["dtype"])
    for chunk in read_chunks(data, step["blob"], numel(entry["dtype"], entry["shape"]), 1):
        stored, raw_length = chunk["streams"][0]
        length = sum(chunk["tiles"]) * size
        need(1 <= raw_length <= 64 + 2 * length, "R8", "raw length of an exact chunk")
        need(len(stored) == raw_length, "R8", "an exact chunk is not stored as it is")
        yield chunk["start"] * size, length, stored


def restore_exact(data: bytes, tables: list[bytes], entry: Json, base: Tensor | None) -> bytes:
    """Section 3.12: the elements of an exact tensor; where it has a partner, that is `base`."""
    dtype, size, now = entry["dtype"], itemsize(entry["dtype"]), b""
    if has_partner(entry) and base is not None:
        now = base[2] if base[0] == dtype else convert(to_numbers(base[0], base[2]), dtype).tobytes()
    for step in entry["exact"]:
        parts, own_tables = [], tables[step.get("tables", 0) :]
        for start, length, chunk in exact_chunks(data, entry, step):
            before = now[start : start + length]
            padded = before.ljust(length, b"\0") if before else None
            parts.append(exact_decoder().decode_exact(chunk, padded, dtype, size, length // size, own_tables))
        now = b"".join(parts)
    return now


def check_base_digest(name: str, digest: str, base: Tensor) -> None:
    """R12 on the base tensor of an entry of this name."""
    need(tensor_digest(*base) == digest, "R12", f"the base of {name!r} differs")


def term_addends(data: bytes, term: Json, entry: Json, factor: np.float32) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """For each chunk of a term (of factors, at once) where the elements are in the tensor that it adds to, and the values."""
    if term["values"] == "factors":
        values = factor_values(data, term, entry, factor)
        yield np.arange(len(values)), values
        return
    lines = read_lines(data, term, entry)
    streams = 1 + (term["index"] in ("gaps", "bitmap")) + (term["values"] in GROUPED and "scales" not in term)
    for chunk in read_chunks(data, term["blob"], common_numel(entry), streams, term["nnz"]):
        yield addends(term, chunk, lines, factor)


def restore_common(parts: Sequence[Part], base: Tensor, dtype: str, factor: float | None) -> bytes:
    """Base plus what the parts add, over the elements that all of them have in common with the base."""
    old, common = base[0], min(common_of(part) for part in parts)
    raw, size = base[2][: common * ITEMSIZE[base[0]]], ITEMSIZE[base[0]]
    acc, kept = np.zeros(common, np.float32), np.zeros(common, bool)
    for part in parts:
        if part.entry["kind"] in WHOLE:
            if part.base_digest is not None:
                check_base_digest(part.entry["name"], part.base_digest, base)
            new = nearest_f32(part.entry["dtype"], elements_of(part, base))
            acc += (new - nearest_f32(old, raw)) * np.float32(part.weight)
            kept[:] = True
        for term in part.entry.get("terms", []):
            given = factor is not None and term["index"] != "all"
            own = np.float32(factor if given else f32_of_bits(term["factor"])) * np.float32(part.weight)
            for where, values in term_addends(part.data, term, part.entry, own):
                acc[where] += values
                kept[where] = True
    return b"".join(add_chunk(raw[a * size : b * size], old, dtype, kept[a:b], acc[a:b]) for a, b in spans(common, CHUNK))


# ---------------------------------------------------------------------------------------------------------------------
# 09-weights-and-several-packs.md
# ---------------------------------------------------------------------------------------------------------------------


class Part(NamedTuple):
    """What one pack says of one tensor."""

    pack: int  # its number
    data: bytes
    entry: Json
    weight: float
    base_digest: str | None  # of the base tensor, where any pack states one
    tables: list[bytes]  # that chunks of its pack share


def common_of(part: Part) -> int:
    """The number of elements that a part adds to."""
    return numel(part.entry["dtype"], part.entry["shape"]) if part.entry["kind"] in WHOLE else common_numel(part.entry)


def nearest_f32(dtype: str, raw: bytes) -> np.ndarray:
    """Elements as float32: exact but for f64, which is rounded."""
    return np.frombuffer(raw, "<f8").astype(np.float32) if dtype == "f64" else to_f32(dtype, raw)


def check_weight(weight: float) -> float:
    """Section 9.1: a weight (or a factor) that can be an f32."""
    if not abs(weight) < 3e38:  # also NaN
        raise ValueError(f"{weight} is not a finite f32")
    return weight


def grouped(
    packs: Sequence[Json], weights: Sequence[float], base: Mapping[str, Tensor], digests: Mapping[str, str]
) -> list[dict[str, list[Part]]]:
    """Section 9.3: the parts of each base tensor, and of each new tensor, by name; `digests` are those of base tensors."""
    of_base: dict[str, list[Part]] = {}
    of_new: dict[str, list[Part]] = {}
    for number, (pack, weight) in enumerate(zip(packs, weights, strict=True)):
        entries, tables = pack["index"]["tensors"], shared_tables(pack)
        used = {base_of(entry)[0] for entry in entries if "base" in entry}
        for entry in entries:
            name = entry["name"]
            base_name = base_of(entry)[0] if "base" in entry else name
            part = Part(number, pack["data"], entry, weight, digests.get(base_name), tables)
            if "base" in entry:
                of_base.setdefault(base_name, []).append(part)
            elif name in base and name not in used:
                of_base.setdefault(name, []).append(part)
            elif entry["kind"] in WHOLE:
                of_new.setdefault(name, []).append(part)
    return [of_base, of_new]


def decide(parts: Sequence[Part], prefer: int | None) -> Part:
    """Section 9.3: the part that counts where parts cannot be added."""
    if len({part.entry["digest"] for part in parts}) == 1:
        return parts[0]
    for part in parts:
        if part.pack == prefer:
            return part
    raise Conflict(f"packs disagree on {parts[0].entry['name']!r}")


def name_of(base_name: str, parts: Sequence[Part], prefer: int | None) -> str:
    """Section 9.4: the name that the packs agree on, else the preferred pack's, else the base's."""
    names = [str(part.entry["name"]) for part in parts]
    if len(set(names)) == 1:
        return names[0]
    return next((name for name, part in zip(names, parts, strict=True) if part.pack == prefer), base_name)


def blends(part: Part, base: Tensor) -> bool:
    """Section 9.2: whether a stored or exact tensor can be seen as a difference to the base tensor."""
    entry = part.entry
    floats = entry["kind"] in WHOLE and {entry["dtype"], base[0]} <= set(FLOATS)
    return floats and tuple(entry["shape"]) == tuple(base[1])


def elements_of(part: Part, base: Tensor | None) -> bytes:
    """The elements of a stored or exact tensor."""
    if part.entry["kind"] == "stored":
        return restore_stored(part.data, part.entry, 0)
    return restore_exact(part.data, part.tables, part.entry, base)


def whole(part: Part, base: Tensor | None = None) -> Tensor:
    """A stored or exact tensor as it is; its digest holds, whatever the weight."""
    entry = part.entry
    tensor = entry["dtype"], tuple(entry["shape"]), elements_of(part, base)
    need(tensor_digest(*tensor) == entry["digest"], "R12", f"the restored {entry['name']!r} differs")
    return tensor


def combine(parts: Sequence[Part], base: Tensor, prefer: int | None, factor: float | None) -> Tensor:
    """Section 9.3: one tensor of the result, from what the packs that keep it say of it."""
    parts = [part for part in parts if part.entry["kind"] != "unchanged"]
    if not parts:
        return base
    if len(parts) == 1 and parts[0].entry["kind"] in WHOLE and (parts[0].weight == 1 or not blends(parts[0], base)):
        return whole(parts[0], base)
    shaping = [part for part in parts if part.entry["kind"] != "delta" and not blends(part, base)]
    if not shaping:
        dtypes = {part.entry["dtype"] for part in parts}
        dtype = dtypes.pop() if len(dtypes) == 1 else base[0]
        return dtype, base[1], restore_common(parts, base, dtype, factor)
    part = decide(shaping, prefer)
    if part.entry["kind"] != "grown":
        part = decide(parts, prefer)
        if len(parts) > 1:
            return combine([part], base, prefer, factor)
    adding = [other for other in parts if other.entry["kind"] in ("delta", part.entry["kind"]) or blends(other, base)]
    raw = restore_common(adding, base, part.entry["dtype"], factor)
    if "stored" in part.entry:
        raw += restore_stored(part.data, part.entry, common_numel(part.entry))
    return part.entry["dtype"], tuple(part.entry["shape"]), raw


def second_names(packs: Sequence[Json], names: Iterable[str], prefer: int | None = None) -> dict[str, str]:
    """Section 9.5: the second names of tensors of a result that holds these names."""
    held = set(names)
    tied = [{e["name"]: e["of"] for e in pack["index"]["tensors"] if e["kind"] == "alias"} for pack in packs]
    out = {}
    for name in {name: None for own in tied for name in own}:
        of = [own[name] for own in tied if own.get(name) in held]
        if name not in held and of:
            if prefer is not None and tied[prefer].get(name) in held:
                of = [tied[prefer][name]]
            if len(set(of)) > 1:
                raise Conflict(f"packs tie {name!r} to different tensors")
            out[name] = of[0]
    return out


def check_bases(packs: Sequence[Json], base: Mapping[str, Tensor]) -> dict[str, str]:
    """R12 on the base of all packs, and the chunk digests that they hold; the digests that they state of base tensors."""
    digests: dict[str, str] = {}
    for pack in packs:
        index = pack["index"]
        for entry in index["tensors"]:
            if "digests" in entry:
                check_digests_blob(pack["data"], entry)
            # The result does not depend on what is removed, nor on what is replaced, unless a weight blends it.
            if has_partner(entry) or ("base" in entry and entry["kind"] not in ("removed", *WHOLE)):
                check_base_digest(entry["name"], entry["base"]["digest"], base[base_of(entry)[0]])
        for entry in (entry for entry in index["tensors"] if "base" in entry):
            stated = digests.setdefault(base_of(entry)[0], entry["base"]["digest"])
            need(stated == entry["base"]["digest"], "R12", f"the packs state different digests of {base_of(entry)[0]!r}")
    return digests


def restore_several(
    pack_paths: Sequence[str | Path],
    base_tensors: Mapping[str, Tensor],
    *,
    weights: Sequence[float] | None = None,
    prefer: int | None = None,
    factor: float | None = None,
) -> dict[str, Tensor]:
    """Apply packs to their base, added up in the order given, checking every rule.

    Args:
        pack_paths: The packs.
        base_tensors: Name to (dtype name, shape, little-endian bytes in row-major order).
        weights: What scales the difference of each pack; 1 unless given.
        prefer: The number, from 0, of the pack that decides where packs cannot be added.
        factor: Takes the place of the factor of every term that does not keep all elements.

    Returns:
        The tensors of the result; aliases are not among them. Where one pack is applied with weight 1 and its own factors, all
        digests of the result are checked, else those of tensors that are taken from a pack as they are.

    Raises:
        Conflict: Packs disagree on what cannot be added.
        Invalid: A rule is broken, by a pack or, R11 and R12, by the base.
        ValueError: A weight or the factor is no finite f32.
    """
    packs = [read_pack(path) for path in pack_paths]
    weights = [check_weight(weight) for weight in ([1.0] * len(packs) if weights is None else weights)]
    check_weight(0.0 if factor is None else factor)
    for pack in packs:
        check_base(pack["index"], base_tensors)
        need(pack["index"]["base"]["fingerprint"] == packs[0]["index"]["base"]["fingerprint"], "R11", "the packs have different bases")
    base_tensors = with_arranged(packs, base_tensors)
    digests = check_bases(packs, base_tensors)
    of_base, of_new = grouped(packs, weights, base_tensors, digests)
    found: list[tuple[str, Tensor, list[Part]]] = []
    with np.errstate(all="ignore"):
        for name, base in base_tensors.items():
            staying = [part for part in of_base.get(name, []) if part.entry["kind"] not in ("removed", "alias")]
            if staying:
                tensor = combine(staying, base, prefer, factor)
                found.append((name_of(name, staying, prefer), tensor, staying))
        found += [(name, whole(decide(parts, prefer)), parts) for name, parts in of_new.items()]
    result = {name: tensor for name, tensor, _ in found}
    if len(result) < len(found):
        raise Conflict("two tensors of the result would have one name")
    second_names(packs, result, prefer)
    if len(packs) == 1 and weights == [1.0] and factor is None:
        for name, tensor, parts in found:
            need(tensor_digest(*tensor) == parts[0].entry["digest"], "R12", f"the restored {name!r} differs")
    return dict(sorted(result.items(), key=lambda item: item[0].encode()))


def restore(
    pack_path: str | Path, base_tensors: Mapping[str, Tensor], *, weight: float = 1.0, factor: float | None = None
) -> dict[str, Tensor]:
    """Apply one pack to its base; see `restore_several`."""
    return restore_several([pack_path], base_tensors, weights=[weight], factor=factor)


def reshapes(entry: Json) -> bool:
    """Section 9.6: whether an entry does more than add."""
    if entry["kind"] == "exact":
        return "base" not in entry or "shape" in entry["base"]
    return entry["kind"] in ("grown", "shrunk", "stored", "removed")


def side_files_of_several(pack_paths: Sequence[str | Path], prefer: int | None = None) -> dict[str, bytes | None] | None:
    """Section 9.6: the side files of a result, as `side_files` gives them; None: those of the base, all of them."""
    indices = [read_pack(path)["index"] for path in pack_paths]
    known = [index["files"] for index in indices]
    matter = [files and [(file["name"], file["sha256"]) for file in files if not is_descriptive(file["name"])] for files in known]
    gone = [{piece["name"] for entry in index["tensors"] for piece, _ in pieces_of(entry)} for index in indices]  # as pieces they stay
    told = [[e for e in index["tensors"] if e["kind"] != "removed" or e["name"] not in gone[i]] for i, index in enumerate(indices)]
    shaping = [i for i, entries in enumerate(told) if any(map(reshapes, entries))]
    donor = prefer
    if prefer is None and all(files == matter[0] for files in matter):
        donor = 0
    elif prefer is None and len(shaping) == 1:
        donor = shaping[0]
    return None if donor is None or known[donor] is None else side_files(pack_paths[donor])


def side_files(pack_path: str | Path, base_files: Mapping[str, bytes] | None = None) -> dict[str, bytes | None] | None:
    """The side files of a pack. None stands for a file of the base checkpoint; in place of all, for the files of the base.

    A file that refers to the base's is None, too, unless the files of the base are given.
    """
    pack = read_pack(pack_path)
    if pack["index"]["files"] is None:
        return None
    out: dict[str, bytes | None] = {}
    for file in pack["index"]["files"]:
        content = None
        if "blob" in file:
            refers = "base" in file and base_files is not None
            content = held_file(pack["data"], file, base_file(file["name"], file["base"], base_files) if refers else None)
        out[file["name"]] = content
    return out


def held_file(data: bytes, file: Json, before: bytes | None) -> bytes | None:
    """The content of a file or head that a pack holds; None where it refers to one of the base that is not given."""
    stored = plain_blob(data, file["blob"])
    if "base" not in file:
        content = unstream(stored, file["size"])
    else:
        need(len(stored) < file["size"], "R8", "a file that refers to the base's is stored as it is, or longer")
        check_frame(stored, file["size"], refers=True)
        if before is None:
            return None
        content = unzstd(stored, file["size"], before)
    need(hashlib.sha256(content).hexdigest() == file["sha256"], "R8", f"file {file['name']!r} differs")
    return content


def base_file(name: str, sha256: str, base_files: Mapping[str, bytes]) -> bytes:
    """R11 and R12: the base's file of this name, with the line ends that give this digest."""
    need(name in base_files, "R11", f"the base has no file {name!r}")
    content = base_files.get(name, b"")
    form = with_digest(name, content, sha256)
    need(form is not None or name not in base_files, "R12", f"the base has another file {name!r}")
    return content if form is None else form


def with_digest(name: str, content: bytes, sha256: str) -> bytes | None:
    """The form of a file of the base that has the digest."""
    return next((form for form in forms_of(name, content) if hashlib.sha256(form).hexdigest() == sha256), None)


def forms_of(name: str, content: bytes) -> Iterator[bytes]:
    """Section 3.7: the forms of a file, in their order."""
    unix = content.replace(b"\r\n", b"\n")
    yield from (content, unix, unix.replace(b"\n", b"\r\n"))
    if name.endswith(".json"):
        tokens = tokens_of(content)
        for form in (spread(tokens), b"".join(tokens)):
            if form is not None:
                yield from (form, form + b"\n")


def tokens_of(content: bytes) -> list[bytes]:
    """The tokens of JSON, or of what is called so."""
    tokens, at = [], 0
    while at < len(content):
        start, at = at, at + 1
        if content[start] == ord('"'):
            while at < len(content) and content[at] != ord('"'):
                at += 2 if content[at] == ord("\\") else 1
            at += 1
        elif content[start] not in b"{}[]:, \t\n\r":
            while at < len(content) and content[at] not in b'{}[]:, \t\n\r"':
                at += 1
        if content[start] not in b" \t\n\r":
            tokens.append(content[start:at])
    return tokens


def spread(tokens: Sequence[bytes]) -> bytes | None:
    """One item a line, two spaces a level; none above 64 levels."""
    out, level, last = b"", 0, b""
    for token in tokens:
        closes, opened = token in (b"}", b"]"), last in (b"{", b"[")
        level = max(level - closes, 0)
        if closes != opened:
            out += b"\n" + b"  " * level
        out += token
        level += token in (b"{", b"[")
        if level > 64:
            return None
        out += b"\n" + b"  " * level if token == b"," else b" " if token == b":" else b""
        last = token
    return out


DESCRIPTIVE = re.compile(
    r"(readme|licen[cs]e|notice|copying|use_policy|citation|changelog|authors|contributing|requirements)([-._ ].*)?|.*\.(md|rst)"
)


def is_descriptive(name: str) -> bool:
    """Section 3.7: whether a file is for people, so that the result may have the base's of today."""
    return DESCRIPTIVE.fullmatch("".join(chr(ord(c) + 32) if "A" <= c <= "Z" else c for c in name.split("/")[-1])) is not None


def restore_files(pack_path: str | Path, base_files: Mapping[str, bytes]) -> dict[str, bytes]:
    """Section 3.7: the side files beside the restored tensors.

    Raises:
        Invalid: R11 or R12 where the base lacks a file that the pack leaves to it, or has another one; else R8 or R10.
    """
    files = side_files(pack_path, base_files)
    if files is None:
        return dict(base_files)
    out = {name: content for name, content in files.items() if content is not None}
    for file in read_pack(pack_path)["index"]["files"]:
        name = file["name"]
        if "blob" in file:
            continue
        if is_descriptive(name):
            if name in base_files:
                form = with_digest(name, base_files[name], file["sha256"])
                out[name] = base_files[name] if form is None else form
            continue
        out[name] = base_file(name, file["sha256"], base_files)
        need(len(out[name]) == file["size"] or name not in base_files, "R12", f"{name!r} of the base has another size")
    return out


def heads_of(pack: Json, base_heads: Mapping[str, bytes] | None = None) -> dict[str, bytes]:
    """Section 3.13: the heads of the weight files; without those of the base, only the ones that a pack holds whole."""
    out: dict[str, bytes] = {}
    for row in pack["index"].get("containers", []):
        name, before = row["name"], None
        if base_heads is not None and ("base" in row or "blob" not in row):
            need(name in base_heads, "R11", f"the base has no weight file {name!r}")
            before = base_heads.get(name, b"")
            same = hashlib.sha256(before).hexdigest() == row.get("base", row["sha256"])
            need(same or name not in base_heads, "R12", f"the base has another head of {name!r}")
            need(
                "blob" in row or len(before) == row["size"] or name not in base_heads,
                "R12",
                f"the base has a head of another size of {name!r}",
            )
        content = held_file(pack["data"], row, before) if "blob" in row else before
        if content is not None:
            out[name] = content
    return out


def parse_json(raw: bytes, rule: str = "R9") -> Any:
    """JSON whose spelling is free: of a head (R9), and of the index of parts."""

    def pairs(items: list[tuple[str, Any]]) -> Json:
        need(len(dict(items)) == len(items), rule, "a duplicate key")
        return dict(items)

    def no_number(text: str) -> NoReturn:
        fail(rule, f"{text} is no JSON")

    try:
        return json.loads(raw.decode("utf-8"), object_pairs_hook=pairs, parse_constant=no_number)
    except (ValueError, RecursionError) as error:
        raise Invalid(rule, str(error)) from error


def rows_of(head: bytes) -> dict[str, tuple[str, list[int], int, int]]:
    """R9: type, shape, begin and end of each tensor in the head of a safetensors file, in the order of the elements."""
    need(len(head) >= 8 and int.from_bytes(head[:8], "little") == len(head) - 8, "R9", "the header has another length")
    need(head[8:9] == b"{", "R9", "the header does not begin as an object")
    header = parse_json(head[8:])
    metadata = header.pop("__metadata__", None)
    strings = metadata is None or (type(metadata) is dict and all(type(text) is str for text in metadata.values()))
    need(strings, "R9", "__metadata__ is no object of strings")
    need(is_unicode(json.dumps(metadata, ensure_ascii=False)), "R9", "__metadata__ is no Unicode")
    for row in header.values():
        need(type(row) is dict and row.keys() == {"dtype", "shape", "data_offsets"}, "R9", "the fields of a tensor")
        shape, offsets = row["shape"], row["data_offsets"]
        numbers = [*shape, *offsets] if type(shape) is type(offsets) is list and len(offsets) == 2 else [-1]
        need(all(type(number) is int and number >= 0 for number in numbers), "R9", "a shape is no list of integers, or offsets no two")
    rows = {name: (row["dtype"], row["shape"], *row["data_offsets"]) for name, row in header.items()}
    return dict(sorted(rows.items(), key=lambda item: item[1][2:]))


def is_unicode(text: str) -> bool:
    """Whether a text has no surrogates."""
    return not any(0xD800 <= ord(char) < 0xE000 for char in text)


def check_heads(index: Json, heads: Mapping[str, bytes]) -> None:
    """R9: the heads speak of exactly the tensors of the result, and indices of the files beside them."""
    tensors = {entry["name"]: entry for entry in index["tensors"] if "dtype" in entry}
    aliases = {entry["name"]: entry["of"] for entry in index["tensors"] if entry["kind"] == "alias"}
    in_header = {ours: theirs for theirs, ours in SAFETENSORS.items()}
    place: dict[str, str] = {}
    for file, head in heads.items():
        folder, end = folder_part(file), 0
        for name, (dtype, shape, begin, stop) in ({} if file.endswith(".json") else rows_of(head)).items():
            full = folder + name
            entry = tensors.get(full)
            need(
                entry and folder_of(full, index.get("folders", {})) == folder[:-1], "R9", f"{file!r} has {name!r}, no tensor of its folder"
            )
            known = in_header.get(entry["dtype"]) or entry["dtype"].partition(":")[2]
            need([dtype, shape] == [known, entry["shape"]], "R9", f"{file!r} has {name!r} with another type or shape")
            size = numel(entry["dtype"], entry["shape"]) * itemsize(entry["dtype"])
            need(begin == end and stop == begin + size, "R9", f"{file!r} has the elements of {name!r} elsewhere")
            need(full not in place, "R9", f"{full!r} is in two files")
            place[full], end = file, begin + size
    need(place.keys() == tensors.keys(), "R9", "a tensor is in no weight file")
    for file in (file for file in heads if file.endswith(".json")):
        document, folder = parse_json(heads[file]), folder_part(file)
        weight_map = document.get("weight_map") if type(document) is dict else None
        need(type(weight_map) is dict and all(type(shard) is str for shard in weight_map.values()), "R9", f"{file!r} has no weight_map")
        own = {folder + shard for shard in weight_map.values()}
        need(own == set(files_and_indices(heads, folder)[0]), "R9", f"{file!r} has other weight files")
        for name, shard in weight_map.items():
            full = aliases.get(folder + name, folder + name)
            right = full in place and (place[full] == folder + shard or full != folder + name)
            need(right, "R9", f"{file!r} has {name!r} in another file")


def restore_containers(pack_path: str | Path, tensors: Mapping[str, Tensor], base_heads: Mapping[str, bytes]) -> dict[str, bytes]:
    """Section 3.13: the weight files of a restored checkpoint byte for byte, and their indices; none where the pack says nothing of them.

    Args:
        pack_path: The pack.
        tensors: What `restore` gives.
        base_heads: The heads of the base's files.

    Raises:
        Invalid: R8 to R12.
    """
    pack = read_pack(pack_path)
    heads = heads_of(pack, base_heads)
    if heads:
        check_heads(pack["index"], heads)
    out = {}
    for file, head in heads.items():
        names = [] if file.endswith(".json") else rows_of(head)
        out[file] = head + b"".join(tensors[folder_part(file) + name][2] for name in names)
    return out


def check_alone(pack_path: str | Path) -> None:
    """All that can be checked of a pack without its base: R1 to R10, R13, and R12 for what holds no element of the base.

    Raises:
        Invalid: A rule is broken.
    """
    pack = read_pack(pack_path)
    data, tables = pack["data"], shared_tables(pack)
    side_files(pack_path)
    heads = heads_of(pack)
    if heads and len(heads) == len(pack["index"]["containers"]):
        check_heads(pack["index"], heads)
    with np.errstate(all="ignore"):
        for entry in pack["index"]["tensors"]:
            if "digests" in entry:
                check_digests_blob(data, entry)
            for term in entry.get("terms", []):
                for _ in term_addends(data, term, entry, np.float32(1)):
                    pass
            for step in entry.get("exact", []) if has_partner(entry) else []:
                for _ in exact_chunks(data, entry, step):
                    pass
            if "dtype" in entry:
                check_own_chunks(data, tables, entry)


def check_own_chunks(data: bytes, tables: list[bytes], entry: Json) -> None:
    """R12 for the chunks of the result for which no base is needed."""
    common, count, size = common_numel(entry), numel(entry["dtype"], entry["shape"]), itemsize(entry["dtype"])
    raw, is_own = b"", "stored" in entry or ("exact" in entry and not has_partner(entry))
    if is_own:
        raw = restore_stored(data, entry, common) if "stored" in entry else restore_exact(data, tables, entry, None)
    own = [(a, b) for a, b in spans(count, CHUNK) if common <= a] if is_own else []
    found = [xxhash.xxh3_128_digest(raw[(a - common) * size : (b - common) * size]) for a, b in own]
    if len(own) == chunk_count(count):  # all chunks; none, where there are no elements
        need(root_digest(entry["dtype"], entry["shape"], found) == entry["digest"], "R12", f"{entry['name']!r} differs")
    elif own:
        known = plain_blob(data, entry["digests"])[-16 * len(own) :]
        need(b"".join(found) == known, "R12", f"the rows that {entry['name']!r} stores differ")


# ---------------------------------------------------------------------------------------------------------------------
# safetensors, as far as the command line needs it
# ---------------------------------------------------------------------------------------------------------------------

SAFETENSORS = {  # section 3.6
    **{"F64": "f64", "F32": "f32", "F16": "f16", "BF16": "bf16", "F8_E4M3": "f8_e4m3fn", "F8_E5M2": "f8_e5m2"},
    **{"F8_E8M0": "f8_e8m0fnu", "C64": "c64", "I64": "i64", "I32": "i32", "I16": "i16", "I8": "i8"},
    **{"U64": "u64", "U32": "u32", "U16": "u16", "U8": "u8", "BOOL": "bool"},
}


def dtype_of_header(info: Json, size: int) -> str:
    """The name in a pack of a type in the header; of one that 3.6 does not list, the width follows from the size in bytes."""
    name = info["dtype"]
    count = math.prod(info["shape"])
    return SAFETENSORS.get(name) or f"raw{8 * size // count if count else RAW_WIDTHS.get(name, 8)}:{name}"


def load_safetensors(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a file, or of all *.safetensors files of a folder and, as section 3.9 names them, of its sub-folders."""
    tensors: dict[str, Tensor] = {}
    if path.is_dir():
        for file in sorted(path.rglob("*.safetensors")):
            folder = "".join(f"{part}/" for part in file.relative_to(path).parts[:-1])
            tensors |= {folder + name: tensor for name, tensor in load_safetensors(file).items()}
        return tensors
    data = path.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    header.pop("__metadata__", None)
    for name, info in header.items():
        begin, end = info["data_offsets"]
        tensors[name] = (dtype_of_header(info, end - begin), tuple(info["shape"]), data[start + begin : start + end])
    return tensors


def metadata_of(pack_path: str | Path) -> Mapping[str, str]:
    """What a pack says of the headers of the weight files it restores (section 3.11)."""
    index = read_pack(pack_path)["index"]
    found: Mapping[str, str] = index.get("optional", {}).get("dpk.metadata", {}).get("", {})
    return found or {"format": "pt"}


def save_safetensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write one file."""
    names = {ours: theirs for theirs, ours in SAFETENSORS.items()}
    header: Json = {"__metadata__": dict(sorted(metadata.items()))}
    end = 0
    order = sorted(tensors, key=lambda name: (-itemsize(tensors[name][0]), name))  # so that each is aligned
    for name in order:
        dtype, shape, raw = tensors[name]
        header[name] = {"dtype": names.get(dtype) or dtype.partition(":")[2], "shape": list(shape), "data_offsets": [end, end + len(raw)]}
        end += len(raw)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(len(text).to_bytes(8, "little") + text + b"".join(tensors[name][2] for name in order))


def weight_of(text: str) -> float:
    """A weight from the command line."""
    try:
        return check_weight(float(text))
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description="Restore a checkpoint from its base and .dpk packs, added up in their order.")
    parser.add_argument("base", type=Path)
    parser.add_argument("pack", type=Path, nargs="+")
    parser.add_argument("out", type=Path)
    parser.add_argument("--weight", type=weight_of, action="append", help="once for all packs, or once for each")
    parser.add_argument("--prefer", type=int, help="number of the pack that decides, from 1")
    parser.add_argument("--factor", type=weight_of, default=None)
    args = parser.parse_args()
    count, weights = len(args.pack), args.weight or [1.0]
    if len(weights) not in (1, count) or not (args.prefer is None or 1 <= args.prefer <= count):
        parser.error(f"--weight goes with 1 or {count} numbers, --prefer with a number from 1 to {count}")
    weights = weights * count if len(weights) == 1 else weights
    prefer = None if args.prefer is None else args.prefer - 1
    try:
        base = load_safetensors(args.base)
        result = restore_several(args.pack, base, weights=weights, prefer=prefer, factor=args.factor)
    except (Invalid, Conflict) as error:
        print(f"{' '.join(map(str, args.pack))}: {error}", file=sys.stderr)
        return 3 if isinstance(error, Invalid) else 1
    stated = [metadata_of(pack) for pack in args.pack]
    same = all(other == stated[0] for other in stated)
    save_safetensors(args.out, result, stated[prefer or 0] if same or prefer is not None else {"format": "pt"})
    for pack in args.pack:
        print(f"{content_id(read_pack(pack)['index'])}  {pack}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
