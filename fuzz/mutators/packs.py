"""Packs changed in their index, in their blobs, and in how these stand in the file; then made to fit again, mostly."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from random import Random
from typing import Any

import zstandard

from fuzz.digests import settle_digests, settle_files
from fuzz.mutators.streams import INTERESTING, changed_bytes, changed_frame, changed_number
from fuzz.mutators.values import changed_text, changed_value
from fuzz.packfile import Blob, Chunk, Document, put_together, refs_of, settle_totals, take_apart

__all__ = ["PARTS", "changed_pack"]

PARTS = ("index", "blobs", "terms", "file")
"""What of a pack may be changed: anything the index says; bytes of blobs; what terms say of their streams; the file as bytes."""

_WORDS = (
    *("delta", "unchanged", "grown", "shrunk", "stored", "exact", "removed", "alias"),
    *("seeded", "stratified", "gaps", "bitmap", "all", "int8", "int4", "int3", "int2", "sign", "ternary", "uniform", "factors"),
    *("f64", "f32", "f16", "bf16", "f8_e4m3fn", "f8_e5m2", "f8_e8m0fnu", "c64", "i64", "i32", "i8", "u8", "bool", "raw4:F4", "raw1:X", "raw999:Y"),
    *("tensor", "rows", "outer", "arranged", "containers", "files.base", "folders", "raw-types", "scales", "name", "shape", "dtype", "kind"),
    *("grid", "pieces", "transposed", "terms", "digests", "stats", "optional", "dpk.metadata", "lines", "scale", "keep", "key", "shift", "of"),
    *("00000000", "7f800000", "7fc00000", "ff7fffff", "80000000", "00000001", "3f800000", "0" * 16, "f" * 16, "e" * 32, "w", "x", "old", "new"),
)


def changed_pack(data: bytes, rng: Random, parts: tuple[str, ...], base: Any = None, files: Mapping[str, bytes] | None = None) -> bytes:
    """Return a pack that differs from this one.

    Args:
        data: A pack; what is none is changed as bytes.
        rng: Where chance comes from.
        parts: Which of `PARTS` may be changed.
        base: Tensors of its base, so that digests can be made to fit; without them they stay.
        files: Side files of its base, likewise.
    """
    document = take_apart(data)
    if document is None or ("file" in parts and rng.random() < 0.04):
        return changed_bytes(data, rng)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        _CHANGES[rng.choice(parts)](document, rng)
    if rng.random() < 0.9:
        _leniently(settle_totals, document.index)
    if base is not None and rng.random() < 0.75:
        _leniently(settle_digests, document, base)
    if rng.random() < 0.9:
        _leniently(settle_files, document.index, files or {})
    return put_together(document)


def _leniently(settle: Callable[..., None], *args: Any) -> None:
    """Make a pack fit as far as that goes: what the decoder of the specification makes of an index that it did not check is no matter here."""
    with suppress(Exception):
        settle(*args)


def _blobs(document: Document) -> list[tuple[Any, Any, str, Blob]]:
    found = []
    for holder, key, use in refs_of(document.index):
        blob = holder[key] if isinstance(holder, list) else holder.get(key)
        if isinstance(blob, Blob):
            found.append((holder, key, use, blob))
    return found


def _change_index(document: Document, rng: Random) -> None:
    document.index = changed_value(document.index, rng, _WORDS)


def _change_blobs(document: Document, rng: Random) -> None:
    blobs = _blobs(document)
    if not blobs:
        return
    holder, key, _, blob = rng.choice(blobs)
    other = rng.choice(blobs)[3]
    if rng.random() < 0.03:
        holder[key] = copy.deepcopy(other)
    elif rng.random() < 0.03:
        blob.spoilt = 1
    elif rng.random() < 0.04:
        blob.shift = rng.choice(((8, 0), (-8, 0), (0, 1), (0, -1), (1 << 60, 0), (0, 1 << 60), (rng.choice(INTERESTING), 0)))
    elif blob.chunks is None:
        blob.data = changed_frame(blob.data, rng, other.data)
    elif blob.chunks:
        _change_chunk(rng.choice(blob.chunks), rng, [chunk for one in (blob, other) for chunk in one.chunks or []])
    else:
        blob.chunks = [Chunk([(b"", 0)], [])]


def _change_chunk(chunk: Chunk, rng: Random, others: list[Chunk]) -> None:
    """Change streams of a chunk, mostly what they hold; or the lengths and counts that the table says."""
    way = rng.randrange(12)
    if way == 0 and chunk.counts:
        tile = rng.randrange(len(chunk.counts))
        chunk.counts[tile] = changed_number(chunk.counts[tile], rng)
        return
    if way == 1 and len(chunk.counts) > 1:
        one, two = rng.sample(range(len(chunk.counts)), 2)
        step = min(chunk.counts[one], rng.choice((1, 1, 7, 1000)))
        chunk.counts[one] -= step
        chunk.counts[two] += step
        return
    if not chunk.streams:
        return
    number = rng.randrange(len(chunk.streams))
    stored, raw_length = chunk.streams[number]
    if way == 2:
        chunk.streams[number] = stored, changed_number(raw_length, rng)
        return
    streams = [stream[0] for other in others for stream in other.streams]
    other = rng.choice(streams) if streams else b""
    if way == 3:
        chunk.streams[number] = rng.choice([stream for one in others for stream in one.streams])
        return
    raw = _raw(stored, raw_length)
    changed = changed_bytes(raw, rng, other) if way < 10 else changed_frame(stored, rng, other)
    keeps_length = rng.random() < 0.7
    if way < 10 and keeps_length:
        changed = changed[:raw_length].ljust(min(raw_length, 1 << 18), rng.choice((b"\0", b"\xff", b"\x80")))
    if way >= 10:
        chunk.streams[number] = changed, rng.choice((raw_length, len(changed)))
        return
    frame = zstandard.ZstdCompressor(level=1).compress(changed) if changed and rng.random() < 0.3 else changed
    chunk.streams[number] = (frame if len(frame) < len(changed) else changed), len(changed)
    if chunk.counts and rng.random() < 0.1:
        chunk.counts[rng.randrange(len(chunk.counts))] += rng.choice((-1, 1))


def _raw(stored: bytes, raw_length: int) -> bytes:
    if len(stored) == raw_length or not 0 < raw_length <= 1 << 22:
        return stored
    try:
        return zstandard.ZstdDecompressor().decompress(stored, max_output_size=raw_length)
    except zstandard.ZstdError:
        return stored


def _change_terms(document: Document, rng: Random) -> None:
    """Give a term another codec, shift, key, factor or scale; or an entry another type or shape that has as many elements or nearly."""
    index = document.index
    entries = index.get("tensors") if isinstance(index, dict) else None
    entries = [entry for entry in entries or [] if isinstance(entry, dict)] if isinstance(entries, list) else []
    if not entries:
        return
    entry = rng.choice(entries)
    terms = entry.get("terms")
    if not (isinstance(terms, list) and terms and isinstance(terms[0], dict)) or rng.random() < 0.15:
        _change_shape(entry, rng)
        return
    term = rng.choice([term for term in terms if isinstance(term, dict)])
    choices = {
        "index": ("seeded", "stratified", "gaps", "bitmap", "all"),
        "values": ("f32", "bf16", "f16", "int8", "int4", "int3", "int2", "sign", "ternary", "uniform", "factors"),
        "factor": ("00000000", "80000000", "3f800000", "7f7fffff", "ff7fffff", "00000001", "7f800000", "7fc00000", "41200000"),
        "scale": ("00000000", "3f800000", "7f7fffff", "00800000", "00000001", "7f800000"),
        "scales": ("tensor", "rows", "outer"),
        "key": ("0" * 16, "f" * 16, "0123456789abcdef", f"{rng.getrandbits(64):016x}"),
    }
    key = rng.choice([key for key in term if key != "blob"] or ["index"])
    if key in choices:
        term[key] = rng.choice(choices[key])
        if key == "index" and rng.random() < 0.8:
            _fit_parameters(term, rng)
    elif isinstance(term.get(key), int):
        term[key] = rng.choice((changed_number(term[key], rng), rng.randrange(17)))
    if rng.random() < 0.1:
        terms.insert(rng.randrange(len(terms) + 1), copy.deepcopy(rng.choice(terms)))


def _fit_parameters(term: dict[str, Any], rng: Random) -> None:
    wanted = {"seeded": ("keep", "key"), "stratified": ("keep", "key"), "gaps": ("shift",)}.get(term["index"], ())
    for name in ("keep", "key", "shift"):
        term.pop(name, None)
    given: dict[str, Any] = {"keep": rng.choice((1, 1 << 16, 1 << 30, (1 << 32) - 1)), "key": "0" * 16, "shift": rng.randrange(16)}
    term |= {name: given[name] for name in wanted}
    blob = term.get("blob")
    for chunk in (blob.chunks or []) if isinstance(blob, Blob) else []:
        has_index = len(chunk.streams) > 1
        if term["index"] not in ("gaps", "bitmap") and has_index:
            del chunk.streams[0]
        elif term["index"] in ("gaps", "bitmap") and not has_index:
            chunk.streams.insert(0, (bytes(8), 8))


def _change_shape(entry: dict[str, Any], rng: Random) -> None:
    shape = entry.get("shape")
    if isinstance(shape, list) and shape and rng.random() < 0.7:
        way = rng.randrange(5)
        if way == 0:
            shape.insert(rng.randrange(len(shape) + 1), 1)
        elif way == 1:
            shape.reverse()
        elif way == 2 and all(isinstance(size, int) for size in shape):
            entry["shape"] = [_product(shape)]
        else:
            at = rng.randrange(len(shape))
            shape[at] = changed_number(shape[at], rng) if isinstance(shape[at], int) else shape[at]
    elif "dtype" in entry:
        entry["dtype"] = rng.choice(_WORDS[21:38])


def _product(shape: list[int]) -> int:
    product = 1
    for size in shape:
        product *= size
    return product


def _change_file(document: Document, rng: Random) -> None:
    """Change what stands around index and blobs: fields of the prologue, the spelling of the index, its frame."""
    way = rng.randrange(3)
    if way == 0:
        name = rng.choice(("major", "minor", "flags", "file_length", "index_offset", "index_length", "index_raw_length"))
        document.fields[name] = rng.choice((*INTERESTING, rng.randrange(4096)))
        return
    written = take_apart(put_together(document))
    if written is None:
        return
    text = json.dumps(_without_blobs(document.index), sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode("utf-8", "surrogatepass")
    if way == 1:
        document.text = changed_text(text, rng, _WORDS)
    else:
        document.frame = changed_bytes(zstandard.ZstdCompressor(level=3).compress(text), rng)


def _without_blobs(value: Any) -> Any:
    if isinstance(value, Blob):
        return [64, len(value.stored()[0]), f"{value.stored()[1]:016x}"]
    if isinstance(value, dict):
        return {key: _without_blobs(item) for key, item in value.items()}
    return [_without_blobs(item) for item in value] if isinstance(value, list) else value


_CHANGES = {"index": _change_index, "blobs": _change_blobs, "terms": _change_terms, "file": _change_file}
