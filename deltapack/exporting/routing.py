"""What becomes of each changed tensor in an adapter: factors, a bias, part of a module that is saved whole, or nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod

from deltapack.adapters.placing import rename_rule
from deltapack.checkpoint import Checkpoint, TensorInfo
from deltapack.composing.tensor_job import FromBase, TensorJob
from deltapack.exporting.modules import Kind, Modules

__all__ = ["Factored", "Routes", "origin_of", "route"]

_NO_VECTORS = "left out, as was asked: no LoRA holds it"


@dataclass(frozen=True)
class Factored:
    """A weight whose difference becomes factors.

    Attributes:
        name: The tensor.
        module: Its module in the model.
        kind: What that is.
        shape: The tensor's shape.
    """

    name: str
    module: str
    kind: Kind
    shape: tuple[int, ...]

    @property
    def rows(self) -> int:
        """Rows of the tensor as a matrix of its first dimension by all others."""
        return self.shape[0]

    @property
    def columns(self) -> int:
        """Its columns."""
        return prod(self.shape[1:])


@dataclass
class Routes:
    """What becomes of changed tensors.

    Attributes:
        factored: Weights that become factors.
        biases: Biases of modules that are not saved whole: module by tensor.
        saved: Modules that are saved whole: each of their tensors, by its name in the module.
        left: Tensors that the adapter does not hold, and why.
        notes: What the user should know.
    """

    factored: list[Factored] = field(default_factory=list)
    biases: dict[str, str] = field(default_factory=dict)
    saved: dict[str, dict[str, str]] = field(default_factory=dict)
    left: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def route(base: Checkpoint, restored: Checkpoint, jobs: Sequence[TensorJob], modules: Modules, *, vectors: bool) -> Routes:
    """Say what becomes of each tensor that a pack changes.

    Args:
        base: The base.
        restored: What the pack makes of it.
        jobs: The pack's tensors.
        modules: The modules of the model.
        vectors: Whether what no LoRA holds is saved whole.
    """
    routes = Routes()
    changed = _changed(base, jobs, routes)
    in_model = _renaming(modules, [name for name, held in changed.items() if held is not None])
    tensors = _by_module(restored.tensors, in_model)
    whole: dict[str, str] = {}
    tied = _tied(restored, modules, in_model)
    for name, held in changed.items():
        module, _, leaf = in_model(name).rpartition(".")
        kind, info = modules.kinds.get(module), restored.tensors[name]
        same = held is not None and held.shape == info.shape and held.dtype.is_delta and info.dtype.is_delta
        if not module or (kind is None and held is not None):
            routes.left[name] = "the model has no module of that name" if module else "it lies in no module"
        elif same and kind not in (None, "other") and leaf == "weight" and name not in tied and prod(info.shape) > 0:
            assert kind is not None
            routes.factored.append(Factored(name, module, kind, info.shape))
        else:
            whole[name] = module
    _save_whole(routes, whole, tensors, modules, vectors)
    _save_ties(routes, tied, tensors, in_model)
    for module in routes.saved:
        name = tensors.get(module, {}).get("weight", "")
        before, after = changed.get(name), restored.tensors.get(name)
        if before is not None and after is not None and before.shape != after.shape and len(after.shape) == 2:
            fit = f"model.resize_token_embeddings({after.shape[0]}) before it loads the adapter, if this is a vocabulary"
            routes.notes.append(f"{name} has {after.shape[0]} rows instead of {before.shape[0]} and is saved whole: call {fit}")
    return routes


def _changed(base: Checkpoint, jobs: Sequence[TensorJob], routes: Routes) -> dict[str, TensorInfo | None]:
    """Return tensors that are not the base's, with that of the base that each comes from; those in another layout are left out."""
    changed: dict[str, TensorInfo | None] = {}
    used = set[str]()
    for job in jobs:
        origin = origin_of(base, job)
        arranged = None if origin is None else origin.arranged
        used |= {job.name} if origin is None else {origin.name} if arranged is None else set(arranged.names)
        if arranged is not None:
            routes.left[job.name] = "the fine-tune has it in another layout than the base"
        elif not job.is_base:
            changed[job.name] = origin
    gone = sorted(base.tensors.keys() - used)
    if gone:
        routes.notes.append(f"the fine-tune lacks {len(gone)} tensors of the base, which stay with an adapter: {', '.join(gone[:3])}")
    return changed


def origin_of(base: Checkpoint, job: TensorJob) -> TensorInfo | None:
    """Return the base's tensor that a tensor comes from; none where it is new."""
    return job.source.base if isinstance(job.source, FromBase) else base.tensors.get(job.name)


def _renaming(modules: Modules, names: Sequence[str]) -> Callable[[str], str]:
    """Return what gives a tensor's name in the model: a checkpoint may be saved without the wrapper that the model has."""
    prefix, other = rename_rule(modules.tensors, names)

    def in_model(name: str) -> str:
        moved = other + name.removeprefix(prefix) if name.startswith(prefix) else name
        return name if name in modules.tensors or (prefix, other) == ("", "") else moved

    return in_model


def _by_module(tensors: Iterable[str], in_model: Callable[[str], str]) -> dict[str, dict[str, str]]:
    """Return the tensors of each module, by their names in it."""
    found: dict[str, dict[str, str]] = {}
    for name in tensors:
        module, _, leaf = in_model(name).rpartition(".")
        found.setdefault(module, {})[leaf] = name
    return found


def _tied(restored: Checkpoint, modules: Modules, in_model: Callable[[str], str]) -> dict[str, tuple[str, ...]]:
    """Return tensors that are the weights of several modules, with these; an embedding that is also the head."""
    tied: dict[str, tuple[str, ...]] = {}
    for alias, kept in restored.aliases.items():
        tied[kept] = (*tied.get(kept, (in_model(kept).rpartition(".")[0],)), in_model(alias).rpartition(".")[0])
    if modules.ends:
        embedding, head = (f"{module}.weight" for module in modules.ends)
        names = {in_model(name): name for name in restored.tensors}
        if embedding in names and head not in names and names[embedding] not in tied:
            tied[names[embedding]] = modules.ends
    return {name: tuple(dict.fromkeys(of)) for name, of in tied.items()}


def _save_whole(
    routes: Routes, whole: Mapping[str, str], tensors: Mapping[str, Mapping[str, str]], modules: Modules, vectors: bool
) -> None:
    """Save what is no factor: biases by themselves, other tensors with all of their module."""
    factored = {item.module for item in routes.factored}
    asked = {module for name, module in whole.items() if name != tensors[module].get("bias")}
    reasons = {module: why for module in asked if (why := _why_not(module, factored, modules, vectors))}
    saved = asked - reasons.keys()
    known = modules.kinds.keys() | saved
    for module in sorted(saved):  # PEFT takes every module whose name ends so
        others = {name for name in known if name.endswith(module)} - saved
        if any(name in factored or modules.has_parts(name) or name not in tensors for name in others):
            reasons[module] = f"PEFT would save {min(others)}, too, whose name ends the same"
            saved.discard(module)
        else:
            saved |= others
    routes.saved = {module: dict(tensors[module]) for module in sorted(saved)}
    for name, module in whole.items():
        if module in saved:
            continue
        if name == tensors[module].get("bias") and vectors:
            routes.biases[name] = module
        else:
            routes.left[name] = reasons.get(module, _NO_VECTORS)


def _why_not(module: str, factored: set[str], modules: Modules, vectors: bool) -> str:
    """Return why a module cannot be saved whole."""
    if not vectors:
        return _NO_VECTORS
    if module in factored:
        return "its module has factors, and PEFT does not save it whole as well"
    return "it lies beside other modules, and PEFT saves whole modules" if modules.has_parts(module) else ""


def _save_ties(
    routes: Routes, tied: Mapping[str, tuple[str, ...]], tensors: Mapping[str, Mapping[str, str]], in_model: Callable[[str], str]
) -> None:
    """Save a tensor that is the weight of several modules with each of them: PEFT unties them."""
    for name, of in tied.items():
        module, _, leaf = in_model(name).rpartition(".")
        if module in routes.saved:
            routes.saved |= {other: {**tensors.get(other, {}), leaf: name} for other in of}
            routes.notes.append(f"{name} is the weight of {' and '.join(of)}, and is saved with each")
