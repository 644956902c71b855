"""Where a model's own loader puts each element of a checkpoint, learnt by running it on tensors that have no elements.

Serving engines fuse q, k and v, gate and up, or experts, and slice them for tensor parallelism; each class of models has code of its own
for it, `load_weights`. That code is the only description of the layout that is always right. So it is run once more, with a probe for each
tensor of the checkpoint: a tensor on the device `meta`, with its shape and type and no memory. Slicing, transposing and reshaping a probe
gives views, whose offset and strides say which elements they stand for; what would be written to the model is written down instead.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from deltapack.errors import UnsupportedError

__all__ = ["LoadWeights", "Probed", "Written", "memory_of", "probe_loader"]

LoadWeights = Callable[[Iterable[tuple[str, torch.Tensor]]], Any]
"""The function by which a model takes names and tensors of a checkpoint, as vLLM's and SGLang's models have it."""

_COPIES = {torch.ops.aten.copy_.default, torch.ops.aten._foreach_copy_.default}
_FILLS = {
    torch.ops.aten.fill_.Scalar,
    torch.ops.aten.fill_.Tensor,
    torch.ops.aten.zero_.default,
    torch.ops.aten._foreach_zero_.default,
}
_SAME = {torch.ops.aten._to_copy.default, torch.ops.aten.clone.default}
"""What copies elements as they are, unless the type changes: to the device of a parameter, or to be contiguous."""


@dataclass(frozen=True)
class Written:
    """Elements of a checkpoint's tensor that the loader writes to a tensor of the model.

    Attributes:
        name: The tensor of the checkpoint.
        source: A view of its probe.
        target: A view of the model's tensor, of the same shape.
    """

    name: str
    source: torch.Tensor
    target: torch.Tensor


@dataclass(frozen=True)
class Probed:
    """What a loader does.

    Attributes:
        written: What it writes where, in order.
        refused: Tensors that it does more to than to write them, and what.
    """

    written: list[Written]
    refused: Mapping[str, str]


def probe_loader(load: LoadWeights, probes: Mapping[str, torch.Tensor], held: Mapping[str, torch.Tensor], model: torch.nn.Module) -> Probed:
    """Run a model's loader on probes. The model stays as it is, whatever the loader does to its modules, and also after an error.

    Args:
        load: The loader.
        probes: A tensor on the device `meta` for each tensor of the checkpoint, by name.
        held: Parameters and buffers of the model.
        model: The model.

    Raises:
        UnsupportedError: The loader looks at elements, or gives the model other tensors than it had.
    """
    kept = _Kept(model, held)
    recorder, asked = _Recorder(probes, held.values()), [""]

    def names() -> Iterator[tuple[str, torch.Tensor]]:
        for asked[0], probe in probes.items():
            yield asked[0], probe

    try:
        with torch.no_grad(), recorder:
            load(names())
    except Exception as error:  # of the model's own code, whatever it raises
        what, hint = "the model's own loader cannot be followed", "Restore the checkpoint with deltapack.apply and serve that."
        found = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
        raise UnsupportedError(what, tensor=asked[0] or None, found=found, hint=hint) from error
    finally:
        replaced = kept.put_back()
    if replaced:
        hint = "They are back; serve the checkpoint that deltapack.apply restores."
        raise UnsupportedError("the model's own loader replaces tensors of the model", tensor=replaced[0], hint=hint)
    return recorder.probed()


class _Kept:
    """The tensors of a model and where they are in it, to bring back what a loader replaces: with probes, a server would have no weights.

    Args:
        model: The model.
        held: Its tensors by name.
    """

    def __init__(self, model: torch.nn.Module, held: Mapping[str, torch.Tensor]) -> None:
        kinds = ("_parameters", "_buffers", "_modules")
        self._places = [(module, kind, getattr(module, kind).copy()) for module in model.modules() for kind in kinds]
        self._held = {name: (tensor, tensor.detach(), _identity(tensor)) for name, tensor in held.items()}

    def put_back(self) -> list[str]:
        """Make it as it was; return the names of tensors that were not."""
        moved = list[Any]()
        for module, kind, before in self._places:
            now = getattr(module, kind)
            moved += [value for name, value in before.items() if value is not None and now.get(name) is not value]
            if list(map(id, (*now, *now.values()))) != list(map(id, (*before, *before.values()))):
                module.__dict__[kind] = before
        for one in [one for one in moved if isinstance(one, torch.nn.Module)]:
            moved += [*one.parameters(), *one.buffers()]
        gone = set(map(id, moved))
        replaced = [name for name, (tensor, _, known) in self._held.items() if id(tensor) in gone or _identity(tensor) != known]
        for tensor, data, known in self._held.values():
            if _identity(tensor) != known:
                tensor.data = data
        return replaced


def _identity(tensor: torch.Tensor) -> tuple[Any, ...]:
    return tensor.data_ptr(), tuple(tensor.shape), tensor.stride(), tensor.dtype


def memory_of(tensor: torch.Tensor) -> int:
    """Return what tells memory apart, also that of tensors without any; 0 for tensors that wrap others."""
    try:
        return int(tensor.untyped_storage()._cdata)
    except (NotImplementedError, RuntimeError):
        return 0


class _Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Sees every operation of torch; those that would write to the model are recorded and left out."""

    def __init__(self, probes: Mapping[str, torch.Tensor], held: Iterable[torch.Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.written: list[Written] = []
        self.refused: dict[str, str] = {}
        self._kept: list[torch.Tensor] = []
        self._probes = {memory_of(probe): name for name, probe in probes.items()}
        self._held = {memory_of(tensor) for tensor in held} - {0}
        self._made: dict[int, set[str]] = {}
        self._computed: list[torch.Tensor] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        targets = _written_by(func, args, kwargs)
        names = self._names(args, kwargs)
        if any(memory_of(target) in self._held or (names and target.device.type != "meta") for target in targets):
            sources = [] if func not in _COPIES else [args[1]] if isinstance(args[1], torch.Tensor) else args[1]
            for number, target in enumerate(targets):
                source = sources[number] if sources else None
                self._write(func, target, source, names if source is None else self._names(source, {}))
            returned = len(func._schema.returns)
            return None if not returned else targets[0] if returned == 1 else tuple(targets)
        if names and func in _SAME and kwargs.get("dtype", args[0].dtype) in (None, args[0].dtype) and memory_of(args[0]) in self._probes:
            return torch.ops.aten.alias.default(args[0])
        made = func(*args, **kwargs)
        for tensor in tree_leaves(made) if names else ():
            if isinstance(tensor, torch.Tensor) and memory_of(tensor) not in self._probes:
                self._taint(tensor, names)
        return made

    def _names(self, args: Any, kwargs: Any) -> set[str]:
        """Return the tensors of the checkpoint that arguments are made of."""
        names: set[str] = set()
        for tensor in tree_leaves((args, kwargs)):
            if isinstance(tensor, torch.Tensor):
                key = memory_of(tensor)
                names |= {self._probes[key]} if key in self._probes else self._made.get(key, set())
        return names

    def _taint(self, tensor: torch.Tensor, names: set[str]) -> None:
        self._kept.append(tensor)  # or another one could get its place in memory
        self._made.setdefault(memory_of(tensor), set()).update(names)

    def _write(self, func: Any, target: torch.Tensor, source: torch.Tensor | None, names: set[str]) -> None:
        """Write down what an operation would write to memory that is not a probe's."""
        if memory_of(target) not in self._held:
            self._taint(target, names)  # a tensor that is put together before it is written
            return
        if source is not None and memory_of(source) in self._probes:
            name = self._probes[memory_of(source)]
            if source.dtype != target.dtype:
                self.refused.setdefault(name, f"the model holds it as {_short(target)}, the checkpoint as {_short(source)}")
            elif source.shape != target.shape and source.numel() != target.numel():
                self.refused.setdefault(name, "the loader spreads it over a larger tensor")
            elif target.numel():
                self.written.append(Written(name, source.detach(), target.detach()))
        elif names:
            self.refused |= {name: "the loader computes what the model holds from it" for name in names - self.refused.keys()}
        elif func not in _FILLS:
            self._computed.append(target.detach())

    def probed(self) -> Probed:
        """Return what was recorded; what is changed once more after it was written is refused."""
        for changed in self._computed:
            low, high = _extent(changed)
            for one in self.written:
                start, stop = _extent(one.target)
                if memory_of(one.target) == memory_of(changed) and start < high and low < stop:
                    self.refused.setdefault(one.name, "the loader computes what the model holds from it")
        return Probed([one for one in self.written if one.name not in self.refused], self.refused)


def _written_by(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[torch.Tensor]:
    """Return the tensors that an operation writes to, of those that were there before; some write to lists of them."""
    written: list[torch.Tensor] = []
    for number, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            value = args[number] if number < len(args) else kwargs.get(argument.name)
            written += [tensor for tensor in tree_leaves(value) if isinstance(tensor, torch.Tensor)]
    return written


def _extent(tensor: torch.Tensor) -> tuple[int, int]:
    """Return the range of the storage's elements that a tensor lies in."""
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    start = int(tensor.storage_offset())
    return start, start + last + 1


def _short(tensor: torch.Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
