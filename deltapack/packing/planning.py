"""Decide, from headers and a small sample of elements, how each tensor will be packed."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from deltapack import kernels
from deltapack.checkpoint import Checkpoint, TensorInfo
from deltapack.codecs.chunk import TermCodec
from deltapack.codecs.exact import encode_exact_chunk
from deltapack.codecs.exact_entry import padded_base
from deltapack.codecs.exact_tables import NO_TABLES, SharedTables
from deltapack.codecs.factors import Factors
from deltapack.codecs.indices import best_index
from deltapack.codecs.stored import encode_stored_chunk
from deltapack.errors import RecipeError
from deltapack.format.codecs import INDEX_CODECS, VALUE_CODECS
from deltapack.format.digest import CHUNK
from deltapack.format.index import BaseRef, Entry
from deltapack.kernels.buffers import Buffers
from deltapack.kernels.layout import Elements
from deltapack.packing.recipe import Recipe, TensorRecipe
from deltapack.packing.sampling import Read, Sample
from deltapack.sparsify import dare
from deltapack.sparsify.dare import ALL_KEPT
from deltapack.sparsify.kept import Sparsifier
from deltapack.sparsify.table import SPARSIFIERS

__all__ = ["DeltaPlan", "PackPlan", "WholePlan", "exact_chunk", "identity_of", "plan_tensor", "plan_whole", "worth_coding"]

_LEAST_STRATIFIED = INDEX_CODECS["stratified"].parameters[0].least
_WHOLE_VALUES = "int8"
"""How a weight is coded that a budget is for, where nothing is known of its difference: none was seen in a sample of it."""
_SLIGHT, _WELL_BELOW = 64, 0.98
"""What must not change is coded where that is smaller than storing it by so many bytes, and to this share: fewer readers know the code."""


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
        like: Name of the tensor that it equals on both sides, and whose plan this is; empty where it is its own.
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
    like: str = ""

    def sparing_odd(self) -> DeltaPlan:
        """Return the plan that keeps the same elements but for those that are NaN or infinite in the base, and has no factors."""
        index, shift = best_index(self.recipe.density)
        return replace(self, codec=replace(self.codec, index=index, shift=shift), spares_odd=True, factors=None, residual=True)

    def of(self, tensor: TensorInfo, base: TensorInfo) -> DeltaPlan:
        """Return the plan of a tensor that equals this one, as their partners do."""
        return replace(self, tensor=tensor, base=base, like=self.tensor.name)

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
        NonFiniteError: Differences are too large for the value codec.
        RecipeError: The index codec does not fit the drop rate.
    """
    settings = recipe.for_tensor(name, role)
    tensor = finetuned.tensors[name]
    partner = base.tensors[base_name] if base_name is not None else None
    if partner is None or not _can_subtract(tensor, partner, settings):
        return plan_whole(base, finetuned, tensor, partner, recipe)
    key = dare.mask_key(recipe.seed, identity, name)
    if settings.budgeted:  # all of it, unless its share of the budget says otherwise
        return DeltaPlan(tensor, partner, settings, TermCodec("all", _WHOLE_VALUES), key)
    index = _index_codec(settings)
    plan = DeltaPlan(tensor, partner, settings, TermCodec(index, "f32"), key)
    sample = Sample(_reader(base, finetuned, plan), plan.common, settings, key, name)
    values = settings.values if settings.values != "auto" else sample.auto_values(recipe.noise_share)
    coded = VALUE_CODECS[values]
    if index == "seeded" and settings.index == "auto" and coded.feature and settings.keep >= _LEAST_STRATIFIED:
        index = "stratified"  # the cheaper mask, for readers that have to be as new anyway
    index, shift = best_index(settings.density) if index == "gaps" else (index, 0)
    scaling = sample.scaling(values) if coded.scaled and not coded.grouped else None
    plan = replace(plan, codec=TermCodec(index, values, shift, scaling))
    if settings.method.plan is None or settings.keep == ALL_KEPT:
        return plan
    row = tensor.shape[-1] if len(tensor.shape) > 1 else plan.common
    return replace(plan, sparsifier=settings.method.plan(sample.whole(row, workers)))


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
    if recipe.index == "stratified" and recipe.keep < _LEAST_STRATIFIED:
        expected = f"a drop rate of at most {1 - _LEAST_STRATIFIED / ALL_KEPT:.5f}"
        raise RecipeError("index=stratified keeps one element of 65,536 at least", expected=expected, hint="Use --index auto.")
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
