"""Several packs on one base: merged, against the specification."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

import deltapack
from deltapack.kernels import reference as numpy_loops
from fuzz.bundles import Bundle
from fuzz.mutators.packs import changed_pack
from fuzz.mutators.values import changed_value
from fuzz.protocol import Finding, Scratch, Target
from fuzz.spec import reference_decoder
from fuzz.targets.vectors import BASE_NAME, VECTORS, agree, base_bytes, base_of, by_spec, elements_declared, loops, tensors_of

__all__ = ["MERGE"]

_METHODS = (
    "linear",
    "linear",
    "linear",
    "ties",
    "dare_ties",
    "dare_linear",
    "task_arithmetic",
    "breadcrumbs",
    "della",
    "model_stock",
    "nonsense",
)


def seeds(folder: Path) -> Sequence[Bundle]:
    """The cases of the specification's vectors of several packs, some of each group."""
    found = []
    for path in sorted(VECTORS.glob("v1-several-*.json")):
        document = json.loads(path.read_text("utf-8"))
        base = base_bytes(tensors_of(document["base"]), folder)
        for row in list(document["cases"].values())[::3][:12]:
            bundle = {BASE_NAME: base}
            bundle |= {f"{number}.dpk": (VECTORS / name).read_bytes() for number, name in enumerate(row["packs"])}
            case = {"weights": list(map(float, row["weights"])), "prefer": row.get("prefer"), "method": "linear"}
            found.append(bundle | {"case.json": json.dumps(case).encode()})
    return found


def change(bundle: Bundle, rng: Random) -> Bundle:
    """Change a pack, mostly; or weights and the rest of the case."""
    names = [name for name in bundle if name.endswith(".dpk")]
    new = dict(bundle)
    if rng.random() < 0.15:
        case = json.loads(bundle["case.json"])
        if rng.random() < 0.5:
            case["method"] = rng.choice(_METHODS)
        else:
            case["weights"] = changed_value(case["weights"], rng)
        new["case.json"] = json.dumps(case).encode()
        return new
    name = rng.choice(names)
    base = base_of(bundle) if BASE_NAME in bundle else None
    new[name] = changed_pack(bundle[name], rng, ("index", "blobs", "terms"), base)
    return new


def check(scratch: Scratch) -> None:
    """Merged as the specification says, or refused alike; with both loops alike; nothing left of what is refused."""
    case = json.loads((scratch.inputs / "case.json").read_bytes())
    packs = sorted(scratch.inputs.glob("*.dpk"))
    base = scratch.inputs / "base"
    for path in packs:
        done, pack = scratch.attempt("open", deltapack.open_pack, path)
        if not done:
            return
        with pack:
            if elements_declared(pack.index) > 1 << 20:
                scratch.note("open: large")
                return
    prefer = case.get("prefer")
    prefer = packs[prefer] if isinstance(prefer, int) and 0 <= prefer < len(packs) else None
    options: dict[str, Any] = {"weights": case["weights"], "prefer": prefer, "method": case.get("method", "linear"), "workers": 1}
    done, error = scratch.attempt("merge", lambda: deltapack.merge(base, packs, scratch.folder / "out", **options))
    if not done and (scratch.folder / "out").exists():
        raise Finding("merge failed and left its output")
    with loops(numpy_loops):
        again, other = scratch.attempt("merge in numpy", lambda: deltapack.merge(base, packs, scratch.folder / "out2", **options))
    if done != again:
        raise Finding(f"numpy and numba differ: {error}, {other}")
    if done:
        compare(scratch.folder / "out", scratch.folder / "out2")
    if case.get("method") == "linear":
        _against_spec(scratch, packs, base, case, done, error)
    if done:
        scratch.attempt("merge packs", lambda: deltapack.merge(base, packs, scratch.folder / "out.dpk", **options))


def _against_spec(scratch: Scratch, packs: list[Path], base: Path, case: Any, done: bool, error: Any) -> None:
    spec = reference_decoder()
    weights = case["weights"]
    if not (isinstance(weights, list) and len(weights) == len(packs) and all(type(weight) is float for weight in weights)):
        return
    tensors = spec.load_safetensors(base)
    said, found = by_spec(lambda: spec.restore_several(packs, tensors, weights=weights, prefer=case.get("prefer")))
    if done:
        agree("merge", done, error, said, found)
        if said == "done":
            restored = {name: tuple(map(bytes_or, tensor)) for name, tensor in spec.load_safetensors(scratch.folder / "out").items()}
            if restored != {name: tuple(map(bytes_or, tensor)) for name, tensor in found.items()}:
                raise Finding("merge restores other tensors than the specification")


def bytes_or(value: Any) -> Any:
    """Parts of a tensor in a form that can be compared."""
    return tuple(value) if isinstance(value, (list, tuple)) else bytes(value) if isinstance(value, (bytearray, memoryview)) else value


def compare(one: Path, two: Path) -> None:
    """Two folders hold the same.

    Raises:
        Finding: They do not.
    """
    first, second = ({path.relative_to(root): path.read_bytes() for path in root.rglob("*") if path.is_file()} for root in (one, two))
    cards = [path for path in first if path.name in ("README.md", "deltapack.json")]
    for card in cards:
        first.pop(card), second.pop(card, None)
    if first != second:
        raise Finding("numpy and numba give other bytes")


MERGE = Target(
    "merge",
    "several packs merged, by the specification and in both loops",
    seeds,
    change,
    check,
    ("deltapack.merging", "deltapack.composing"),
    "merge",
)
