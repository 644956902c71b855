"""Names of tensors in parts, as they are compared where two checkpoints call the same tensors differently."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain

from deltapack.checkpoint.tensors import TensorInfo

__all__ = ["NUMBER", "Key", "Parts", "Side", "fits", "joined", "kind_of", "parts_of", "plain_keys", "shown", "template_of"]

Parts = tuple[str, ...]
"""A name, cut at its dots and behind each `/`: the folders of a tensor in a sub-folder are parts of its name."""
NUMBER = "\0"
"""Stands for a part that is a number, in templates; no name holds a NUL."""
_WRAPPERS: tuple[Parts, ...] = (
    ("_orig_mod",),
    ("module",),
    ("_fsdp_wrapped_module",),
    ("_checkpoint_wrapped_module",),
    ("_forward_module",),
    ("base_model", "model"),
    ("base_layer",),
)
"""What torch.compile, data parallel training, activation checkpointing and PEFT put into names, anywhere."""
_STATES: tuple[Parts, ...] = (("model_state_dict",), ("state_dict",), ("model_state",))
"""What a training loop puts in front of all names of a model."""
_ENDS: Mapping[str, Parts] = {
    "gamma": ("weight",),
    "beta": ("bias",),
    "weight_g": ("parametrizations", "weight", "original0"),
    "weight_v": ("parametrizations", "weight", "original1"),
}
"""Older names of parameters: of layer norms, and of torch's weight norm."""
_MARKS = {run[0] for run in (*_WRAPPERS, *_STATES)} | _ENDS.keys()
"""Names without one of these parts are plain."""


@dataclass(frozen=True)
class Key:
    """A tensor with the name by which it is compared.

    Attributes:
        name: Its name in its checkpoint.
        info: Its type and shape.
        parts: The name that is compared.
        told: What was done to the name to get there, in words; a NUL stands for the side.
    """

    name: str
    info: TensorInfo
    parts: Parts
    told: tuple[str, ...] = ()

    @cached_property
    def template(self) -> Parts:
        """The parts with `NUMBER` for each number."""
        return template_of(self.parts)

    @cached_property
    def digits(self) -> Parts:
        """The numbers among the parts, in order."""
        return tuple(part for part in self.parts if _is_number(part))


@dataclass(frozen=True)
class Side:
    """The names of one checkpoint.

    Attributes:
        label: What messages call it.
        free: Keys by name of tensors that have no partner yet.
        taken: Keys of those that have one.
        aside: Keys of those that get none, as nothing of their shape is free on the other side, or too much.
    """

    label: str
    free: Mapping[str, Key]
    taken: Mapping[str, Key]
    aside: Mapping[str, Key]

    def take(self, names: Iterable[str]) -> Side:
        """Return the side with these free names taken."""
        kept, moved = self._split(set(names))
        return replace(self, free=kept, taken={**self.taken, **moved})

    def put_aside(self, names: Iterable[str]) -> Side:
        """Return the side with these free names aside."""
        kept, moved = self._split(set(names))
        return replace(self, free=kept, aside={**self.aside, **moved})

    def _split(self, names: set[str]) -> tuple[dict[str, Key], dict[str, Key]]:
        kept = {name: key for name, key in self.free.items() if name not in names}
        return kept, {name: key for name, key in self.free.items() if name in names}

    def all_keys(self) -> Iterator[Key]:
        """Give every key."""
        return chain(self.free.values(), self.taken.values(), self.aside.values())


def _is_number(part: str) -> bool:
    return part.isascii() and part.removesuffix("/").isdigit()


def template_of(parts: Parts) -> Parts:
    """Return the parts with `NUMBER` for each number."""
    return tuple(NUMBER if _is_number(part) else part for part in parts)


def parts_of(name: str) -> Parts:
    """Return a name in parts.

    >>> parts_of("unet/module.w")
    ('unet/', 'module', 'w')
    """
    return tuple(re.split(r"(?<=/)|\.", name))


def joined(parts: Parts) -> str:
    """Return the name that parts were cut from."""
    return ".".join(parts).replace("/.", "/")


def shown(parts: Parts) -> str:
    """Return parts as a message shows them, at most 80 characters of them."""
    text = joined(tuple("*" if part == NUMBER else part for part in parts))
    return repr(text if len(text) <= 80 else text[:77] + "...")


def kind_of(info: TensorInfo) -> tuple[object, ...]:
    """Return what two tensors must have in common to be partners: rank, kind of type, and shape but for the rows of a matrix."""
    return (info.dtype.is_delta, len(info.shape), info.shape if len(info.shape) < 2 else info.shape[1:])


def fits(one: TensorInfo, other: TensorInfo) -> bool:
    """Whether two shapes are equal but for the rows of a matrix, as when a vocabulary grew, and both types are floats or neither is."""
    return kind_of(one) == kind_of(other)


def plain_keys(tensors: Mapping[str, TensorInfo]) -> dict[str, Key]:
    """Return keys without wrappers and with today's names of parameters; where two would be one, both stay as they are."""
    keys = {name: _plain(name, info) for name, info in tensors.items()}
    counts = Counter(key.parts for key in keys.values())
    plain = {name: key if counts[key.parts] == 1 else Key(name, key.info, parts_of(name)) for name, key in keys.items()}
    again = Counter(key.parts for key in plain.values())
    return {name: key if again[key.parts] == 1 else Key(name, key.info, parts_of(name)) for name, key in plain.items()}


def _plain(name: str, info: TensorInfo) -> Key:
    whole = parts_of(name)
    if _MARKS.isdisjoint(whole):
        return Key(name, info, whole)
    parts: list[str] = []
    removed: dict[Parts, None] = {}
    start = 0
    while start < len(whole):
        runs = _WRAPPERS if removed or not all(part.endswith("/") for part in parts) else (*_WRAPPERS, *_STATES)
        run = next((run for run in runs if whole[start : start + len(run)] == run), ())
        if run and start + len(run) < len(whole):
            removed[run] = None
            start += len(run)
        else:
            parts.append(whole[start])
            start += 1
    told = tuple(f"removing {shown(run)} from the \0" for run in removed)
    end = _ENDS.get(parts[-1], ())
    if end:
        told = (*told, f"reading {parts[-1]!r} of the \0 as {shown(end)}")
    return Key(name, info, (*parts[:-1], *(end or parts[-1:])), told)
