"""Decide, from headers and a small sample of elements, how each tensor will be packed."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from deltapack import kernels
from deltapack.checkpoint import Checkpoint, TensorInfo
from deltapack.codecs.chunk import TermCodec, encode_term_chunk
from deltapack.codecs.indices import best_index
from deltapack.errors import RecipeError
from deltapack.format.digest import CHUNK, TILE, chunk_count
from deltapack.kernels.buffers import Buffers
from deltapack.packing.recipe import Recipe, TensorRecipe
from deltapack.sparsify import dare
from deltapack.sparsify.breadcrumbs import Breadcrumbs, count_outliers
from deltapack.sparsify.dare import ALL_KEPT
from deltapack.sparsify.della import Della
from deltapack.sparsify.kept import Sparsifier
from deltapack.sparsify.magnitude import Magnitude, count_kept
from deltapack.sparsify.ranking import Magnitudes, find_cuts, places_in_cut

__all__ = ["DeltaPlan", "PackPlan", "WholePlan", "identity_of", "plan_tensor"]

_AUTO_ORDER = ("int2", "int3", "int4", "int8", "bf16")
_SAMPLE_TILES = 8
_NOISE_FLOOR = 1e-4
"""Relative squared error that is always allowed: 40 dB, what int8 reaches; below it `auto` would mean bf16 everywhere."""


@dataclass(frozen=True)
class DeltaPlan:
    """A tensor of the fine-tune that its partner in the base is subtracted from.

    Attributes:
        tensor: The tensor.
        base: Its partner.
        recipe: Its settings.
        codec: Codecs of its term.
        key: Mask key.
        sparsifier: What chooses the kept elements by their differences; `None`: `key` alone does.
    """

    tensor: TensorInfo
    base: TensorInfo
    recipe: TensorRecipe
    codec: TermCodec
    key: int
    sparsifier: Sparsifier | None = None

    @property
    def common(self) -> int:
        """Number of leading elements that base and fine-tune share."""
        return min(self.tensor.numel, self.base.numel)


@dataclass(frozen=True)
class WholePlan:
    """A tensor of the fine-tune that is stored whole, unless it is that of the base.

    Attributes:
        tensor: The tensor.
        base: Its partner in the base, if any.
    """

    tensor: TensorInfo
    base: TensorInfo | None

    @property
    def twin(self) -> TensorInfo | None:
        """The partner, if it has the same type and shape, so that it may be equal."""
        base = self.base
        return base if base is not None and (base.dtype, base.shape) == (self.tensor.dtype, self.tensor.shape) else None


PackPlan = DeltaPlan | WholePlan
"""How one tensor of the fine-tune will be packed."""


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
    base: Checkpoint,
    finetuned: Checkpoint,
    base_name: str | None,
    name: str,
    recipe: Recipe,
    identity: str,
    workers: int = 1,
) -> PackPlan:
    """Plan one tensor; reads at most a few tiles of it, or two or three times all of it to rank its elements by magnitude.

    Args:
        base: The base checkpoint.
        finetuned: The fine-tuned checkpoint.
        base_name: Name of its partner in the base, if any.
        name: Name in the fine-tune.
        recipe: What the user asked for.
        identity: What `identity_of` gave.
        workers: Threads for ranking.

    Raises:
        RecipeError: The index codec does not fit the drop rate.
    """
    settings = recipe.for_tensor(name)
    tensor = finetuned.tensors[name]
    partner = base.tensors[base_name] if base_name is not None else None
    if partner is None or not _can_subtract(tensor, partner, settings):
        return WholePlan(tensor, partner)
    key = dare.mask_key(recipe.seed, identity, name)
    index = _index_codec(settings)
    plan = DeltaPlan(tensor, partner, settings, TermCodec(index, "f32"), key)
    values = settings.values if settings.values != "auto" else _auto_values(base, finetuned, plan, recipe.fidelity)
    index, shift = best_index(settings.keep / ALL_KEPT) if index == "gaps" else (index, 0)
    return replace(plan, codec=TermCodec(index, values, shift), sparsifier=_sparsifier(base, finetuned, plan, workers))


def _sparsifier(base: Checkpoint, finetuned: Checkpoint, plan: DeltaPlan, workers: int) -> Sparsifier | None:
    """Return what chooses the kept elements by their differences; rankings take streaming passes over both tensors."""
    settings, numel, read = plan.recipe, plan.common, _reader(base, finetuned, plan)
    if settings.sparsify == "dare" or settings.keep == ALL_KEPT:
        return None
    density = settings.keep / ALL_KEPT
    if settings.sparsify == "della":
        row = plan.tensor.shape[-1] if len(plan.tensor.shape) > 1 else numel
        return Della(density, settings.epsilon, plan.key, row, numel, read, settings.unbiased)
    count = count_kept(density, numel)
    outliers = count_outliers(settings.gamma, count, numel) if settings.sparsify == "breadcrumbs" else 0
    ranks = [count] if settings.sparsify == "magnitude" else [count + outliers, outliers]
    chunks = Magnitudes(
        chunk_count(numel), lambda chunk: read(chunk * CHUNK, min((chunk + 1) * CHUNK, numel)), lambda nonzero: ranks
    )
    (cuts,) = find_cuts([chunks], workers)
    return Magnitude(cuts[0]) if settings.sparsify == "magnitude" else Breadcrumbs(*cuts)


def _reader(base: Checkpoint, finetuned: Checkpoint, plan: DeltaPlan) -> Callable[[int, int], NDArray[np.float32]]:
    """Return a function that reads differences [start, stop); they are valid until the thread reads again."""
    source, buffers = plan.base, Buffers()

    def read(start: int, stop: int) -> NDArray[np.float32]:
        tuned = buffers.take("finetuned", plan.tensor.dtype.storage, stop - start)
        elements = buffers.take("base", source.dtype.storage, stop - start)
        finetuned.read_into(plan.tensor.name, start, tuned)
        base.read_into(source.name, start, elements)
        out: NDArray[np.float32] = buffers.take("difference", "<f4", stop - start).view(np.float32)
        return kernels.active().difference(elements, source.dtype, tuned, plan.tensor.dtype, out)

    return read


def _can_subtract(tensor: TensorInfo, partner: TensorInfo, recipe: TensorRecipe) -> bool:
    same = tensor.shape == partner.shape
    rows = len(tensor.shape) == len(partner.shape) >= 1 and tensor.shape[1:] == partner.shape[1:]
    floats = tensor.dtype.is_delta and partner.dtype.is_delta
    return floats and not recipe.whole and (same or (rows and min(tensor.numel, partner.numel) > 0))


def _index_codec(recipe: TensorRecipe) -> str:
    if recipe.keep == ALL_KEPT:
        if recipe.index == "seeded":
            raise RecipeError("index=seeded needs a drop rate above 0", hint="Use --index auto.")
        return "all"
    index = recipe.index
    if recipe.sparsify != "dare":
        if index == "seeded":
            hint = f"Positions that {recipe.sparsify} chooses are stored: use --index auto."
            raise RecipeError("index=seeded is for masks at random", expected="sparsify=dare", found=recipe.sparsify, hint=hint)
        index = "gaps" if index == "auto" else index
    return "seeded" if index == "auto" else index


def _auto_values(base: Checkpoint, finetuned: Checkpoint, plan: DeltaPlan, fidelity: float) -> str:
    """Return the smallest value codec whose noise is within `fidelity` times the noise of dropping.

    Dropping with rate p and rescaling adds p/(1-p) of the delta's power as noise; coding the kept values with a relative squared
    error e adds e/(1-p). So the rule is e <= fidelity * p.
    """
    kept, counts = _sample(base, finetuned, plan)
    power = float(np.square(kept, dtype=np.float64).sum())
    if power == 0 or not np.isfinite(power):
        return _AUTO_ORDER[0] if power == 0 else "f32"
    drop_rate = 1 - plan.recipe.keep / ALL_KEPT
    allowed = max(fidelity * drop_rate, _NOISE_FLOOR)
    for values in _AUTO_ORDER[:-1]:
        _, seen = encode_term_chunk(TermCodec("all", values), np.zeros(0, np.uint32), kept, counts, 0, np.float32(1))
        noise = float(np.square(seen - kept, dtype=np.float64).sum())
        if noise <= allowed * power:
            return values
    return _AUTO_ORDER[-1]


def _sample(
    base: Checkpoint, finetuned: Checkpoint, plan: DeltaPlan
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Return kept differences of a few tiles spread over the tensor, and their count in each tile."""
    tiles, read = -(-plan.common // TILE), _reader(base, finetuned, plan)
    chosen = np.unique(np.linspace(0, tiles - 1, min(tiles, _SAMPLE_TILES)).astype(int))
    parts = [np.zeros(0, np.float32)]
    for tile in map(int, chosen):
        parts.append(_typical(read(tile * TILE, min((tile + 1) * TILE, plan.common)), plan.recipe))
    kept = [part for part in parts if len(part)]
    return np.concatenate(parts), np.array([len(part) for part in kept], np.int64)


def _typical(delta: NDArray[np.float32], recipe: TensorRecipe) -> NDArray[np.float32]:
    """Return differences like those that would be kept of a tile, as a new array."""
    if recipe.sparsify in ("dare", "della") or recipe.keep == ALL_KEPT:
        # The tile's own mask costs a walk over its whole chunk; any fixed sample of the same size serves here.
        return delta[:: max(1, min(ALL_KEPT // recipe.keep, len(delta)))].copy()
    count = count_kept(recipe.keep / ALL_KEPT, len(delta))
    outliers = count_outliers(recipe.gamma, count, len(delta)) if recipe.sparsify == "breadcrumbs" else 0
    (cuts,) = find_cuts([Magnitudes(1, lambda chunk: delta, lambda nonzero: [count + outliers, outliers])], 1)
    return delta[places_in_cut(0, delta, *cuts)]
