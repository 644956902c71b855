"""Packs: read alone, with their base, by the specification, with both loops."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import deltapack
from deltapack.format.reader import PackReader
from deltapack.kernels import reference as numpy_loops
from deltapack.packs.inspecting import inspect_pack
from fuzz.protocol import Finding, Scratch, Target, modules
from fuzz.spec import reference_decoder
from fuzz.targets.vectors import (
    PACK_NAME,
    Tensor,
    agree,
    by_spec,
    change,
    elements_declared,
    loops,
    packs_alone,
    seeds_of,
)

__all__ = ["INDEX", "PACK"]

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
    if not base.is_dir():
        return
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


INDEX = Target(
    "index",
    "prologue, frame and index of a pack",
    packs_alone,
    partial(change, ("index", "index", "terms", "file")),
    check_index,
    modules(
        "format",
        "arrangement base_fields blobs canonical codecs containers features fields fileparsing folders frames index parsing prologue reader"
        " termparsing terms",
    ),
    "inspect",
)
PACK = Target(
    "pack",
    "whole packs: open, look at, verify, apply, with both loops",
    partial(seeds_of, most=1 << 18),
    partial(change, ("index", "blobs", "blobs", "terms")),
    check_pack,
    ("deltapack.format", "deltapack.codecs", "deltapack.composing", "deltapack.restoring"),
    "verify",
)
