"""What a pickle holds that is read as data: names, calls, dicts and references, none of them looked up or made."""

from __future__ import annotations

from dataclasses import dataclass, field

__all__ = ["Made", "Pairs", "Reference", "Symbol", "plain_size"]

_MOST_DIMS = 64
"""Dimensions that torch gives to a tensor."""


@dataclass(frozen=True)
class Symbol:
    """The name of a class or function."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


@dataclass(eq=False, slots=True)
class Made:
    """What a call would have returned.

    Attributes:
        what: What would have been called; mostly a `Symbol`.
        args: Its arguments; mostly a tuple.
        state: What it would have been told afterwards (`__setstate__`); None where nothing.
    """

    what: object
    args: object
    state: object = None


@dataclass(eq=False, slots=True)
class Pairs:
    """A dict: its keys and values in the order in which they were set."""

    items: list[tuple[object, object]] = field(default_factory=list)


@dataclass(frozen=True, eq=False, slots=True)
class Reference:
    """What lies outside of the pickle, by what it calls it (a persistent id)."""

    key: object


def plain_size(value: object) -> tuple[int, ...] | None:
    """Return the integers of a `torch.Size`, a tuple or a list; none where it is something else, or one is negative."""
    if isinstance(value, Made) and value.what == Symbol("torch", "Size") and isinstance(value.args, tuple) and len(value.args) == 1:
        value = value.args[0]
    if not isinstance(value, tuple | list) or len(value) > _MOST_DIMS or not all(type(part) is int and part >= 0 for part in value):
        return None
    return tuple(value)
