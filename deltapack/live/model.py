"""Packs on a live model: activate, mix, undo, in place and exactly."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

from deltapack.checking import as_pack
from deltapack.device.backends import Choice
from deltapack.device.model_tensors import ModelTensors
from deltapack.device.resident import send
from deltapack.device.work import Saved, UndoMode
from deltapack.errors import RecipeError
from deltapack.format.index import Entry
from deltapack.format.reader import PackReader
from deltapack.live.cpu_engine import HostEngine
from deltapack.live.planning import THE_BASE, Active, Loaded, Planner, SwitchPlan, notes_of, run_plan
from deltapack.live.stepping import Step, check_follows, refuse_active, refuse_steps, run_step
from deltapack.live.weights import Packs, weights_of
from deltapack.merging.arguments import Numbers, recipe_of
from deltapack.merging.recipe import MergeRecipe
from deltapack.restoring.engine import overflow_warning

__all__ = ["LiveModel"]


_PLANS = 64
"""Plans that are remembered, for servers that go back and forth between packs."""


@dataclass(frozen=True)
class _Scope:
    """What `activate` returns: as a context manager, it brings back what was active before."""

    live: LiveModel
    before: Active = field(repr=False)  # holds a plan of each tensor

    def __enter__(self) -> LiveModel:
        return self.live

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        with self.live._lock:
            if self.live._closed:  # which has brought the base back
                return
            while self.live.steps:
                self.live.back()
            # Planned again, as its packs may have been unloaded since.
            was = self.before
            self.live._switch(self.live._planned(was.packs, was.places, was.recipe, was.prefer, verify=was.verify))


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
        self._steps: list[Step] = []
        self._active = THE_BASE
        self._plans: dict[tuple[Any, ...], SwitchPlan] = {}
        self._lock = threading.RLock()
        self._closed = False

    def __repr__(self) -> str:
        devices = ", ".join(self.backends) or "no device"
        active = ", ".join(f"{path} {weight:g}" for path, weight in self._active.packs.items())
        return f"<LiveModel of {len(self._model.tensors)} tensors on {devices}: {f'base + {active}' if active else 'the base'}>"

    @property
    def current(self) -> Mapping[str, float]:
        """The active packs and their weights, in order of addition; empty for the base."""
        return dict(self._active.packs)

    @property
    def steps(self) -> tuple[Path, ...]:
        """The packs of a chain that the model has taken, in order; empty where it holds its base."""
        return tuple(step.pack for step in self._steps)

    @property
    def fingerprint(self) -> str | None:
        """The fingerprint of what the last step of a chain gives; `None` where no step was taken."""
        return self._steps[-1].reader.index.result_fingerprint if self._steps else None

    @property
    def undo_bytes(self) -> int:
        """Bytes that are kept to bring the base back."""
        return sum(saved.nbytes for saved in (*self._saved, *(saved for step in self._steps for saved in step.saved)))

    @property
    def resident_bytes(self) -> int:
        """Bytes of packs in the memory of devices, all of which were sent there."""
        return sum(resident.nbytes for pack in self._packs.values() for resident in pack.resident.values())

    def load(self, pack: str | Path) -> None:
        """Open a pack and send it to the devices of the model, so that activating it costs no more than a pass over the weights.

        Raises:
            FormatError: It is damaged.
            RecipeError: The live model is closed.
        """
        with self._lock:
            self._refuse_closed()
            path = as_pack("a pack", pack).resolve()
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
            path = as_pack("a pack", pack).resolve()
            if path in self._active.places or path in self.steps:
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
        verify: bool = True,
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
            verify: Whether digests are compared, of the base and, where weights are 1, of the result, where the model was attached to
                compare them.

        Raises:
            BaseMismatchError: The model does not hold the base of a pack.
            FormatError: A pack is damaged, or makes other tensors than it promises.
            MergeConflictError: Packs disagree on what cannot be added.
            RecipeError: A weight is not a finite number, or an argument does not fit the method; or the live model is closed.
            UnsupportedError: A pack changes the shape or dtype of a tensor, or adds one.
        """
        wanted = weights_of(packs)
        weights = None if set(wanted.values()) <= {1.0} else list(wanted.values())
        recipe = recipe_of(list(wanted), weights, method, semantics, density, parameters)
        # Resolved once: when a scope ends, the folder of the process may be another.
        places, preferred = tuple(path.resolve() for path in wanted), None if prefer is None else as_pack("prefer", prefer).resolve()
        if wanted and preferred is not None and preferred not in places:
            raise RecipeError("the preferred pack is not among the packs", found=prefer)
        with self._lock:
            self._refuse_closed()
            refuse_steps(self._steps)
            before = self._active
            named = {str(path): weight for path, weight in wanted.items()}
            self._switch(self._planned(named, places, recipe, preferred, verify=verify))
        return _Scope(self, before)

    def step(self, pack: str | Path) -> None:
        """Make the model what a pack makes of what it holds now: the next one of a chain, whose first pack is made from the base.

        What is replaced is kept for `back`, so each step adds to `undo_bytes`. After an error the model is as it was.

        Raises:
            BaseMismatchError: The pack does not follow what the model holds.
            FormatError: It is damaged.
            RecipeError: Packs are active, which are no steps; or the live model is closed.
            UnsupportedError: It changes the shape or dtype of a tensor, or adds one.
        """
        with self._lock:
            path = as_pack("a pack", pack).resolve()
            refuse_active(path, self._active)
            self.load(pack)
            loaded = self._packs[path]
            check_follows(loaded.reader, self._steps)
            before = [step.reader for step in self._steps]
            plan, roots = Planner(self._model, self._choices, self._verify, self._workers, before).step(loaded)
            with torch.inference_mode():
                saved = run_step(lambda done: self._run([], plan, done))
            known = {name: self._model.roots.get(name) for name in roots}
            self._model.roots.update(roots)
            self._steps.append(Step(path, loaded.reader, saved, known))

    def back(self) -> None:
        """Undo the last step; nothing where there is none."""
        with self._lock:
            if self._steps:
                with torch.inference_mode():
                    self._run(self._steps[-1].saved, THE_BASE.plan, [])
                self._steps.pop().restore(self._model.roots)

    def deactivate(self) -> None:
        """Bring the base back, bit for bit, from active packs or from steps."""
        with self._lock:
            while self._steps:
                self.back()
            self._switch(THE_BASE)

    def close(self) -> None:
        """Bring the base back and close all packs; from then on it takes none."""
        with self._lock:
            self.deactivate()
            for path in list(self._packs):
                self.unload(path)
            self._closed = True

    def _refuse_closed(self) -> None:
        if self._closed:
            raise RecipeError("the live model is closed", found=repr(self), hint="deltapack.attach(model) makes the model ready again.")

    def _lives_on(self, entry: Entry, device: torch.device) -> bool:
        region = self._model.region(entry.base.name) if entry.base is not None else None
        return region is not None and region.memory.device == device

    def _planned(
        self, packs: Mapping[str, float], places: tuple[Path, ...], recipe: MergeRecipe | None, prefer: Path | None, *, verify: bool
    ) -> Active:
        if not packs or recipe is None:
            return THE_BASE
        known = (verify, places, *packs.values(), prefer, recipe.method, recipe.semantics, recipe.densities, *recipe.parameters.items())
        if known not in self._plans and len(self._plans) >= _PLANS:
            self._plans.clear()
        plan = self._plans.get(known) or self._plans.setdefault(known, self._new_plan(places, recipe, prefer, verify=verify))
        return Active(packs, places, recipe, prefer, plan, verify)

    def _new_plan(self, places: Sequence[Path], recipe: MergeRecipe, prefer: Path | None, *, verify: bool) -> SwitchPlan:
        for place in places:
            self.load(place)
        loaded = [self._packs[place] for place in places]
        preferred = None if prefer is None else places.index(prefer)
        planner = Planner(self._model, self._choices, self._verify and verify, self._workers)
        composition = planner.compose(loaded, recipe.for_packs(len(loaded)), preferred)
        self.notes += [note for note in notes_of(composition, loaded) if note not in self.notes]
        return planner.plan(composition, loaded)

    def _switch(self, wanted: Active) -> None:
        """Undo what is active and do what is planned; after an error, do what was active before."""
        done: list[Saved] = []
        # Tensors made in inference mode may be changed in that mode only; it changes others as well.
        with torch.inference_mode():
            try:
                self._run(self._saved, wanted.plan, done)
                told = self._overflowed(wanted.plan, done)
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
        if told:
            self.notes += [note for note in (told,) if note not in self.notes]
            warnings.warn(told, RuntimeWarning, stacklevel=3)

    def _overflowed(self, plan: SwitchPlan, done: list[Saved]) -> str:
        """Say which tensors got NaN or infinite elements that the base, brought back to look, does not have; empty for none."""
        found = plan.not_finite()
        if found and done:
            self._run(list(done), THE_BASE.plan, [])
            before = plan.not_finite()
            done.clear()
            self._run([], plan, done)
            found = {name: count - before.get(name, 0) for name, count in found.items() if count > before.get(name, 0)}
        return overflow_warning(found)

    def _run(self, before: Sequence[Saved], plan: SwitchPlan, done: list[Saved]) -> None:
        run_plan(self._choices, self._host, self._undo, before, plan, done)
