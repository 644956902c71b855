"""Is a path right? Its bits against the reference decoder of the specification, which shares no code with deltapack."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

import deltapack
from benchmarks.checkpoints import Family
from benchmarks.child import apply_once, read_state
from benchmarks.processes import run_verb
from benchmarks.results import progress
from benchmarks.speed.candidates import LOADED, WAYS, WORKERS
from benchmarks.speed.inputs import Bench, Setting, weights
from deltapack.checkpoint import open_checkpoint

__all__ = ["check_budget", "check_large", "check_setting", "decoder", "expected", "sample_names", "wrong_in_folder"]


@cache
def decoder() -> ModuleType:
    """Return the reference decoder of the specification as a module."""
    path = Path(__file__).parents[2] / "spec" / "reference_decoder.py"
    spec = importlib.util.spec_from_file_location("reference_decoder", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def expected(family: Family, packs: Sequence[Path], factors: Sequence[float], names: Sequence[str] = ()) -> dict[str, bytes]:
    """Return tensors of base + sum of factor * difference as the specification says; all of them, or those of some names."""
    spec, out = decoder(), {}
    opened = [spec.read_pack(path) for path in packs]
    entries = [{entry["name"]: entry for entry in pack["index"]["tensors"]} for pack in opened]
    with open_checkpoint(family.base) as base:
        for name in names or base.tensors:
            raw, common = base.read(name).tobytes(), base.tensors[name].numel
            acc, kept = np.zeros(common, np.float32), np.zeros(common, bool)
            for pack, by_name, factor in zip(opened, entries, factors, strict=True):
                _add_terms(spec, pack["data"], by_name[name], factor, acc, kept)
            spans = spec.spans(common, spec.CHUNK)
            out[name] = b"".join(spec.add_chunk(raw[2 * a : 2 * b], "bf16", "bf16", kept[a:b], acc[a:b]) for a, b in spans)
    return out


def _add_terms(
    spec: ModuleType, data: bytes, entry: Mapping[str, Any], factor: float, acc: NDArray[np.float32], kept: NDArray[np.bool_]
) -> None:
    for term in entry.get("terms", ()):
        own = np.float32(spec.f32_of_bits(term["factor"])) * np.float32(factor)
        for where, values in spec.term_addends(data, term, entry, own):
            acc[where] += values
            kept[where] = True


def wrong_in_folder(folder: Path, want: Mapping[str, bytes]) -> str:
    """Return which tensor of a folder is not as wanted; empty if all are."""
    with open_checkpoint(folder) as opened:
        return _wrong(lambda name: opened.read(name).tobytes(), want)


def _wrong(found: Callable[[str], bytes], want: Mapping[str, bytes]) -> str:
    wrong = [name for name, raw in want.items() if found(name) != raw]
    return f"{len(wrong)} of {len(want)} tensors differ from the reference, such as {wrong[0]}" if wrong else ""


@cache
def check_budget(small: Bench) -> str:
    """Compare a pack by the default budget with the one that plain numpy writes; return what is wrong, empty if nothing."""
    verb, plain = small.compress_by_budget(2), small.scratch / "budget-without-numba.dpk"
    assert verb.out is not None
    verb.prepare()
    verb.call()
    run_verb("compress", verb.arguments | {"out": str(plain), "force": True, "without_numba": True})
    return "" if verb.out.read_bytes() == plain.read_bytes() else "the pack differs from the one that plain numpy writes"


@cache
def check_setting(setting: Setting, small: Bench) -> Mapping[str, str]:
    """Compare everything that is done with one setting on a small checkpoint; return what is wrong by verb, empty if nothing.

    Compress: the same file as without numba, and the reference decoder, which checks every digest in it, restores it. Apply, merge,
    apply in memory: the bits of the reference decoder.
    """
    progress(f"checking {setting}")
    wrong: dict[str, str] = {}
    pack, plain = small.pack(setting), small.scratch / "without-numba.dpk"
    arguments = small.compress(setting, 2).arguments | {"out": str(plain), "force": True, "without_numba": True}
    run_verb("compress", arguments)
    if pack.read_bytes() != plain.read_bytes():
        wrong["compress"] = "the pack differs from the one that plain numpy writes"
    want = {name: tensor[2] for name, tensor in decoder().restore(pack, decoder().load_safetensors(small.base)).items()}
    for verb in (small.apply(setting, 2), small.merge(2, 2, setting)):
        verb.prepare()
        verb.call()
        assert verb.out is not None
        merged = verb.verb == "merge"
        bits = expected(small.family, small.packs(2, setting), weights(2)) if merged else want
        wrong[verb.verb] = wrong_in_folder(verb.out, bits)
    wrong["add_to"] = _wrong_in_memory(small, pack, want)
    return {verb: reason for verb, reason in wrong.items() if reason}


def _wrong_in_memory(bench: Bench, pack: Path, want: Mapping[str, bytes]) -> str:
    for way in WAYS:
        for workers in WORKERS:
            state = read_state(bench.base)
            apply_once(pack, state, workers, load=way.load, verify=way.verify)
            if wrong := _wrong(lambda name, state=state: state[name].tobytes(), want):  # type: ignore[misc]
                return wrong
    return ""


def sample_names(family: Family) -> tuple[str, ...]:
    """Return some tensors of every kind that the reference decoder gets through in seconds."""
    last = f"model.layers.{family.llama.layers - 1}.self_attn.v_proj.weight"
    first = (f"model.layers.0.self_attn.{name}_proj.weight" for name in "ko")
    return "model.norm.weight", *first, last


@cache
def check_large(bench: Bench, setting: Setting, verb: str, count: int = 1) -> str:
    """Compare an output at full size: all digests as deltapack checks them, and some tensors recomputed by the reference decoder.

    Args:
        bench: The checkpoints.
        setting: Of the packs.
        verb: compress, apply, add_to or merge.
        count: Packs of a merge.

    Returns:
        What is wrong; empty if nothing.
    """
    progress(f"checking {verb} of {setting}, {bench.family.nbytes / 1e9:.2f} GB")
    packs, out = tuple(bench.packs(count, setting)), bench.scratch / "checked"
    want = _recomputed(bench.family, packs, tuple(weights(count)) if verb == "merge" else (1.0,))
    if verb == "compress":
        deltapack.verify(packs[0], bench.base)  # raises
        entries = {entry["name"]: entry for entry in decoder().read_pack(packs[0])["index"]["tensors"]}
        digests = {name: decoder().tensor_digest("bf16", entries[name]["shape"], raw) for name, raw in want.items()}
        wrong = [name for name, digest in digests.items() if digest != entries[name]["digest"]]
        return f"the digest of {wrong[0]} differs from the reference" if wrong else ""
    if verb == "add_to":
        state = read_state(bench.base)
        apply_once(packs[0], state, 2, load=LOADED.load, verify=LOADED.verify)
        return _wrong(lambda name: state[name].tobytes(), want)
    if verb == "merge":
        deltapack.merge(bench.base, packs, out, weights=weights(count), force=True)
    elif not deltapack.apply(bench.base, packs[0], out, force=True).verified:
        return "not every digest was checked"
    return wrong_in_folder(out, want)


@cache
def _recomputed(family: Family, packs: tuple[Path, ...], factors: tuple[float, ...]) -> Mapping[str, bytes]:
    return expected(family, packs, factors, sample_names(family))
