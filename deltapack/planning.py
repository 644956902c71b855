"""Decide, from headers and a small sample of elements, how each tensor will be packed."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from deltapack import kernels
from deltapack.checkpoint import Checkpoint, TensorInfo
from deltapack.codecs.chunk import TermCodec, encode_term_chunk
from deltapack.codecs.indices import best_shift
from deltapack.errors import RecipeError
from deltapack.format.digest import TILE
from deltapack.recipe import Recipe, TensorRecipe
from deltapack.sparsify import dare

__all__ = ["TensorPlan", "identity_of", "plan_tensor"]

_AUTO_ORDER = ("int2", "int3", "int4", "int8", "bf16")
_SAMPLE_TILES = 8
_NO_CODEC = TermCodec("all", "f32")
_DENSE = 0.385
"""Above this density the best code for gaps is unary: as many zeros as the gap, then a one. That is the bitmap."""
_NOISE_FLOOR = 1e-4
"""Relative squared error that is always allowed: 40 dB, what int8 reaches; below it `auto` would mean bf16 everywhere."""


@dataclass(frozen=True)
class TensorPlan:
    """One tensor of the fine-tune.

    Attributes:
        tensor: The tensor.
        base: Its partner in the base, if any.
        route: `"delta"` (subtract and drop), `"compare"` (store whole unless equal to the base) or `"store"`.
        recipe: Its settings.
        codec: Codecs of its term; only for `"delta"`.
        key: Mask key; only for `"delta"`.
    """

    tensor: TensorInfo
    base: TensorInfo | None
    route: str
    recipe: TensorRecipe
    codec: TermCodec = _NO_CODEC
    key: int = 0

    @property
    def common(self) -> int:
        """Number of leading elements that base and fine-tune share."""
        return min(self.tensor.numel, self.base.numel) if self.base is not None and self.route == "delta" else 0


def identity_of(finetuned: Checkpoint) -> str:
    """Return a digest of the fine-tune's header and of a fixed sample of its bytes.

    It only has to differ between fine-tunes, so that their masks do; a full digest would need a second pass over the file.
    """
    sha = hashlib.sha256()
    for name, tensor in finetuned.tensors.items():
        sha.update(f"{name}\0{tensor.dtype.name}\0{tensor.shape}\n".encode())
        for start in sorted({0, tensor.numel // 2, max(0, tensor.numel - 32)}):
            sha.update(finetuned.read(name, start, min(start + 32, tensor.numel)).tobytes())
    return sha.hexdigest()


def plan_tensor(
    base: Checkpoint, finetuned: Checkpoint, base_name: str | None, name: str, recipe: Recipe, identity: str
) -> TensorPlan:
    """Plan one tensor; reads at most a few tiles of it.

    Args:
        base: The base checkpoint.
        finetuned: The fine-tuned checkpoint.
        base_name: Name of its partner in the base, if any.
        name: Name in the fine-tune.
        recipe: What the user asked for.
        identity: What `identity_of` gave.

    Raises:
        RecipeError: The index codec does not fit the drop rate.
    """
    settings = recipe.for_tensor(name)
    tensor = finetuned.tensors[name]
    partner = base.tensors[base_name] if base_name is not None else None
    route = _route(tensor, partner, settings)
    if route != "delta" or partner is None:
        return TensorPlan(tensor, partner, route, settings)
    key = dare.mask_key(recipe.seed, identity, name)
    index = _index_codec(settings)
    plan = TensorPlan(tensor, partner, route, settings, TermCodec(index, "f32"), key)
    values = settings.values if settings.values != "auto" else _auto_values(base, finetuned, plan, recipe.fidelity)
    shift = best_shift(settings.keep / dare.ALL_KEPT) if index == "gaps" else 0
    return replace(plan, codec=TermCodec(index, values, shift))


def _route(tensor: TensorInfo, partner: TensorInfo | None, recipe: TensorRecipe) -> str:
    if partner is None:
        return "store"
    same = tensor.shape == partner.shape
    rows = len(tensor.shape) == len(partner.shape) >= 1 and tensor.shape[1:] == partner.shape[1:]
    floats = tensor.dtype.is_delta and partner.dtype.is_delta
    if floats and not recipe.whole and (same or (rows and min(tensor.numel, partner.numel) > 0)):
        return "delta"
    return "compare" if same and tensor.dtype == partner.dtype else "store"


def _index_codec(recipe: TensorRecipe) -> str:
    if recipe.keep == dare.ALL_KEPT:
        if recipe.index == "seeded":
            raise RecipeError("index=seeded needs a drop rate above 0", hint="Use --index auto.")
        return "all"
    if recipe.index == "gaps" and recipe.keep > _DENSE * dare.ALL_KEPT:
        return "bitmap"
    return "seeded" if recipe.index == "auto" else recipe.index


def _auto_values(base: Checkpoint, finetuned: Checkpoint, plan: TensorPlan, fidelity: float) -> str:
    """Return the smallest value codec whose noise is within `fidelity` times the noise of dropping.

    Dropping with rate p and rescaling adds p/(1-p) of the delta's power as noise; coding the kept values with a relative squared
    error e adds e/(1-p). So the rule is e <= fidelity * p.
    """
    kept, counts = _sample(base, finetuned, plan)
    power = float(np.square(kept, dtype=np.float64).sum())
    if power == 0 or not np.isfinite(power):
        return _AUTO_ORDER[0] if power == 0 else "f32"
    drop_rate = 1 - plan.recipe.keep / dare.ALL_KEPT
    allowed = max(fidelity * drop_rate, _NOISE_FLOOR)
    for values in _AUTO_ORDER[:-1]:
        _, seen = encode_term_chunk(TermCodec("all", values), np.zeros(0, np.uint32), kept, counts, 0, np.float32(1))
        noise = float(np.square(seen - kept, dtype=np.float64).sum())
        if noise <= allowed * power:
            return values
    return _AUTO_ORDER[-1]


def _sample(
    base: Checkpoint, finetuned: Checkpoint, plan: TensorPlan
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Return kept differences of a few tiles spread over the tensor, and their count in each tile."""
    assert plan.base is not None
    tiles = -(-plan.common // TILE)
    chosen = np.unique(np.linspace(0, tiles - 1, min(tiles, _SAMPLE_TILES)).astype(int))
    parts = [np.zeros(0, np.float32)]
    for tile in map(int, chosen):
        start, stop = tile * TILE, min((tile + 1) * TILE, plan.common)
        tuned = finetuned.read(plan.tensor.name, start, stop)
        elements = base.read(plan.base.name, start, stop)
        delta = kernels.active().difference(elements, plan.base.dtype, tuned, plan.tensor.dtype)
        # The tile's own mask costs a walk over its whole chunk; any fixed sample of the same size serves here.
        stride = max(1, min(dare.ALL_KEPT // plan.recipe.keep, len(delta)))
        parts.append(delta[::stride])
    kept = [part for part in parts if len(part)]
    return np.concatenate(parts), np.array([len(part) for part in kept], np.int64)
