"""Packs of one base by every codec, every use case that reads a pack, and what they make of damage."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

import deltapack
from deltapack.errors import DeltapackError
from deltapack.format.codecs import VALUE_CODECS
from deltapack.packing.recipe import Recipe
from deltapack.virtual.folder import VirtualFolder
from fuzz.targets.vectors import PACK_NAME, seeds_of
from support.builders import TORCH, Model, Tensor, bytes_of, moved, random_tensor, read_folder, whole, write_folder
from support.factor_packs import factor_pack
from support.fixtures import as_weights

__all__ = ["Family", "families", "remove", "told", "vector_families"]

Outcome = dict[str, bytes]
Reader = Callable[["Family", Path, Path], Outcome]
_SHAPE, _SEEDS = (24, 20), (50, 90)
_INDICES = ("seeded", "stratified", "gaps", "bitmap")


@dataclass(frozen=True)
class Family:
    """A base, and two packs of two fine-tunes of it by the same recipe.

    Attributes:
        name: What codes them.
        base: The base.
        packs: The packs.
        tensors: The base's tensors.
        chain: Whether the second pack was made from what the first gives, and not from the base.
    """

    name: str
    base: Path
    packs: tuple[Path, Path]
    tensors: Model
    chain: bool = False

    @property
    def readers(self) -> Mapping[str, Reader]:
        """The use cases that read the first pack, where it is not damaged."""
        if self.chain:
            return {**_ALONE, **_OF_CHAINS}
        return {**_ALONE, **(_OF_SEVERAL if self.tensors and "grows" not in self.tensors else {})}


def _base(grown: bool) -> Model:
    """Tensors of one shape in two types, two that are stored, one that stays; where asked, one that grows and one that goes."""
    floats = {f"layer.{number}": random_tensor(number, _SHAPE, "bf16") for number in range(3)}
    floats |= {f"wide.{number}": random_tensor(10 + number, _SHAPE) for number in range(2)}
    base = floats | {f"ids.{number}": whole("i64", range(number, number + 20)) for number in range(2)} | {"same": whole("i32", [1, 2])}
    return base | ({"grows": random_tensor(3, (12, 8)), "goes": whole("u8", [1])} if grown else {})


def _tuned(base: Model, seed: int) -> Model:
    """A fine-tune; what is stored whole is the same in all of them, as packs that disagree on it are not merged."""
    tuned = {name: moved(tensor, seed + number) for number, (name, tensor) in enumerate(base.items()) if name[:5] in ("layer", "wide.")}
    stored = {f"ids.{number}": whole("i64", [2 * number + 7] * 19 + [3]) for number in range(2)}
    more = {"grows": random_tensor(3 + seed, (14, 8)), "new": random_tensor(seed, (9, 3), "f16")} if "grows" in base else {}
    return tuned | stored | {"same": base["same"]} | more


def _files(seed: int) -> dict[str, str]:
    return {"tokenizer.json": f'{{"a": {seed}}}' * 20, "vocab.txt": f"{seed} b c\n" * 9, "added.txt": f"{seed} d e\n" * 9}


def _recipes(tensors: Model) -> dict[str, Recipe]:
    """A recipe for each way to code values, each way to say where they are with some of them, and for exact tensors."""
    recipes: dict[str, Recipe] = {"exact": Recipe(exact=True), "budget": Recipe()}
    values = [name for name in VALUE_CODECS if name != "factors"]
    for number, (value, index) in enumerate([*zip(values, _INDICES * len(values), strict=False), *(("int4", index) for index in _INDICES)]):
        rate = (0.2, 0.6, 0.9)[number % 3]
        recipes[f"{index} {value}"] = Recipe(drop_rate=rate, values=value, index=index, overrides=as_weights(tensors))
    return recipes | {"all bf16": Recipe(drop_rate=0, values="bf16", overrides=as_weights(tensors))}


def families(folder: Path) -> Iterator[Family]:
    """Make packs by every codec, two of each; the names of some end in "grown", as they have tensors of every kind."""
    for place, ending in ((folder / "plain", ""), (folder / "grown", ", grown")):
        tensors = _base(bool(ending))
        place.mkdir()
        write_folder(place / "base", tensors, {"tokenizer.json": "{}"})
        for seed in _SEEDS:
            write_folder(place / f"tuned-{seed}", _tuned(tensors, seed), _files(seed))
        for name, recipe in _recipes(tensors).items():
            if not ending or name in ("exact", "budget", "all bf16", "gaps int4"):
                packs = []
                for seed in _SEEDS:
                    packs.append(place / f"{name.replace(' ', '-')}-{seed}.dpk")
                    deltapack.compress(place / "base", place / f"tuned-{seed}", packs[-1], recipe=recipe)
                yield Family(name + ending, place / "base", (packs[0], packs[1]), tensors)
    plain, chained = folder / "plain", folder / "chain-90.dpk"
    deltapack.compress(plain / "tuned-50", plain / "tuned-90", chained, recipe=Recipe(exact=True))
    yield Family("chain", plain / "base", (plain / "exact-50.dpk", chained), _base(False), True)
    yield _with_factors(folder / "factors", {name: tensor for name, tensor in _base(False).items() if name[:5] in ("layer", "wide.")})


def _with_factors(folder: Path, tensors: Model) -> Family:
    folder.mkdir()
    tuned = [(seed, {name: moved(tensor, seed) for name, tensor in tensors.items()}) for seed in _SEEDS]
    one, two = (factor_pack(folder, tensors, other, f"{seed}", residual=seed == _SEEDS[0]) for seed, other in tuned)
    return Family("factors", folder / "base.safetensors", (one, two), tensors)


# ------------------------------------------------------------------------------------------------------- use cases


def _to_torch(tensor: Tensor) -> torch.Tensor:
    if tensor.dtype not in TORCH:
        return torch.from_numpy(tensor.bits.copy())
    integer = {1: "u1", 2: "i2", 4: "i4", 8: "i8"}[tensor.bits.dtype.itemsize]
    return torch.from_numpy(tensor.bits.reshape(-1).view(integer).copy()).view(TORCH[tensor.dtype]).reshape(tensor.shape)


def _verify(family: Family, pack: Path, out: Path) -> Outcome:
    deltapack.verify(pack, workers=1)
    return {}


def _verify_with_base(family: Family, pack: Path, out: Path) -> Outcome:
    deltapack.verify(pack, family.base, workers=1)
    return {}


def _apply(family: Family, pack: Path, out: Path) -> Outcome:
    deltapack.apply(family.base, pack, out, workers=1)
    return read_folder(out)


def _apply_blindly(family: Family, pack: Path, out: Path) -> Outcome:
    deltapack.apply(family.base, pack, out, workers=1, verify=False)
    return read_folder(out)


def _merge(family: Family, pack: Path, out: Path) -> Outcome:
    deltapack.merge(family.base, [pack, family.packs[1]], out, weights=[0.5, 0.25], workers=1)
    return read_folder(out)


def _merge_packs(family: Family, pack: Path, out: Path) -> Outcome:
    out = out.with_suffix(".dpk")
    deltapack.merge(family.base, [pack, family.packs[1]], out, weights=[0.5, 0.25], workers=1)
    return {out.name: out.read_bytes()}


def _virtual(family: Family, pack: Path, out: Path) -> Outcome:
    with VirtualFolder(family.base, pack, workers=1) as folder:
        return {name: folder.read(name) for name in folder.names()}


def _live(family: Family, pack: Path, out: Path) -> Outcome:
    state = {name: _to_torch(tensor) for name, tensor in family.tensors.items()}
    live = deltapack.attach(state, backend="cpu", workers=1)
    try:
        live.activate(pack)
        return {name: bytes_of(tensor) for name, tensor in state.items()}
    finally:
        live.close()
        assert all(bytes_of(state[name]) == tensor.raw for name, tensor in family.tensors.items()), "the base is not back"


def _dense(family: Family, pack: Path, out: Path) -> Outcome:
    with deltapack.open_pack(pack) as opened:
        dense = {name: entry for name, entry in opened.items() if entry.kind not in ("removed", "alias", "exact", "unchanged")}
        return {name: np.asarray(entry.to_dense()).tobytes() for name, entry in dense.items()}


def _apply_chain(family: Family, pack: Path, out: Path) -> Outcome:
    deltapack.apply(family.base, [pack, family.packs[1]], out, workers=1)
    return read_folder(out)


def _squash(family: Family, pack: Path, out: Path) -> Outcome:
    out = out.with_suffix(".dpk")
    deltapack.squash([pack, family.packs[1]], out, workers=1)
    return {out.name: out.read_bytes()}


_ALONE: dict[str, Reader] = {
    "verify": _verify,
    "verify --base": _verify_with_base,
    "apply": _apply,
    "apply --no-verify": _apply_blindly,
    "virtual folder": _virtual,
    "to_dense": _dense,
}
_OF_SEVERAL: dict[str, Reader] = {"merge": _merge, "merge to a pack": _merge_packs, "live model": _live}
_OF_CHAINS: dict[str, Reader] = {"apply a chain": _apply_chain, "squash": _squash}
"""Each reads a pack of a family and returns what it gave; `out` is a name for its output."""


def remove(out: Path) -> None:
    """Remove the output of a use case."""
    shutil.rmtree(out, ignore_errors=True)
    out.with_suffix(".dpk").unlink(missing_ok=True)


def told(reader: str, family: Family, pack: Path, out: Path) -> Outcome | None:
    """Let a use case read a pack; return what it gave, or none where it raised an error of the package and left nothing."""
    try:
        found = family.readers[reader](family, pack, out)
    except DeltapackError:
        left: list[Any] = [path.name for path in out.parent.iterdir() if path.name.startswith((out.name, f".{out.name}"))]
        assert not left, f"{reader} left {left}"
        return None
    remove(out)
    return found


def vector_families(folder: Path) -> Iterator[Family]:
    """The vectors of the specification that can be verified, as families of one pack each."""
    folder.mkdir()
    for number, bundle in enumerate(seeds_of(folder)):
        place = folder / f"{number}"
        for name, content in bundle.items():
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            (place / name).write_bytes(content)
        try:
            deltapack.verify(place / PACK_NAME, workers=1)
        except DeltapackError:  # some can be opened, and say what is not so of their base
            continue
        yield Family(f"vector {number}", place / "base", (place / PACK_NAME, place / PACK_NAME), {})
