"""Canonical JSON: one document, one spelling. Implements spec/03-index.md section 3.1."""

from __future__ import annotations

import json
from typing import Any, NoReturn

from deltapack.errors import FormatError

__all__ = ["dump_canonical", "load_canonical"]

_MAX_INT = 1 << 53


def dump_canonical(document: Any) -> bytes:
    """Serialise a document of objects, lists, strings, integers, booleans and null."""
    text = json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    # json.dumps spells the control characters 0x7F and above raw and the others as \u00xx, as the spec says.
    return text.encode("utf-8")


def load_canonical(data: bytes, max_depth: int) -> Any:
    """Parse a canonical document; every other spelling of it is refused.

    Raises:
        FormatError: Rule R4 is broken.
    """
    try:
        document = json.loads(
            data.decode("utf-8"),
            object_pairs_hook=_object,
            parse_float=_refuse,
            parse_constant=_refuse,
        )
        _check(document, max_depth)
        canonical = dump_canonical(document)
    except (ValueError, RecursionError) as error:  # JSON and Unicode errors are ValueErrors, 5,000-digit integers too
        raise FormatError(f"the index is not canonical JSON: {error}", rule="R4") from error
    if canonical != data:
        raise FormatError("the index is not canonical JSON: keys, spaces or escapes differ", rule="R4")
    return document


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a key stands twice")
    return result


def _refuse(token: str) -> NoReturn:
    raise ValueError(f"{token} is not allowed")


def _check(value: Any, depth: int) -> None:
    if isinstance(value, int) and abs(value) >= _MAX_INT:
        raise ValueError("an integer is 2^53 or more")
    if isinstance(value, dict | list):
        if depth == 0:
            raise ValueError("nested too deep")
        for item in value.values() if isinstance(value, dict) else value:
            _check(item, depth - 1)
