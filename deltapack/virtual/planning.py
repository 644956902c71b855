"""From a base and packs to files that are known by name, size and head: what `apply` or `merge` would write, and nothing of it decoded."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

from deltapack.checkpoint import Checkpoint, Head, Shard, SideFile, open_checkpoint
from deltapack.checkpoint.heads import new_head, new_indices
from deltapack.composing.arranged import arranged_base
from deltapack.composing.assets import copy_side_files, with_dtype
from deltapack.composing.chain import in_order, open_links, restored_from
from deltapack.composing.compose import Composition, compose
from deltapack.composing.metadata import result_metadata
from deltapack.composing.tensor_job import TensorJob
from deltapack.composing.weighted import WeightedPack
from deltapack.dtypes import DType, float_dtype
from deltapack.errors import CheckpointError, RecipeError
from deltapack.format.reader import PackReader
from deltapack.merging.arguments import Numbers, recipe_of
from deltapack.merging.blending import blended
from deltapack.merging.measuring import as_sum, measure_each
from deltapack.merging.modelcard import card_of
from deltapack.merging.planning import plan_merge
from deltapack.merging.recipe_files import read_merge_file
from deltapack.merging.request import MergeChoices, MergeRequest
from deltapack.restoring.provenance import merged, restored
from deltapack.restoring.weight_files import files_like_base, finetuned_files

__all__ = ["RECIPES", "FolderPlan", "SmallFile", "is_recipe", "plan_folder"]

RECIPES = (".yaml", ".yml")
"""What the names of merge recipes end in."""
_FOLDER = Path("folder")
_SMALL = 1 << 20
"""Bytes of a side file that stay in memory; larger ones of the base are read when they are asked for."""


@dataclass(frozen=True)
class FolderPlan:
    """A folder that exists nowhere.

    Attributes:
        base: The base; of a chain, what the packs before the last one restore.
        packs: The packs that are added to it.
        jobs: Its tensors.
        weight_files: Weight files with what stands before their elements.
        files: Contents of all others by name, or what reads them.
        finish: Makes of a job what needs a look at all of the tensor.
        identity: SHA-256 of what decides on every element.
        notes: What the user should be told.
    """

    base: Checkpoint
    packs: Sequence[PackReader]
    jobs: Sequence[TensorJob]
    weight_files: Sequence[tuple[Shard, bytes]]
    files: Mapping[str, SmallFile]
    finish: Callable[[TensorJob], TensorJob]
    identity: str
    notes: Sequence[str]


@dataclass(frozen=True)
class SmallFile:
    """A file beside the weights.

    Attributes:
        size: Bytes.
        sha256: Digest of the content.
        data: The content, where it is in memory.
        at: The file of the base that has it else.
    """

    size: int
    sha256: str
    data: bytes | None = None
    at: SideFile | None = None

    @classmethod
    def of(cls, data: bytes, at: SideFile | None = None) -> SmallFile:
        """Describe a content, which a file of the base has, too, if one is given."""
        return cls(len(data), hashlib.sha256(data).hexdigest(), data if at is None else None, at)

    def read(self) -> bytes:
        """Return the content.

        Raises:
            CheckpointError: The file of the base was changed or cannot be read.
        """
        if self.at is None:
            return self.data or b""
        data = self.at.read()
        if hashlib.sha256(data).hexdigest() != self.sha256:
            raise CheckpointError("the file changed since it was opened", path=self.at.path, expected=f"sha256 {self.sha256}")
        return data


def is_recipe(path: Path) -> bool:
    """Whether a path is that of a merge recipe, by its name."""
    return path.suffix.lower() in RECIPES


def plan_folder(
    stack: ExitStack, base: str | Path, paths: Sequence[Path], *, weights: Numbers | None, recipe: Path | None, verify: bool, workers: int
) -> FolderPlan:
    """Open base and packs on `stack` and plan the folder that they restore, from headers alone.

    Args:
        stack: What closes them.
        base: The base.
        paths: One pack; or packs each of which follows the one before, a chain; or else packs of one base, which are added; or a chain in
            another order. None where there is a recipe.
        weights: Weights of the packs.
        recipe: A merge recipe.
        verify: Whether what is read of a base in a chain is compared with digests.
        workers: Threads that look at all of a tensor, where a merge has to.

    Raises:
        BaseMismatchError: This is not the base.
        CheckpointError: The base is damaged, or none.
        FormatError: A pack is damaged, or none.
        MergeConflictError: Packs disagree on what cannot be added.
        RecipeError: An argument is out of range, or a recipe cannot be read.
    """
    if recipe is not None:
        return _plan_recipe(stack, base, recipe, workers)
    if not paths:
        raise RecipeError("there is no pack", expected="a pack, a list of packs, or a merge recipe")
    packs = stack.enter_context(open_links(paths))
    # A pack that changes files alone has the same base as the one that follows it: the order given decides.
    are_chain = weights is None and all(one.index.result_fingerprint == two.index.base_fingerprint for one, two in pairwise(packs))
    if len(packs) > 1 and not are_chain and len({pack.index.base_fingerprint for pack in packs}) == 1:
        request = MergeRequest(base, paths, recipe_of(tuple(paths), weights, "linear", None, None, None))
        return _plan_merge(stack, request, None, workers)
    if weights is not None and (len(packs) > 1 or not isinstance(weights, (int, float))):
        hint = "Give one number for one pack, or weights for packs of one base."
        raise RecipeError("weights are for packs that are added", found=f"{len(packs)} packs that follow one another", hint=hint)
    return _plan_chain(open_checkpoint_on(stack, base), packs, 1.0 if weights is None else float(weights), verify)


def open_checkpoint_on(stack: ExitStack, base: str | Path) -> Checkpoint:
    """Open a base on `stack`."""
    return stack.enter_context(open_checkpoint(base))


def _plan_chain(base: Checkpoint, packs: Sequence[PackReader], weight: float, verify: bool) -> FolderPlan:
    """Plan what `apply` writes."""
    *before, reader = in_order(packs)
    start = restored_from(base, before, verify=verify)
    weighted, seen = WeightedPack(reader, weight), arranged_base(start, [reader])
    composition = compose(seen, [weighted])
    kept, told = finetuned_files(start, weighted, _FOLDER, dtype=None, shard_bytes=None)
    own = restored(weighted, composition, verify=verify)
    said = [reader.index.base_fingerprint, *(pack.pack_id for pack in (*before, reader)), weight, verify]
    notes = [*base.notes, *composition.notes, *told]
    return _planned(seen, [reader], composition, kept, own, {}, None, said, notes)


def _plan_recipe(stack: ExitStack, base: str | Path, path: Path, workers: int) -> FolderPlan:
    """Plan what `merge --recipe` writes."""
    found = read_merge_file(path)
    choices = MergeChoices(found.prefer, found.assets, found.vocab)
    plan = _plan_merge(stack, MergeRequest(base, found.packs, found.recipe, choices), found.dtype, workers)
    return replace(plan, notes=[*found.notes, *plan.notes])


def _plan_merge(stack: ExitStack, request: MergeRequest, dtype: str | None, workers: int) -> FolderPlan:
    """Plan what `merge` writes; what formulas have to know of a tensor is found out when it is read."""
    cast = None if dtype is None else float_dtype(dtype)
    plan = plan_merge(stack, request, cast, workers)
    readers = [pack.reader for pack in plan.packs]

    def finish(job: TensorJob) -> TensorJob:
        found = blended(job)
        measured = job if found is None or not found.common else measure_each(plan.base, {0: found}, workers)[0].made()
        return as_sum(measured)

    own = {**plan.files, **card_of(plan, cast)}
    said = [readers[0].index.base_fingerprint, plan.stated_recipe(), dtype, plan.stated_choices(request)]
    return _planned(plan.base, readers, plan.composition, None, merged(plan.packs), own, cast, said, plan.notes, finish)


def _as_it_is(job: TensorJob) -> TensorJob:
    return job


def _planned(
    base: Checkpoint,
    packs: Sequence[PackReader],
    composition: Composition,
    kept: tuple[list[Shard], list[Head]] | None,
    metadata: Mapping[str, str],
    own_files: Mapping[str, bytes],
    dtype: DType | None,
    said: Sequence[object],
    notes: Sequence[str],
    finish: Callable[[TensorJob], TensorJob] = _as_it_is,
) -> FolderPlan:
    """Plan the files of a composition as `write_checkpoint` writes them."""
    shards, indices = (files_like_base(base, composition, None), None) if kept is None else kept
    strings = result_metadata(base, composition.metadata, composition.folders, metadata)
    weight_files = [(shard, new_head(shard, composition.aliases, strings)) for shard in shards]
    files = {head.name: SmallFile.of(head.data) for head in (new_indices(shards) if indices is None else indices)}
    files |= {name: SmallFile.of(with_dtype(name, data, dtype)) for name, data in own_files.items()}

    def take(name: str, data: bytes) -> None:
        if name not in own_files:
            at_base = base.side_file(name)
            same = at_base is not None and at_base.size == len(data) and len(data) > _SMALL and at_base.read() == data
            files[name] = SmallFile.of(data, at_base if same else None)

    told = copy_side_files(base, composition.assets, take, verify=True, dtype=dtype)
    identity = hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()
    return FolderPlan(base, packs, composition.jobs, weight_files, files, finish, identity, [*notes, *told])
