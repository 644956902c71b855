"""Packs: read alone, with their base, by the specification, on every backend."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from random import Random
from typing import Any
from unittest import mock

import numpy as np

import deltapack
from deltapack.codecs.chunk import add_term_chunk, decode_term_chunk, term_chunks
from deltapack.codecs.stored import decode_stored, stored_chunks
from deltapack.dtypes import BY_NAME
from deltapack.errors import DeltapackError, FormatError
from deltapack.format.digest import CHUNK
from deltapack.format.reader import PackReader
from deltapack.kernels import reference as numpy_loops
from deltapack.packs.inspecting import inspect_pack
from fuzz.bundles import Bundle
from fuzz.mutators.packs import changed_pack
from fuzz.protocol import Finding, Scratch, Target
from fuzz.spec import ROOT, reference_decoder

__all__ = ["CODEC_TARGETS", "INDEX", "PACK", "base_of", "seeds_of", "vectors"]

VECTORS = ROOT / "tests" / "vectors"
_MOST_BASE = 1 << 21
PACK_NAME, BASE_NAME = "a.dpk", "base/model.safetensors"
Tensor = tuple[str, tuple[int, ...], bytes]


def _tensors(rows: dict[str, Any]) -> dict[str, Tensor]:
    return {n: (row["dtype"], tuple(row["shape"]), b"".join(bytes.fromhex(word) * times for word, times in row["data"])) for n, row in rows.items()}


def vectors(most: int = _MOST_BASE) -> Iterator[tuple[str, bytes, dict[str, Tensor]]]:
    """Valid vectors of the specification: name, pack, base; those whose base is larger than `most` bytes are left out."""
    for path in sorted(VECTORS.glob("v1-ok-*.dpk")):
        document = json.loads(path.with_suffix(".json").read_text("utf-8"))
        base = _tensors(document["base"])
        if sum(len(raw) for _, _, raw in base.values()) <= most and path.stat().st_size < 1 << 15:
            yield path.stem.removeprefix("v1-ok-"), path.read_bytes(), base


def base_bytes(base: dict[str, Tensor], folder: Path) -> bytes:
    """A base as a safetensors file."""
    reference_decoder().save_safetensors(folder / "base.safetensors", base, {})
    return (folder / "base.safetensors").read_bytes()


@contextmanager
def _base_files() -> Iterator[dict[str, bytes]]:
    document = json.loads((VECTORS / "base_files.json").read_text("utf-8"))
    yield {name: bytes.fromhex(text) for name, text in document["files"].items()}


def seeds_of(folder: Path, keep: Callable[[str, dict[str, Any]], bool] = lambda name, index: True, most: int = _MOST_BASE) -> Sequence[Bundle]:
    """Vectors with their bases as inputs, those of which `keep` says so from name and index."""
    found = []
    spec = reference_decoder()
    with _base_files() as files:
        for name, pack, base in vectors(most):
            index = spec.read_pack(VECTORS / f"v1-ok-{name}.dpk")["index"]
            if keep(name, index):
                bundle = {PACK_NAME: pack, BASE_NAME: base_bytes(base, folder)}
                if index["files"] is None or any(file.get("base") or "blob" not in file for file in index["files"]):
                    bundle |= {f"base/{file}": content for file, content in files.items()}
                found.append(bundle)
    return found


def base_of(bundle: Bundle) -> dict[str, Tensor] | None:
    """The base of an input; none where it cannot be read."""
    header_bytes = int.from_bytes(bundle[BASE_NAME][:8], "little")
    header = json.loads(bundle[BASE_NAME][8 : 8 + header_bytes])
    spec, start, tensors = reference_decoder(), 8 + header_bytes, {}
    for name, row in header.items():
        if name != "__metadata__":
            begin, end = row["data_offsets"]
            tensors[name] = spec.dtype_of_header(row, end - begin), tuple(row["shape"]), bundle[BASE_NAME][start + begin : start + end]
    return tensors


def packs_alone(folder: Path) -> Sequence[Bundle]:
    """Vectors without their bases."""
    return [{PACK_NAME: pack} for _, pack, _ in vectors()]


def change(parts: tuple[str, ...], bundle: Bundle, rng: Random) -> Bundle:
    """Change the pack of an input."""
    if BASE_NAME not in bundle:
        return {**bundle, PACK_NAME: changed_pack(bundle[PACK_NAME], rng, parts)}
    files = {name.removeprefix("base/"): content for name, content in bundle.items() if name.startswith("base/") and name != BASE_NAME}
    return {**bundle, PACK_NAME: changed_pack(bundle[PACK_NAME], rng, parts, base_of(bundle), files)}


def by_spec(act: Callable[[], Any]) -> tuple[str, Any]:
    """What the reference decoder does: "done" and a result, "refused" and the rule, or "unknown", where it has limits of its own."""
    spec = reference_decoder()
    try:
        with np.errstate(all="ignore"):
            return "done", act()
    except spec.Invalid as error:
        return "refused", error.rule
    except spec.Conflict:
        return "refused", "conflict"
    except (MemoryError, RecursionError, OverflowError, ValueError) as error:
        return "unknown", type(error).__name__


def agree(step: str, ours: bool, error: Any, said: str, rule: Any) -> None:
    """Both decoders accept, or both refuse.

    Raises:
        Finding: They do not.
    """
    if said == "unknown" or isinstance(error, deltapack.errors.LimitError):
        return
    if ours and said == "refused":
        raise Finding(f"{step}: accepted by the package, refused by the specification ({rule})")
    if not ours and said == "done":
        raise Finding(f"{step}: refused by the package ({error}), accepted by the specification")


def elements_declared(index: Any) -> int:
    """Elements that a pack speaks of, in its result and its base."""
    bases = sum(entry.base.numel for entry in index.entries if entry.base is not None)
    return int(sum(entry.numel for entry in index.entries if entry.in_result) + bases)


# ------------------------------------------------------------------------------------------------------------ index


def check_index(scratch: Scratch) -> None:
    """The package and the specification agree on whether a pack can be opened; what is open can be looked at."""
    path = scratch.inputs / PACK_NAME
    done, reader = scratch.attempt("open", lambda: PackReader(path))
    said, found = by_spec(lambda: reference_decoder().read_pack(path))
    agree("open", done, reader, said, found)
    if done:
        reader.close()
        scratch.attempt("inspect", lambda: repr(inspect_pack(path)))


# ----------------------------------------------------------------------------------------------------------- codecs


@contextmanager
def loops(module: Any) -> Iterator[None]:
    """Compute with one package of loops."""
    with mock.patch("deltapack.kernels.active", lambda: module):
        yield


def compiled() -> Any:
    """The compiled loops."""
    from deltapack.kernels import cpu

    return cpu


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


# ------------------------------------------------------------------------------------------------------ whole packs


def check_pack(scratch: Scratch) -> None:
    """A pack is opened, looked at, verified, applied: as the specification says, with both loops; what is refused leaves nothing."""
    path, base = scratch.inputs / PACK_NAME, scratch.inputs / "base"
    spec = reference_decoder()
    done, pack = scratch.attempt("open", lambda: deltapack.open_pack(path))
    said, rule = by_spec(lambda: spec.read_pack(path))
    agree("open", done, pack, said, rule)
    if not done:
        return
    with pack:
        if elements_declared(pack.index) > 1 << 22:
            scratch.note("open: large")
            scratch.attempt("inspect", lambda: repr(inspect_pack(path)))
            return
        folders = bool(pack.index.folders)
        scratch.attempt("inspect", lambda: repr(inspect_pack(path)))
        if scratch.folder.name:  # look at each entry, which checks no digest
            for entry in pack.values():
                if entry.kind not in ("removed", "alias"):
                    scratch.attempt(f"dense {entry.kind}", entry.to_dense)
    alone, why = scratch.attempt("verify", lambda: deltapack.verify(path, workers=1))
    said, rule = by_spec(lambda: spec.check_alone(path))
    agree("verify", alone, why, said, rule)
    tensors = spec.load_safetensors(base)
    with_base, why = scratch.attempt("verify base", lambda: deltapack.verify(path, base, workers=1))
    applied, error = scratch.attempt("apply", lambda: deltapack.apply(base, path, scratch.folder / "out", workers=1))
    if with_base != applied:
        raise Finding(f"verify with the base says {with_base} ({why}), apply {applied} ({error})")
    if with_base and not alone:
        raise Finding("verified with the base, refused without")
    said, found = by_spec(lambda: _restored_by_spec(path, base, tensors))
    agree("apply", applied, error, said, found)
    if applied:
        _compare(scratch.folder / "out", found if said == "done" else None, folders)
        with loops(numpy_loops):
            deltapack.apply(base, path, scratch.folder / "out2", workers=1)
        _same_folders(scratch.folder / "out", scratch.folder / "out2")
    elif (scratch.folder / "out").exists():
        raise Finding("apply failed and left its output")
    _check_weighted(scratch, path, base, tensors, folders)


def _restored_by_spec(path: Path, base: Path, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """All that the specification checks of a pack with its base, and the tensors."""
    spec = reference_decoder()
    spec.check_alone(path)
    found: dict[str, Tensor] = spec.restore(path, tensors)
    files = {file.name: file.read_bytes() for file in base.iterdir() if file.suffix != ".safetensors"}
    spec.restore_files(path, files)
    size = 8 + int.from_bytes((base / "model.safetensors").read_bytes()[:8], "little")
    spec.restore_containers(path, found, {"model.safetensors": (base / "model.safetensors").read_bytes()[:size]})
    return found


def _check_weighted(scratch: Scratch, path: Path, base: Path, tensors: dict[str, Tensor], folders: bool) -> None:
    """With a weight no digest of the result is compared, so that bits are."""
    spec = reference_decoder()
    out = scratch.folder / "half"
    done, error = scratch.attempt("apply 0.5", lambda: deltapack.apply(base, path, out, weight=0.5, workers=1))
    said, found = by_spec(lambda: spec.restore(path, tensors, weight=0.5))
    if done and said == "done":
        _compare(out, found, folders)
    elif done and said == "refused":
        agree("apply 0.5", done, error, said, found)
    if not done and out.exists():
        raise Finding("apply with a weight failed and left its output")
    if done:
        with loops(numpy_loops):
            deltapack.apply(base, path, scratch.folder / "half2", weight=0.5, workers=1)
        _same_folders(out, scratch.folder / "half2")


def _compare(out: Path, expected: dict[str, Tensor] | None, folders: bool) -> None:
    if expected is None:
        return
    found = reference_decoder().load_safetensors(out)
    wanted = {name: (dtype, tuple(shape), bytes(raw)) for name, (dtype, shape, raw) in expected.items()}
    if {name: (dtype, tuple(shape), bytes(raw)) for name, (dtype, shape, raw) in found.items()} != wanted:
        names = [name for name in sorted({*found, *wanted}) if found.get(name) != wanted.get(name)]
        raise Finding(f"apply restores other tensors than the specification: {names[:3]}")


def _same_folders(one: Path, two: Path) -> None:
    first, second = ({path.relative_to(root): path.read_bytes() for path in root.rglob("*") if path.is_file()} for root in (one, two))
    if first != second:
        raise Finding("numpy and numba restore other bytes")


def _features(index: dict[str, Any]) -> set[str]:
    terms = [term for entry in index["tensors"] for term in entry.get("terms", ())]
    return {term[key] for term in terms for key in ("index", "values", "scales") if key in term} | {e["kind"] for e in index["tensors"]}


def _with(*wanted: str) -> Callable[[Path], Sequence[Bundle]]:
    return lambda folder: seeds_of(folder, lambda name, index: bool(_features(index) & set(wanted)))


def _codec(name: str, about: str, *wanted: str) -> Target:
    rooms = ("deltapack.codecs", "deltapack.kernels.reference", "deltapack.format.table", "deltapack.format.frames")
    return Target(f"codec-{name}", about, _with(*wanted), partial(change, ("blobs", "blobs", "terms")), check_chunks, rooms, "decode")


INDEX = Target(
    "index", "prologue, frame and index of a pack", packs_alone, partial(change, ("index", "index", "terms", "file")), check_index,
    ("deltapack.format",), "inspect",
)  # fmt: skip
PACK = Target(
    "pack", "whole packs: open, look at, verify, apply, with both loops", partial(seeds_of, most=1 << 18),
    partial(change, ("index", "blobs", "blobs", "terms")), check_pack,
    ("deltapack.format", "deltapack.codecs", "deltapack.composing", "deltapack.restoring"), "verify",
)  # fmt: skip
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
)  # fmt: skip
