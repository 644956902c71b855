"""Packs on a live model: activate, mix, undo, in place and exactly."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

from deltapack.checking import as_path
from deltapack.checkpoint import open_checkpoint
from deltapack.composing.compose import Composition
from deltapack.device.backends import Choice, choose
from deltapack.device.model_tensors import ModelTensors, Names, find_model_tensors
from deltapack.device.resident import send
from deltapack.device.work import Saved, UndoMode
from deltapack.errors import RecipeError
from deltapack.format.index import Entry
from deltapack.format.reader import PackReader
from deltapack.live.cpu_engine import HostEngine
from deltapack.live.planning import THE_BASE, Active, Loaded, Planner, SwitchPlan
from deltapack.live.weights import Packs, weights_of
from deltapack.merging.arguments import Numbers, recipe_of
from deltapack.merging.recipe import MergeRecipe
from deltapack.parallel import resolve_workers

__all__ = ["LiveModel", "attach"]


def attach(
    model: Any,
    base: str | Path | None = None,
    *,
    names: Names | None = None,
    backend: str = "auto",
    undo: UndoMode = "auto",
    verify: bool = True,
    weight_files: str | None = None,
    workers: int | None = None,
) -> LiveModel:
    """Make a model in memory ready to take packs.

    The model must hold the base, bit for bit: a tensor is compared with the digest in a pack when the pack changes it for the first time.
    Addresses of tensors never change, so a model under `torch.compile` or CUDA graphs sees the packs; work is done on the current stream.

    Args:
        model: A `torch.nn.Module`, or a mapping of names to tensors; on one device or many.
        base: The checkpoint that it was loaded from, needed where the model holds more, less, or slices of its tensors.
        names: Which tensors of the base live under another name, in slices (`deltapack.Slice`), or not here (`None`).
        backend: `auto`, `cpu`, `torch` or `triton`.
        undo: `log` keeps the replaced elements, `copy` the whole tensors that are changed, `auto` whichever is smaller.
        verify: Whether the model is compared with the base that packs were made from.
        weight_files: Which weights count where the base's folder has one file and an index of shards that differ: `"single"` or `"index"`.
        workers: Threads that decode; every core unless given.

    Raises:
        BackendError: The backend cannot run on a device of the model.
        BaseMismatchError: A slice of the model differs from the checkpoint.
        RecipeError: The model and the base do not fit.
    """
    if base is not None and (not isinstance(base, str | Path) or Path(base).suffix == ".dpk"):
        hint = "attach(model) makes the model ready; its activate() takes packs."
        raise RecipeError("base is the checkpoint that the model was loaded from, not a pack", found=base, hint=hint)
    if undo not in ("auto", "copy", "log"):
        raise RecipeError("undo is unknown", expected="auto, copy or log", found=undo)
    if base is None:
        found = find_model_tensors(model, None, names or {})
    else:
        with open_checkpoint(base, weights=weight_files) as checkpoint:
            found = find_model_tensors(model, checkpoint, names or {})
            if verify:
                found.compare_slices(checkpoint)
    devices = {region.memory.device for region in found.regions.values()}
    choices = {device: choose(backend, device) for device in devices}
    return LiveModel(found, choices, undo, verify, resolve_workers(workers))


_PLANS = 64
"""Plans that are remembered, for servers that go back and forth between packs."""


@dataclass(frozen=True)
class _Scope:
    """What `activate` returns: as a context manager, it brings back what was active before."""

    live: LiveModel
    before: Active

    def __enter__(self) -> LiveModel:
        return self.live

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        with self.live._lock:
            # Planned again, as its packs may have been unloaded since.
            self.live._switch(self.live._planned(self.before.packs, self.before.places, self.before.recipe, self.before.prefer))


class LiveModel:
    """A model in memory and the packs that are active on it; made by `attach`. Its methods may be called from any thread.

    Nothing keeps a forward pass from running while packs are switched: whoever serves requests takes turns (see `examples/serve.py`).

    Attributes:
        backends: What decodes on each device, and why.
        notes: What the user should be told.
    """

    def __init__(self, model: ModelTensors, choices: Mapping[torch.device, Choice], undo: UndoMode, verify: bool, workers: int) -> None:
        self.backends: Mapping[str, str] = {str(device): str(choice) for device, choice in choices.items()}
        self.notes: list[str] = []
        self._model, self._choices, self._undo, self._verify, self._workers = model, choices, undo, verify, workers
        self._host = HostEngine(workers)
        self._packs: dict[Path, Loaded] = {}
        self._saved: list[Saved] = []
        self._active = THE_BASE
        self._plans: dict[tuple[Any, ...], SwitchPlan] = {}
        self._lock = threading.RLock()

    def __repr__(self) -> str:
        devices = ", ".join(self.backends) or "no device"
        active = ", ".join(f"{path} {weight:g}" for path, weight in self._active.packs.items())
        return f"<LiveModel of {len(self._model.tensors)} tensors on {devices}: {f'base + {active}' if active else 'the base'}>"

    @property
    def current(self) -> Mapping[str, float]:
        """The active packs and their weights, in order of addition; empty for the base."""
        return dict(self._active.packs)

    @property
    def undo_bytes(self) -> int:
        """Bytes that are kept to bring the base back."""
        return sum(saved.nbytes for saved in self._saved)

    @property
    def resident_bytes(self) -> int:
        """Bytes of packs in the memory of devices, all of which were sent there."""
        return sum(resident.nbytes for pack in self._packs.values() for resident in pack.resident.values())

    def load(self, pack: str | Path) -> None:
        """Open a pack and send it to the devices of the model, so that activating it costs no more than a pass over the weights.

        Raises:
            FormatError: It is damaged.
        """
        with self._lock:
            path = as_path("a pack", pack).resolve()
            if path in self._packs:
                return
            with ExitStack() as stack:
                reader, resident = stack.enter_context(PackReader(pack)), {}
                for device in [device for device, choice in self._choices.items() if choice.engine is not None]:
                    entries = [entry for entry in reader.index.entries if self._lives_on(entry, device)]
                    resident[device] = send(reader, device, self._workers, entries)
                stack.pop_all()
            # Another mapping, not another item: `resident_bytes` goes through it without waiting for the lock.
            self._packs = {**self._packs, path: Loaded(reader, resident)}

    def unload(self, pack: str | Path) -> None:
        """Forget a pack.

        Raises:
            RecipeError: It is active.
        """
        with self._lock:
            path = as_path("a pack", pack).resolve()
            if path in self._active.places:
                raise RecipeError("an active pack cannot be unloaded", path=pack, hint="Call deactivate() first.")
            self._plans.clear()
            loaded = self._packs.get(path)
            if loaded is not None:
                self._packs = {known: other for known, other in self._packs.items() if known != path}
                loaded.reader.close()

    def activate(
        self,
        packs: Packs,
        *,
        method: str = "linear",
        semantics: str | None = None,
        density: Numbers | None = None,
        parameters: Mapping[str, float] | None = None,
        prefer: str | Path | None = None,
    ) -> _Scope:
        """Make the model base + weighted packs, whatever was active before; the very bits that `merge` gives.

        What both the old and the new packs change is visited once. After an error the model is as it was. As a context manager
        (`with live.activate(...):`) it brings back what was active before.

        Args:
            packs: Weights of packs, in order of addition; or a list of packs of weight 1, or one such pack. Methods without weights want
                weights of 1.
            method: Name of a merge method, as in `deltapack.merge`; others than sums are computed on the CPU.
            semantics: As in `deltapack.merge`.
            density: As in `deltapack.merge`.
            parameters: As in `deltapack.merge`.
            prefer: The pack that decides on tensors that cannot be added.

        Raises:
            BaseMismatchError: The model does not hold the base of a pack.
            FormatError: A pack is damaged.
            MergeConflictError: Packs disagree on what cannot be added.
            RecipeError: A weight is not a finite number, or an argument does not fit the method.
            UnsupportedError: A pack changes the shape or dtype of a tensor, or adds one.
        """
        wanted = {str(path): weight for path, weight in weights_of(packs).items()}
        weights = None if set(wanted.values()) <= {1.0} else list(wanted.values())
        recipe = recipe_of(list(map(Path, wanted)), weights, method, semantics, density, parameters)
        # Resolved once: when a scope ends, the folder of the process may be another.
        places, preferred = tuple(Path(path).resolve() for path in wanted), None if prefer is None else Path(prefer).resolve()
        if wanted and preferred is not None and preferred not in places:
            raise RecipeError("the preferred pack is not among the packs", found=prefer)
        with self._lock:
            before = self._active
            self._switch(self._planned(wanted, places, recipe, preferred))
        return _Scope(self, before)

    def deactivate(self) -> None:
        """Bring the base back, bit for bit."""
        with self._lock:
            self._switch(THE_BASE)

    def close(self) -> None:
        """Bring the base back and close all packs."""
        with self._lock:
            self.deactivate()
            for path in list(self._packs):
                self.unload(path)

    def _lives_on(self, entry: Entry, device: torch.device) -> bool:
        region = self._model.region(entry.base.name) if entry.base is not None else None
        return region is not None and region.memory.device == device

    def _planned(self, packs: Mapping[str, float], places: tuple[Path, ...], recipe: MergeRecipe | None, prefer: Path | None) -> Active:
        if not packs or recipe is None:
            return THE_BASE
        known = (places, *packs.values(), prefer, recipe.method, recipe.semantics, recipe.densities, *recipe.parameters.items())
        if known not in self._plans and len(self._plans) >= _PLANS:
            self._plans.clear()
        plan = self._plans.get(known) or self._plans.setdefault(known, self._new_plan(places, recipe, prefer))
        return Active(packs, places, recipe, prefer, plan)

    def _new_plan(self, places: Sequence[Path], recipe: MergeRecipe, prefer: Path | None) -> SwitchPlan:
        for place in places:
            self.load(place)
        loaded = [self._packs[place] for place in places]
        preferred = None if prefer is None else places.index(prefer)
        planner = Planner(self._model, self._choices, self._verify, self._workers)
        composition = planner.compose(loaded, recipe.for_packs(len(loaded)), preferred)
        self._note_removed(composition, loaded)
        return planner.plan(composition, loaded)

    def _note_removed(self, composition: Composition, packs: Sequence[Loaded]) -> None:
        removed = {entry.name for pack in packs for entry in pack.reader.index.entries if entry.kind == "removed"}
        pieces = {name for pack in packs for name in pack.reader.index.pieces}
        kept = sorted(removed - pieces - {job.name for job in composition.jobs})
        notes = [f"the fine-tune does not have the tensor {name!r}; the model keeps the base's" for name in kept]
        self.notes += [note for note in notes if note not in self.notes]

    def _switch(self, wanted: Active) -> None:
        """Undo what is active and do what is planned; after an error, do what was active before."""
        done: list[Saved] = []
        # Tensors made in inference mode may be changed in that mode only; it changes others as well.
        with torch.inference_mode():
            try:
                self._run(self._saved, wanted.plan, done)
            except BaseException:
                # What undoes it all stays in `_saved`: after a second Ctrl-C here, deactivate() still brings the base back.
                before, self._active = self._active, THE_BASE
                self._saved = [*done, *self._saved]
                for saved in self._saved:
                    saved.put_back()
                self._saved = []
                self._run([], before.plan, self._saved)
                self._active = before
                raise
        self._saved, self._active = done, wanted

    def _run(self, before: Sequence[Saved], plan: SwitchPlan, done: list[Saved]) -> None:
        on_host = {work.region.key for work in plan.host}
        undo: dict[torch.device, list[Saved]] = {}
        for saved in before:
            if saved.region.key not in on_host:
                undo.setdefault(saved.region.memory.device, []).append(saved)
        for device in sorted({*undo, *plan.works}, key=str):
            engine = self._choices[device].engine
            if engine is not None:
                engine.switch(undo.pop(device, []), plan.works.get(device, ()), self._undo, done)
        rest = [saved for part in undo.values() for saved in part]
        self._host.switch([*rest, *(saved for saved in before if saved.region.key in on_host)], plan.host, self._undo, done)
