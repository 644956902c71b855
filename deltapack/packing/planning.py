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
from deltapack.codecs.exact import encode_exact_chunk
from deltapack.codecs.exact_entry import padded_base
from deltapack.codecs.exact_tables import NO_TABLES, SharedTables
from deltapack.codecs.factors import Factors
from deltapack.codecs.indices import best_index
from deltapack.codecs.stored import encode_stored_chunk
from deltapack.errors import RecipeError
from deltapack.format.codecs import INDEX_CODECS, VALUE_CODECS
from deltapack.format.digest import CHUNK, TILE
from deltapack.format.index import BaseRef, Entry
from deltapack.kernels.buffers import Buffers
from deltapack.kernels.layout import Elements
from deltapack.packing.recipe import Recipe, TensorRecipe
from deltapack.sparsify import dare
from deltapack.sparsify.dare import ALL_KEPT
from deltapack.sparsify.kept import Sparsifier, TensorDelta
from deltapack.sparsify.table import SPARSIFIERS

__all__ = ["DeltaPlan", "PackPlan", "WholePlan", "exact_chunk", "identity_of", "plan_tensor", "plan_whole", "worth_coding"]

Read = Callable[[int, int], NDArray[np.float32]]
"""Returns differences [start, stop) of a tensor; they are valid until the thread reads again."""

_AUTO_ORDER = [row.name for row in reversed(list(VALUE_CODECS.values())) if row.auto]
_SAMPLE_TILES = 8
_TAILED = 10.0
"""Mean square of a vector's differences over their median square, up to which it counts; of a Gaussian it is 2.2."""
_SLIGHT, _WELL_BELOW = 64, 0.98
"""What must not change is coded where that is smaller than storing it by so many bytes, and to this share: fewer readers know the code."""
_NOISE_FLOOR = 1e-4
"""Relative squared error that is always allowed: 40 dB, what int8 reaches; below it `auto` would mean bf16 everywhere."""


@dataclass(frozen=True)
class DeltaPlan:
    """A tensor of the fine-tune that its partner in the base is subtracted from.

    Attributes:
        tensor: The tensor.
        base: Its partner.
        recipe: Its settings.
        codec: Codecs of its sparse term.
        key: Mask key.
        sparsifier: What chooses the kept elements by their differences; `None`: `key` alone does.
        spares_odd: Whether elements that are NaN or infinite in the base are never kept; positions are stored then.
        factors: A product that is added everywhere: the sparse term has of the differences what it leaves; none where there is none.
        residual: Whether there is a sparse term; there is always one unless there are factors.
    """

    tensor: TensorInfo
    base: TensorInfo
    recipe: TensorRecipe
    codec: TermCodec
    key: int
    sparsifier: Sparsifier | None = None
    spares_odd: bool = False
    factors: Factors | None = None
    residual: bool = True

    def sparing_odd(self) -> DeltaPlan:
        """Return the plan that keeps the same elements but for those that are NaN or infinite in the base, and has no factors."""
        index, shift = best_index(self.recipe.density)
        return replace(self, codec=replace(self.codec, index=index, shift=shift), spares_odd=True, factors=None, residual=True)

    @property
    def common(self) -> int:
        """Number of leading elements that base and fine-tune share."""
        return min(self.tensor.numel, self.base.numel)


@dataclass(frozen=True)
class WholePlan:
    """A tensor of the fine-tune of which nothing is lost.

    Attributes:
        tensor: The tensor.
        base: Its partner in the base, if any.
        exact: Whether its chunks are coded (spec/codecs/exact.md), and not stored.
        tables: What these may share.
    """

    tensor: TensorInfo
    base: TensorInfo | None
    exact: bool = True
    tables: SharedTables = NO_TABLES

    @property
    def entry(self) -> Entry:
        """Its entry, as far as its header tells."""
        base = self.base
        ref = None if base is None else BaseRef(base.name, base.dtype, base.shape, "", base.arranged)
        return Entry(self.tensor.name, "exact" if self.exact else "stored", self.tensor.dtype, self.tensor.shape, base=ref)

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
    role: str,
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
        role: Its role there, a name of `deltapack.packing.roles`.
        recipe: What the user asked for.
        identity: What `identity_of` gave.
        workers: Threads for ranking.

    Raises:
        RecipeError: The index codec does not fit the drop rate.
    """
    settings = recipe.for_tensor(name, role)
    tensor = finetuned.tensors[name]
    partner = base.tensors[base_name] if base_name is not None else None
    if partner is None or not _can_subtract(tensor, partner, settings):
        return plan_whole(base, finetuned, tensor, partner, recipe)
    key = dare.mask_key(recipe.seed, identity, name)
    index = _index_codec(settings)
    plan = DeltaPlan(tensor, partner, settings, TermCodec(index, "f32"), key)
    values = settings.values if settings.values != "auto" else _auto_values(base, finetuned, plan, recipe.noise_share)
    index, shift = best_index(settings.density) if index == "gaps" else (index, 0)
    plan = replace(plan, codec=TermCodec(index, values, shift))
    if settings.method.plan is None or settings.keep == ALL_KEPT:
        return plan
    row = tensor.shape[-1] if len(tensor.shape) > 1 else plan.common
    return replace(plan, sparsifier=settings.method.plan(_delta(_reader(base, finetuned, plan), plan.common, row, plan, workers)))


def plan_whole(base: Checkpoint, finetuned: Checkpoint, tensor: TensorInfo, partner: TensorInfo | None, recipe: Recipe) -> WholePlan:
    """Plan a tensor of which nothing is lost; reads its first chunk unless all is exact."""
    plan = WholePlan(tensor, partner)
    if recipe.exact is True or not tensor.numel:
        return replace(plan, exact=recipe.exact is True)
    stop = min(CHUNK, tensor.numel)
    elements = finetuned.read(tensor.name, 0, stop)
    before = np.zeros(0, tensor.dtype.storage) if partner is None else base.read(partner.name, 0, min(stop, partner.numel))
    return replace(plan, exact=worth_coding(plan.entry, before, elements))


def worth_coding(entry: Entry, before: Elements, elements: Elements) -> bool:
    """Whether a chunk gets smaller by coding it exactly than by storing it, by more than more readers are worth; arguments as below."""
    stored = sum(map(len, encode_stored_chunk(elements).streams))
    return len(exact_chunk(entry, before, elements)) + _SLIGHT < _WELL_BELOW * stored


def exact_chunk(entry: Entry, before: Elements, elements: Elements, tables: SharedTables = NO_TABLES) -> bytes:
    """Code the elements of a chunk exactly, after those of its base where that is a partner.

    Args:
        entry: The exact entry, with its base.
        before: Elements of the base at the places of the chunk.
        elements: Its elements.
        tables: That it may refer to.
    """
    partner = entry.partner
    start = None if partner is None else padded_base(before[: len(elements)], partner.dtype, entry.dtype, len(elements))
    return encode_exact_chunk(start, elements, entry.dtype, tables)


def _delta(read: Read, numel: int, row: int, plan: DeltaPlan, workers: int) -> TensorDelta:
    recipe = plan.recipe
    return TensorDelta(read, numel, row, recipe.density, plan.key, recipe.parameters, recipe.unbiased, workers)


def _reader(base: Checkpoint, finetuned: Checkpoint, plan: DeltaPlan) -> Read:
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
    drawn = recipe.index in INDEX_CODECS and INDEX_CODECS[recipe.index].kept == "random"
    if recipe.keep == ALL_KEPT:
        if drawn:
            raise RecipeError(f"index={recipe.index} needs a drop rate above 0", hint="Use --index auto.")
        return "all"
    if drawn and not recipe.method.random:
        expected = "sparsify=" + " or ".join(row.name for row in SPARSIFIERS.values() if row.random)
        hint = f"Positions that {recipe.sparsify} chooses are stored: use --index auto."
        raise RecipeError(f"index={recipe.index} is for masks at random", expected=expected, found=recipe.sparsify, hint=hint)
    if recipe.index == "auto":
        return "seeded" if recipe.method.random else "gaps"
    return recipe.index


def _auto_values(base: Checkpoint, finetuned: Checkpoint, plan: DeltaPlan, fidelity: float) -> str:
    """Return the smallest value codec whose noise is within `fidelity` times the noise of dropping.

    Dropping with rate p and rescaling adds p/(1-p) of the delta's power as noise; coding the kept values with a relative squared
    error e adds e/(1-p). So the rule is e <= fidelity * p. The error is that of scales of gain 1, as what comes back is: for coarse codes
    it is larger than the least squared error, and the least is not what a user gets.
    """
    kept, counts = _sample(base, finetuned, plan)
    squares = np.square(kept, dtype=np.float64)
    power = float(squares.sum())
    if power == 0 or not np.isfinite(power):
        return _AUTO_ORDER[0] if power == 0 else "f32"
    drop_rate = 1 - plan.recipe.density
    allowed = max(fidelity * drop_rate, _NOISE_FLOOR)
    if plan.recipe.role == "vector":
        # Each of its elements counts: a few that change much must not make the others' changes a matter of rounding.
        power = min(power, _TAILED * float(np.median(squares)) * len(squares))
    for values in _AUTO_ORDER[:-1]:
        _, seen = encode_term_chunk(TermCodec("all", values), np.zeros(0, np.uint32), kept, counts, 0, np.float32(1))
        noise = float(np.square(seen.values - kept, dtype=np.float64).sum())
        if noise <= allowed * power:
            return values
    return _AUTO_ORDER[-1]


def _sample(base: Checkpoint, finetuned: Checkpoint, plan: DeltaPlan) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Return kept differences of a few tiles spread over the tensor, and their count in each tile."""
    tiles, read = -(-plan.common // TILE), _reader(base, finetuned, plan)
    chosen = np.unique(np.linspace(0, tiles - 1, min(tiles, _SAMPLE_TILES)).astype(int))
    parts = [np.zeros(0, np.float32)]
    for tile in map(int, chosen):
        parts.append(_typical(read(tile * TILE, min((tile + 1) * TILE, plan.common)), plan))
    kept = [part for part in parts if len(part)]
    return np.concatenate(parts), np.array([len(part) for part in kept], np.int64)


def _typical(delta: NDArray[np.float32], plan: DeltaPlan) -> NDArray[np.float32]:
    """Return differences like those that would be kept of a tile, as a new array."""
    recipe, method = plan.recipe, plan.recipe.method
    if method.plan is None or method.by_chance or recipe.keep == ALL_KEPT:
        # The tile's own mask costs a walk over its whole chunk; any fixed sample of the same size serves here.
        return delta[:: max(1, min(ALL_KEPT // recipe.keep, len(delta)))].copy()
    tile = _delta(lambda start, stop: delta[start:stop], len(delta), len(delta), plan, workers=1)
    return method.plan(tile).select(0, delta).values
