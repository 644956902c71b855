"""Chunks of packs, codec by codec: both loops against the specification's decoder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from deltapack.codecs.chunk import add_term_chunk, decode_term_chunk, term_chunks
from deltapack.codecs.stored import decode_stored, stored_chunks
from deltapack.format.digest import CHUNK
from deltapack.format.reader import PackReader
from deltapack.kernels import reference as numpy_loops
from fuzz.bundles import Bundle
from fuzz.protocol import Finding, Scratch, Target, modules
from fuzz.spec import reference_decoder
from fuzz.targets.vectors import (
    PACK_NAME,
    agree,
    by_spec,
    change,
    compiled,
    elements_declared,
    loops,
    seeds_of,
)

__all__ = ["CODEC_TARGETS"]


def check_chunks(scratch: Scratch) -> None:
    """Chunks of every entry decode alike in numpy and numba, and as the specification says, or are refused alike."""
    path = scratch.inputs / PACK_NAME
    done, reader = scratch.attempt("open", lambda: PackReader(path))
    if not done:
        return
    with reader:
        if elements_declared(reader.index) > 1 << 22:
            scratch.note("open: large")
            return
        data = path.read_bytes()
        written = reference_decoder().read_pack(path)["index"]
        for entry, own in zip(reader.index.entries, written["tensors"], strict=True):
            for term, said in zip(entry.terms, own.get("terms", ()), strict=True):
                _check_term(scratch, reader, (entry, term), data, own, said)
            if entry.stored is not None:
                _check_stored(scratch, reader, entry, data, own)


def _check_term(scratch: Scratch, reader: PackReader, decoded: Any, data: bytes, own: Any, said: Any) -> None:
    entry, term = decoded
    factor = np.float32(term.factor)

    def decode() -> list[tuple[bytes, bytes]]:
        blob = term_chunks(reader, entry, term)
        parts = [decode_term_chunk(blob, term, chunk, factor) for chunk in range(blob.layout.chunks)]
        return [(part.positions.tobytes(), part.values.view(np.uint32).tobytes()) for part in parts]

    def add() -> bytes:
        blob, dtype = term_chunks(reader, entry, term), entry.dtype
        zeros = np.zeros(entry.common, dtype.storage)
        for chunk in range(blob.layout.chunks):
            piece, out = zeros[chunk * CHUNK : (chunk + 1) * CHUNK], buffers(blob.layout.chunk_length(chunk))
            add_term_chunk(blob, term, chunk, factor, piece, dtype, out)
        return zeros.tobytes()

    name = f"{term.index}/{term.values}"
    results = []
    for module in (numpy_loops, compiled()):
        with loops(module), np.errstate(all="ignore"):
            results.append((*scratch.attempt(f"decode {name}", decode), *scratch.attempt(f"add {name}", add)))
    (one, first, one_adds, sum_), (two, second, two_adds, other) = results
    if (one, one_adds) != (two, two_adds) or one != one_adds:
        raise Finding(f"{name}: refused by some ({one}, {one_adds}, {two}, {two_adds})\n{results}")
    if one and (first != second or sum_ != other):
        raise Finding(f"{name}: numpy and numba decode other bits")
    spec = reference_decoder()
    verdict, found = by_spec(lambda: list(spec.term_addends(data, said, own, np.float32(term.factor))))
    agree(f"decode {name}", one, first, verdict, found)
    if one and verdict == "done":
        _same_addends(name, first, found, term.values == "factors")


def buffers(length: int) -> Any:
    """Room for the elements of a chunk."""
    from deltapack.kernels.buffers import Buffers

    return Buffers().sparse(0, length)


def _same_addends(name: str, ours: list[tuple[bytes, bytes]], theirs: list[tuple[Any, Any]], at_once: bool) -> None:
    positions, values = [], []
    for number, (places, numbers) in enumerate(ours):
        positions.append(np.frombuffer(places, np.uint32).astype(np.int64) + number * CHUNK)
        values.append(np.frombuffer(numbers, np.uint32))
    where = [np.asarray(place, np.int64) for place, _ in theirs]
    bits = [np.asarray(value, np.float32).view(np.uint32) for _, value in theirs]
    found, expected = ([np.concatenate(part) if part else np.zeros(0) for part in pair] for pair in ((positions, values), (where, bits)))
    if not all(len(one) == len(two) and (one == two).all() for one, two in zip(found, expected, strict=True)):
        raise Finding(f"{name}: other bits than the specification's")


def _check_stored(scratch: Scratch, reader: PackReader, entry: Any, data: bytes, own: Any) -> None:
    def decode() -> bytes:
        stored = stored_chunks(reader, entry, entry.stored)
        return bytes(decode_stored(stored, entry.dtype).tobytes())

    done, found = scratch.attempt("decode stored", decode)
    spec = reference_decoder()
    verdict, expected = by_spec(lambda: spec.restore_stored(data, own, spec.common_numel(own)))
    agree("decode stored", done, found, verdict, expected)
    if done and verdict == "done" and found != expected:
        raise Finding("stored: other bytes than the specification's")


def _features(index: dict[str, Any]) -> set[str]:
    terms = [term for entry in index["tensors"] for term in entry.get("terms", ())]
    return {term[key] for term in terms for key in ("index", "values", "scales") if key in term} | {e["kind"] for e in index["tensors"]}


def _with(*wanted: str) -> Callable[[Path], Sequence[Bundle]]:
    return lambda folder: seeds_of(folder, lambda name, index: bool(_features(index) & set(wanted)))


def _codec(name: str, about: str, *wanted: str) -> Target:
    rooms = modules("codecs", "chunk factors indices levels planes scaling sources stored values") + modules("format", "frames table")
    rooms += modules("kernels.reference", "factors positions scaling strata trits values")
    return Target(f"codec-{name}", about, _with(*wanted), partial(change, ("blobs", "blobs", "terms")), check_chunks, rooms, "decode")


CODEC_TARGETS = (
    _codec("gaps", "positions as gaps", "gaps"),
    _codec("bitmap", "positions as bits", "bitmap"),
    _codec("masks", "positions that are drawn", "seeded", "stratified"),
    _codec("integers", "values of 1 to 8 bits with scales of groups", "int8", "int4", "int3", "int2", "sign"),
    _codec("floats", "values as byte planes", "f32", "bf16", "f16"),
    _codec("ternary", "values as trits", "ternary"),
    _codec("uniform", "values as levels, entropy coded", "uniform"),
    _codec("lines", "scales of rows and columns", "rows", "outer"),
    _codec("factors", "terms of low rank", "factors"),
    _codec("stored", "elements stored whole", "stored", "grown"),
)
