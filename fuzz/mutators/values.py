"""JSON values changed as such: numbers at limits, other types, other orders, other shapes."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from random import Random
from typing import Any

from fuzz.mutators.streams import changed_bytes, changed_number

__all__ = ["changed_text", "changed_value", "places_in"]

_TEXTS = (
    *("", "\0", "a", "..", "../x", "/etc/passwd", "CON", "a/b", "a\\b", "x.bin", "x.pkl", "model.safetensors", "pytorch_model.bin"),
    *("é", "\ud800", "\u202e", "a" * 512, "a" * 513, "1e999", "-0", "nan", "NaN", "Infinity", "0" * 32, "f" * 64, "config.json"),
    *("tokenizer.json", "README.md", ".", "~", "${x}", "{}", "%s%n", "__metadata__", "file:///x", "http://127.0.0.1:9/x"),
)
_ODD: tuple[Any, ...] = (None, True, False, 0, -1, 1, 1.5, -0.0, 1e308, [], {}, "", [[]], [0], {"": 0}, 1 << 53, -(1 << 63), 1 << 64, 10**400)


def places_in(value: Any, most: int = 4096) -> list[tuple[Any, Any]]:
    """All places of a value of JSON below its top: what holds them, and the key or number."""
    found: list[tuple[Any, Any]] = []
    waiting = [value]
    while waiting and len(found) < most:
        holder = waiting.pop()
        keys = list(holder) if isinstance(holder, dict) else range(len(holder)) if isinstance(holder, list) else ()
        for key in keys:
            found.append((holder, key))
            waiting.append(holder[key])
    return found


def changed_value(value: Any, rng: Random, words: tuple[str, ...] = ()) -> Any:
    """Return a value with a few changes somewhere in it; the value given may be changed in place.

    Args:
        value: A value of JSON; whatever else it holds is moved about, but stays as it is.
        rng: Where chance comes from.
        words: Texts that mean something where this value is read.
    """
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        places = places_in(value)
        if not places:
            return _other(value, rng, words)
        holder, key = rng.choice(places)
        rng.choice(_WAYS)(holder, key, rng, words, places)
    return value


def _replace(holder: Any, key: Any, rng: Random, words: tuple[str, ...], places: list[tuple[Any, Any]]) -> None:
    holder[key] = _other(holder[key], rng, words)


def _delete(holder: Any, key: Any, rng: Random, words: tuple[str, ...], places: list[tuple[Any, Any]]) -> None:
    del holder[key]


def _copy(holder: Any, key: Any, rng: Random, words: tuple[str, ...], places: list[tuple[Any, Any]]) -> None:
    """Put a copy of another place here."""
    other, name = rng.choice(places)
    holder[key] = copy.deepcopy(other[name])


def _swap(holder: Any, key: Any, rng: Random, words: tuple[str, ...], places: list[tuple[Any, Any]]) -> None:
    if isinstance(holder, list) or not isinstance(key, str):
        other = rng.randrange(len(holder))
        holder[key], holder[other] = holder[other], holder[key]
    else:
        other_key = rng.choice(list(holder))
        holder[key], holder[other_key] = holder[other_key], holder[key]


def _add(holder: Any, key: Any, rng: Random, words: tuple[str, ...], places: list[tuple[Any, Any]]) -> None:
    item = copy.deepcopy(holder[key]) if rng.random() < 0.6 else _other(holder[key], rng, words)
    if isinstance(holder, list):
        holder.insert(rng.randrange(len(holder) + 1), item)
    else:
        names = [*holder, *words, *_TEXTS]
        holder[rng.choice(names)] = item


def _rename(holder: Any, key: Any, rng: Random, words: tuple[str, ...], places: list[tuple[Any, Any]]) -> None:
    if isinstance(holder, dict):
        holder[rng.choice((*words, *_TEXTS)) if rng.random() < 0.7 else f"{key}x"] = holder.pop(key)
    else:
        _replace(holder, key, rng, words, places)


def _wrap(holder: Any, key: Any, rng: Random, words: tuple[str, ...], places: list[tuple[Any, Any]]) -> None:
    for _ in range(rng.choice((1, 1, 2, 9, 200))):
        holder[key] = [holder[key]] if rng.random() < 0.5 else {"a": holder[key]}


def _many(holder: Any, key: Any, rng: Random, words: tuple[str, ...], places: list[tuple[Any, Any]]) -> None:
    times = rng.choice((3, 9, 65, 1001))
    if isinstance(holder[key], list) and len(holder[key]) * times < 5000:
        holder[key] = [copy.deepcopy(item) for _ in range(times) for item in holder[key]]
    elif isinstance(holder[key], str) and len(holder[key]) * times < 5000:
        holder[key] = holder[key] * times


_WAYS: tuple[Callable[..., None], ...] = (*(_replace,) * 6, _delete, _copy, _copy, _swap, _add, _add, _rename, _wrap, _many)


def _other(value: Any, rng: Random, words: tuple[str, ...]) -> Any:
    """A value in the place of this one, mostly of its type."""
    if rng.random() < 0.2:
        return copy.deepcopy(rng.choice(_ODD))
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return changed_number(value, rng)
    if isinstance(value, float):
        return rng.choice((value * rng.choice((-1, 2, 1e30, 1e-30)), 0.0, 1e39, -1e39, 1e-46, float(rng.randrange(-9, 9)) / 4))
    if isinstance(value, str):
        if rng.random() < 0.6 and words:
            return rng.choice(words)
        if rng.random() < 0.4:
            return rng.choice(_TEXTS)
        return changed_bytes(value.encode("utf-8", "surrogatepass"), rng).decode("utf-8", "replace")
    return copy.deepcopy(rng.choice(_ODD))


def changed_text(data: bytes, rng: Random, words: tuple[str, ...] = ()) -> bytes:
    """Change a text of JSON: what it says, mostly; else how it is spelt, or its bytes."""
    if rng.random() < 0.85:
        try:
            value = json.loads(data)
        except (ValueError, RecursionError):
            return changed_bytes(data, rng)
        value = changed_value(value, rng, words)
        indent = 2 if rng.random() < 0.2 else None
        try:
            return json.dumps(value, indent=indent, ensure_ascii=rng.random() < 0.5).encode("utf-8", "surrogatepass")
        except (RecursionError, ValueError):
            return data
    if rng.random() < 0.3:  # two equal keys
        return data.replace(b"{", b'{"' + rng.choice(words or _TEXTS[:2]).encode("utf-8", "surrogatepass") + b'":1,', 1)
    return changed_bytes(data, rng)
