"""What activating packs on a live model will do to each of its tensors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain
from pathlib import Path

import torch

from deltapack.checkpoint import Checkpoint, TensorInfo
from deltapack.codecs.exact_entry import ExactTensor
from deltapack.composing.basecheck import wrong_result
from deltapack.composing.chain import restored_from
from deltapack.composing.compose import Composition, compose
from deltapack.composing.tensor_job import FromBase, PackTerm, StoredTerm, TensorJob
from deltapack.composing.weighted import WeightedPack
from deltapack.device.backends import Choice
from deltapack.device.exact_work import ExactWork
from deltapack.device.model_tensors import ModelTensors
from deltapack.device.regions import Region, not_finite, read_chunk
from deltapack.device.resident import ResidentPack
from deltapack.device.work import Saved, UndoMode, Work
from deltapack.dtypes import DType
from deltapack.errors import BaseMismatchError, UnsupportedError
from deltapack.format.digest import CHUNK, chunk_count, chunk_digest, root_digest
from deltapack.format.reader import PackReader
from deltapack.kernels.layout import Elements
from deltapack.live.cpu_engine import HostEngine, HostWork, place
from deltapack.live.layouts import arranged_model
from deltapack.merging.blending import BlendedTerm
from deltapack.merging.measuring import as_sums, measure
from deltapack.merging.planning import compose_recipe
from deltapack.merging.recipe import MergeRecipe

__all__ = ["THE_BASE", "Active", "Loaded", "Planner", "SwitchPlan", "notes_of", "run_plan"]


@dataclass(frozen=True)
class Loaded:
    """A pack that is open, and where it is resident."""

    reader: PackReader
    resident: dict[torch.device, ResidentPack]


@dataclass(frozen=True)
class SwitchPlan:
    """What to do for an activation: by device, and on the host.

    Attributes:
        works: By device.
        host: On the host.
        weighted: Tensors that get elements that no digest promises.
        promised: Tensors that live whole in a place and get what a digest promises, as they are in the model; none once they did.
    """

    works: Mapping[torch.device, Sequence[Work | ExactWork]]
    host: Sequence[HostWork]
    weighted: Sequence[tuple[str, DType, Region]] = ()
    promised: list[tuple[TensorJob, TensorInfo, Region]] = field(default_factory=list)

    def check_promised(self) -> None:
        """Compare what tensors have become with their digests, the first time.

        Raises:
            ChecksumError: One is not what its pack promises.
        """
        for job, info, region in self.promised:
            chunks = (chunk_digest(read_chunk(region, info, chunk)) for chunk in range(chunk_count(info.numel)))
            found = root_digest(info.dtype.name, info.shape, chunks)
            if found != job.digest:
                raise wrong_result(job.pack, job.name, job.digest, found)
        self.promised.clear()

    def not_finite(self) -> dict[str, int]:
        """Return how many elements are NaN or infinite, by name, of tensors of which no digest says what they become."""
        found: dict[str, int] = {}
        for name, dtype, region in self.weighted:
            count = not_finite(region, dtype)
            if count:
                found[name] = found.get(name, 0) + count
        return found


@dataclass(frozen=True)
class Active:
    """Packs and their weights, where they were found, how they are merged, what that means for each tensor, and if digests are compared."""

    packs: Mapping[str, float]
    places: tuple[Path, ...]
    recipe: MergeRecipe | None
    prefer: Path | None
    plan: SwitchPlan
    verify: bool = True


THE_BASE = Active({}, (), None, None, SwitchPlan({}, ()))
"""No packs."""


class _NoElements:
    """Stands for the base where formulas are measured: what the model holds may be another pack's by now."""

    def read(self, name: str, start: int, stop: int) -> Elements:
        """Refuse.

        Raises:
            UnsupportedError: Always.
        """
        hint = "Merge into a checkpoint with deltapack merge, or use method='linear'."
        what = "a pack stores the tensor whole, and this method must compare it with the base, which a live model may not hold any more"
        raise UnsupportedError(what, tensor=name, hint=hint)


@dataclass(frozen=True)
class Planner:
    """Plans activations on one model.

    Attributes:
        model: Where the base's tensors live.
        choices: What decodes on each device.
        verify: Whether tensors are compared with the digests of the base, and then with those of the result.
        workers: Threads.
        before: Steps of a chain that the model has taken.
    """

    model: ModelTensors
    choices: Mapping[torch.device, Choice]
    verify: bool
    workers: int
    before: Sequence[PackReader] = ()

    @cached_property
    def elements(self) -> Checkpoint | None:
        """What the model was made of so far, where that can be read."""
        return None if self.model.elements is None else restored_from(self.model.elements, self.before)

    def compose(self, packs: Sequence[Loaded], recipe: MergeRecipe, prefer: int | None) -> Composition:
        """Return what each tensor will be made of, with what the method has to know of whole tensors.

        Raises:
            BaseMismatchError: The model does not hold the base of a pack.
            FormatError: A pack is damaged.
            MergeConflictError: Packs disagree on what cannot be added.
            RecipeError: The recipe does not fit the packs.
            UnsupportedError: The method needs elements of the base.
        """
        readers = [pack.reader for pack in packs]
        _, composition = compose_recipe(arranged_model(self.model, readers), readers, recipe, prefer=prefer)
        return as_sums(measure(_NoElements(), composition, self.workers))

    def plan(self, composition: Composition, packs: Sequence[Loaded]) -> SwitchPlan:
        """Return what to do, and where.

        Raises:
            BaseMismatchError: A tensor of the model is not the base's.
            UnsupportedError: A tensor would get another shape or dtype.
        """
        works: dict[torch.device, list[Work | ExactWork]] = {}
        host: list[HostWork] = []
        weighted: list[tuple[str, DType, Region]] = []
        promised: list[tuple[TensorJob, TensorInfo, Region]] = []
        by_reader = {pack.reader: pack for pack in packs}
        for job in composition.jobs:
            for work in self._works(job, by_reader):
                if not job.digest and job.dtype.is_delta:
                    weighted.append((job.name, job.dtype, work.region))
                if job.digest and self.verify and work.region.memory.numel() == job.numel:
                    promised.append((job, self.model.tensors[place(job, self.model).name], work.region))
                if isinstance(work, HostWork):
                    host.append(work)
                else:
                    works.setdefault(work.region.memory.device, []).append(work)
        return SwitchPlan(works, host, weighted, promised)

    def step(self, pack: Loaded) -> tuple[SwitchPlan, dict[str, str]]:
        """Return what a pack by itself does to what the model holds, and the root digests of its tensors afterwards.

        Raises:
            BaseMismatchError: The model does not hold the base of the pack.
            FormatError: The pack is damaged.
            UnsupportedError: A tensor would get another shape or dtype.
        """
        composition = compose(arranged_model(self.model, [pack.reader]), [WeightedPack(pack.reader)])
        roots = {place(job, self.model).name: job.digest for job in composition.jobs}
        return self.plan(composition, [pack]), roots

    def _works(self, job: TensorJob, packs: Mapping[PackReader, Loaded]) -> Iterator[Work | ExactWork | HostWork]:
        """Yield what a job does to each place where its tensor lives."""
        name, digest, regions = place(job, self.model)
        exact = job.source.exact if isinstance(job.source, FromBase) else None
        if not job.terms and job.source.rows is None and exact is None:
            return
        if name in self.model.refused:
            hint = "Restore the checkpoint with deltapack.apply and load that."
            raise UnsupportedError(
                "the pack changes what cannot be changed in place", tensor=name, found=self.model.refused[name], hint=hint
            )
        around = None
        if any(region.memory.numel() < job.numel for region in regions) and any(_needing_all(job)):
            around = self._around(job, digest)
        # A square matrix that lies the other way round has the shape that is wanted: only its digest tells.
        if regions and (self.verify or (isinstance(job.source, FromBase) and job.source.base.arranged is not None)):
            self.model.check(name, digest)
        for region in regions:
            yield self._work(job, region, packs) if around is None else HostWork(job, region, around)

    def _around(self, job: TensorJob, digest: str) -> Checkpoint:
        """Return where all elements of the tensor that a job starts from are read, of which this process holds a slice.

        Raises:
            BaseMismatchError: They are other elements than those that the pack was made from.
            UnsupportedError: Nobody has them.
        """
        elements, base = self.elements, job.source.base if isinstance(job.source, FromBase) else None
        if elements is None or base is None or base.arranged is not None:
            hint = "Restore the checkpoint with deltapack.apply and load that."
            raise UnsupportedError("an exact tensor cannot be made of a slice of its base", path=job.pack, tensor=job.name, hint=hint)
        pieces = (elements.read(base.name, chunk * CHUNK, min((chunk + 1) * CHUNK, base.numel)) for chunk in range(chunk_count(base.numel)))
        found = root_digest(base.dtype.name, base.shape, map(chunk_digest, pieces))
        if digest and found != digest:
            what = "the base has another content than the one that the pack was made from"
            raise BaseMismatchError(what, path=elements.path, tensor=base.name, expected=f"digest {digest}", found=found, rule="R12")
        return elements

    def _work(self, job: TensorJob, region: Region, packs: Mapping[PackReader, Loaded]) -> Work | ExactWork | HostWork:
        """Return what a job does to one place."""
        exact, device = job.source.exact if isinstance(job.source, FromBase) else None, region.memory.device
        terms = [term for term in job.terms if isinstance(term, PackTerm)]
        if self.choices[device].engine is None or len(terms) < len(job.terms) or job.source.rows is not None:
            return HostWork(job, region)
        if exact is not None:
            decoded = packs[exact.reader].resident[device].exact.get(exact.entry.name)
            return HostWork(job, region) if decoded is None or exact.dtype != job.dtype else ExactWork(region, job.dtype, decoded)
        resident = tuple((packs[term.reader].resident[device].terms[term.term], float(term.factor)) for term in terms)
        return Work(region, job.dtype, resident)


def _needing_all(job: TensorJob) -> Iterator[bool]:
    """Yield whether each tensor that packs hold whole is decoded by all elements of its base: no slice gives its own elements."""
    if isinstance(job.source, FromBase) and job.source.exact is not None:
        yield True
    for term in job.terms:
        own = chain.from_iterable(term.by_pack) if isinstance(term, BlendedTerm) else (term,)
        yield from (isinstance(one, StoredTerm) and isinstance(one.rows, ExactTensor) and one.rows.entry.partner is not None for one in own)


def notes_of(composition: Composition, packs: Sequence[Loaded]) -> list[str]:
    """Say which tensors the model keeps though the fine-tune lacks them."""
    removed = {entry.name for pack in packs for entry in pack.reader.index.entries if entry.kind == "removed"}
    pieces = {name for pack in packs for name in pack.reader.index.pieces}
    kept = sorted(removed - pieces - {job.name for job in composition.jobs})
    return [f"the fine-tune does not have the tensor {name!r}; the model keeps the base's" for name in kept]


def run_plan(
    choices: Mapping[torch.device, Choice], host: HostEngine, mode: UndoMode, before: Sequence[Saved], plan: SwitchPlan, done: list[Saved]
) -> None:
    """Put back what earlier works replaced and do those of a plan, on each device and on the host; `done` gets what undoes them.

    Raises:
        ChecksumError: A tensor is not what its pack promises.
    """
    on_host = {work.region.key for work in plan.host}
    undo: dict[torch.device, list[Saved]] = {}
    for saved in before:
        if saved.region.key not in on_host:
            undo.setdefault(saved.region.memory.device, []).append(saved)
    for device in sorted({*undo, *plan.works}, key=str):
        engine = choices[device].engine
        if engine is not None:
            engine.switch(undo.pop(device, []), plan.works.get(device, ()), mode, done)
    rest = [saved for part in undo.values() for saved in part]
    host.switch([*rest, *(saved for saved in before if saved.region.key in on_host)], plan.host, mode, done)
    plan.check_promised()
