"""A base and a fine-tune of whole numbers, and what packs of them restore on every machine."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.numpy import save_file

from deltapack.packing.recipe import Recipe

__all__ = ["KNOWN", "Known", "digest_of", "write_pair"]

_SHAPES = {"layers.0.attn.weight": (96, 128), "layers.0.mlp.weight": (160, 96), "layers.0.norm.weight": (96,), "embed.weight": (300, 64)}
_MIXING = np.uint64(0x9E3779B97F4A7C15)


@dataclass(frozen=True)
class Known:
    """A recipe whose result is known.

    Attributes:
        name: For people.
        recipe: How the pair is packed; its masks and codes depend on no library's version.
        digest: SHA-256 of what the pack restores, as `digest_of` takes it.
    """

    name: str
    recipe: Recipe
    digest: str


def _drawn(size: int, key: int) -> NDArray[np.uint64]:
    """Return numbers at random, 64 bits each, the same everywhere."""
    numbers = (np.arange(size, dtype=np.uint64) + np.uint64(key << 32)) * _MIXING
    numbers ^= numbers >> np.uint64(29)
    numbers *= _MIXING
    return numbers ^ numbers >> np.uint64(32)


def _pair(dtype: str) -> tuple[dict[str, NDArray[Any]], dict[str, NDArray[Any]]]:
    """Return weights near 0.02 and the same with small steps added, by whole-number arithmetic on f32's bits."""
    base, tuned = {}, {}
    for key, (name, shape) in enumerate(_SHAPES.items()):
        size = int(np.prod(shape))
        bits = (_drawn(size, key) & np.uint64(0x807FE000) | np.uint64(0x3C800000)).astype(np.uint32)
        steps = (_drawn(size, key + 64) % np.uint64(15)).astype(np.int64) - 7
        moved = (bits.astype(np.int64) + (steps << 14)).astype(np.uint32)
        base[name], tuned[name] = (part.view(np.float32).reshape(shape).astype(dtype) for part in (bits, moved))
    return base, tuned


def write_pair(folder: Path, dtype: str) -> tuple[Path, Path]:
    """Write base and fine-tune as bare files of a numpy type and return their paths."""
    paths = folder / f"base-{dtype}.safetensors", folder / f"tuned-{dtype}.safetensors"
    for path, tensors in zip(paths, _pair(dtype), strict=True):
        save_file(tensors, path)
    return paths


def digest_of(path: Path) -> str:
    """Return the SHA-256 of the elements of a file's tensors, by name."""
    found = hashlib.sha256()
    with safe_open(path, "np") as tensors:
        names: Mapping[str, None] = dict.fromkeys(sorted(tensors.keys()))
        for name in names:
            found.update(np.ascontiguousarray(tensors.get_tensor(name)).tobytes())
    return found.hexdigest()


KNOWN = (
    Known("DARE in 4 bits", Recipe(drop_rate=0.9, values="int4"), "633728e064567d525b79f0b0fdeac119f4893208d9ab332ef2b331f58de48fc4"),
    Known(
        "signs at stored places",
        Recipe(drop_rate=0.75, values="sign", index="gaps"),
        "ad2c5de6bea069da4fd3c627c0f42cefabb75bd6ab3d10a18c4c260a28e3664d",
    ),
    Known(
        "the largest in 16 bits",
        Recipe(sparsify="magnitude", drop_rate=0.8, values="bf16"),
        "fb0b2526c9ee5223d640720c7cc46db40158098502ff11ff3af88e28eab93ecd",
    ),
)
