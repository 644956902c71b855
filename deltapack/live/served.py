"""A model that a serving engine holds, in one process or in slices over several: packs on it, on all of them or on none."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch

from deltapack.checking import as_paths
from deltapack.checkpoint import open_checkpoint
from deltapack.composing.chain import in_order, open_links
from deltapack.device.backends import choose
from deltapack.errors import BackendError
from deltapack.live.loader_layout import find_served_tensors
from deltapack.live.model import LiveModel
from deltapack.live.probing import LoadWeights
from deltapack.live.weights import Packs
from deltapack.parallel import resolve_workers

__all__ = ["Exchange", "ServedModel", "alone", "among"]

Exchange = Callable[[Any], list[Any]]
"""Gives what this process says to all that serve the model with it, and returns what all say; they call it in turn, each the same times."""
_SHOWN = 20
"""Names that a status lists."""


def alone(said: Any) -> list[Any]:
    """The exchange of a model that one process serves.

    >>> alone("here")
    ['here']
    """
    return [said]


def among(groups: Sequence[Any], said: Any) -> list[Any]:
    """Exchange what is said among the processes of a model, group by group.

    Args:
        groups: Those of tensor and of pipeline parallelism, as vLLM and SGLang have them: `world_size`, and `cpu_group` for torch.
        said: What this process says.
    """
    heard = [said]
    for group in groups:
        parts: list[Any] = [None] * group.world_size
        torch.distributed.all_gather_object(parts, heard, group=group.cpu_group)
        heard = [one for part in parts for one in part]
    return heard


class ServedModel:
    """Packs on a model whose own loader has placed the base's tensors: fused, sliced, per expert.

    Every method is called in all processes of the model, with the same arguments. Where it fails in one of them, it is undone in the others
    and raises in all. Requests must not run meanwhile; hosts call such methods between steps.

    Args:
        model: The model, or what this process holds of it.
        base: Finds the checkpoint that it was loaded from; where that fails in one process, it fails in all.
        load: Its loader, such as `model.load_weights`.
        exchange: How the processes of the model talk to one another.
        backend: `auto`, `cpu`, `torch` or `triton`.
        workers: Threads; every core unless given.

    Raises:
        BackendError: The backend cannot run here, or another process failed.
        BaseMismatchError: The model does not hold the base.
        UnsupportedError: Its loader cannot be followed.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        base: Callable[[], Path],
        load: LoadWeights,
        *,
        exchange: Exchange = alone,
        backend: str = "auto",
        workers: int | None = None,
    ) -> None:
        self._exchange, self._open = exchange, ExitStack()
        made: list[LiveModel] = []

        def make() -> None:
            # It stays open: where a process holds a slice, an exact tensor is made of elements that others hold.
            self._found = find_served_tensors(model, self._open.enter_context(open_checkpoint(base())), load)
            choices = {device: choose(backend, device) for device in {region.memory.device for region in self._found.regions.values()}}
            made.append(LiveModel(self._found, choices, "auto", True, resolve_workers(workers)))

        try:
            self._together(make, lambda: None)
        except BaseException:
            self._open.close()
            raise
        self._live = made[0]

    def activate(self, packs: Packs, **how: Any) -> Mapping[str, Any]:
        """Make the model base + packs, as `LiveModel.activate` does; `how` are its options. Returns the status.

        Raises:
            DeltapackError: As there; or another process failed (`BackendError`).
        """
        scopes: list[Any] = []
        self._together(lambda: scopes.append(self._live.activate(packs, **how)), lambda: scopes[0].__exit__(None, None, None))
        return self.status()

    def follow(self, packs: Sequence[str | Path]) -> Mapping[str, Any]:
        """Make the model what a chain of packs gives, be it from the base or from the steps that it has taken. Returns the status.

        The chain is put in order and checked as a whole before anything is written. Steps that were taken already are not taken again; a
        chain that goes another way is taken from the base. After an error the model is as it was.

        Raises:
            DeltapackError: The packs are no chain, or as `LiveModel.step`; or another process failed (`BackendError`).
        """
        before, paths = self._live.steps, as_paths("packs", packs)
        self._together(lambda: self._walk(paths), lambda: self._return_to(before))
        return self.status()

    def deactivate(self) -> Mapping[str, Any]:
        """Bring the base back, bit for bit. Returns the status."""
        self._together(self._live.deactivate, lambda: None)
        return self.status()

    def close(self) -> None:
        """Bring the base back and close all packs and the base."""
        self._live.close()
        self._open.close()

    def status(self) -> Mapping[str, Any]:
        """Return what is active here: packs with weights, steps of a chain, what decodes, and which tensors no pack can change, and why."""
        found = self._found
        return {
            "packs": dict(self._live.current),
            "steps": [str(step) for step in self._live.steps],
            "backends": dict(self._live.backends),
            "undo_bytes": self._live.undo_bytes,
            "tensors": len(found.regions),
            "elsewhere": len(found.tensors.keys() - found.regions.keys() - found.refused.keys()),
            "refused": dict(sorted(found.refused.items())[:_SHOWN]),
            "notes": list(self._live.notes),
        }

    def _walk(self, paths: Sequence[Path]) -> None:
        """Take the steps of a chain that are missing; after an error all is as it was."""
        live, before = self._live, self._live.steps
        with open_links(paths) as links:
            chain = [(link.path, link.index.base_fingerprint, link.index.result_fingerprint) for link in in_order(links)]
        if chain and live.fingerprint == chain[-1][2]:
            return
        missing = next((chain[number:] for number, (_, base, _) in enumerate(chain) if base == live.fingerprint), None)
        try:
            if missing is None and live.steps:
                live.deactivate()
            for path, _, _ in chain if missing is None else missing:
                live.step(path)
        except BaseException:
            self._return_to(before)
            raise

    def _return_to(self, steps: Sequence[Path]) -> None:
        """Go back to the steps that were taken before."""
        live = self._live
        same = next((number for number, (one, two) in enumerate(zip(steps, live.steps, strict=False)) if one != two), None)
        shared = min(len(steps), len(live.steps)) if same is None else same
        while len(live.steps) > shared:
            live.back()
        for path in steps[shared:]:
            live.step(path)

    def _together(self, act: Callable[[], Any], undo: Callable[[], None]) -> None:
        """Do something in all processes or in none.

        Raises:
            BackendError: Another process failed.
            Exception: This one did.
        """
        error: Exception | None = None
        try:
            act()
        except Exception as caught:
            error = caught
        said = self._exchange(None if error is None else f"{type(error).__name__}: {error}")
        if error is not None:
            raise error
        failed = [(number, text) for number, text in enumerate(said) if text is not None]
        if failed:
            undo()
            number, text = failed[0]
            what = f"process {number} of the model failed, so nothing was changed in the others"
            raise BackendError(what, found=text)
