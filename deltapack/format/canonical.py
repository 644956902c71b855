"""Canonical JSON: one document, one spelling. Implements spec/03-index.md section 3.1.

An index of 6 kB can unfold to 60 MB of empty lists, which Python would hold in 3 GB. So `load_index` bounds what the format leaves free
before it builds any of it, and hands out the entries of `tensors` a few at a time, so that the first that is none ends the reading.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator
from typing import Any, NoReturn

from deltapack.errors import FormatError, LimitError
from deltapack.limits import Limits

__all__ = ["dump_canonical", "load_canonical", "load_index", "unique_keys"]

_MAX_INT = 1 << 53
_ENTRY_BYTES, _TERM_BYTES, _PIECE_BYTES = 1 << 16, 1 << 9, 1 << 11
"""No entry that keeps the rules is longer than this and so much for each term and each piece of an arranged base that the limits allow: a
name has 512 bytes and takes twice as many where all are escaped, an entry has at most two beside those of pieces (the other in `base`, or
`of`), `stats` are of 64 characters each, shapes of 8 numbers, and the rest is of fixed length. Text of the size of an entry without pieces
is read at a time: with more the garbage collector takes longer than the parser."""
_TOKEN = re.compile(rb'["\[\]{}]|[^"\[\]{},:]+')
_IN_STRING = re.compile(rb'\\.|"', re.DOTALL)


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
        document = _DECODER.decode(data.decode("utf-8"))
        _check(document, max_depth)
        canonical = dump_canonical(document)
    except (ValueError, RecursionError) as error:  # JSON and Unicode errors are ValueErrors, 5,000-digit integers too
        raise _not_canonical(error) from error
    if canonical != data:
        raise _not_canonical("keys, spaces or escapes differ")
    return document


def load_index(data: bytes, limits: Limits) -> tuple[Any, Iterator[Any]]:
    """Parse a canonical document whose last key is `tensors`, a list.

    Returns:
        The document with an empty list in place of `tensors` (the whole document where there is no such key), and the items of the list,
        each parsed when it is asked for: what they break is raised then, also what stands behind the last one.

    Raises:
        FormatError: Rule R4 is broken.
        LimitError: More values or text outside `tensors` than the limits allow.
    """
    start = _find_tensors(data[: limits.index_head_bytes], limits, cut=len(data) > limits.index_head_bytes)
    if start is None:
        return load_canonical(data, limits.json_depth), iter(())
    if data[start : start + 1] != b"[":
        raise FormatError("'tensors' has the wrong type", rule="R4", expected="list")
    return load_canonical(data[:start] + b"[]}", limits.json_depth), _items(data, start, limits)


def _find_tensors(data: bytes, limits: Limits, *, cut: bool, entry: bool = False) -> int | None:
    """Return where the value of the outermost key `tensors` begins, `None` where there is none; count the values before it.

    Of an `entry`, return where it ends and count all its values.
    """
    where = "in one entry" if entry else "outside `tensors`"
    depth = values = at = 0
    while match := _TOKEN.search(data, at):
        token, at = match[0], match.end()
        if token == b'"':
            begin, at = at, next((found.end() for found in _IN_STRING.finditer(data, at) if found[0] == b'"'), len(data))
            is_key = data[at : at + 1] == b":"
            if is_key and depth == 1 and data[begin : at - 1] == b"tensors" and not entry:
                return at + 1
            values += not is_key
        elif token in (b"]", b"}"):
            depth -= 1
            if depth <= 0 and cut:
                raise _not_canonical("bytes follow the document")
            if depth <= 0 and entry:
                return at
        else:
            depth += token in (b"[", b"{")
            values += 1
        if depth > limits.json_depth:
            raise _not_canonical("nested too deep")
        if values > limits.index_values:
            raise LimitError("the index has too many values", rule="R4", expected=f"at most {limits.index_values} {where}")
    if cut:
        what = f"at most {limits.index_head_bytes} bytes outside `tensors`"
        raise LimitError("the index has too long values", rule="R4", expected=what)
    return None


def _items(data: bytes, start: int, limits: Limits) -> Iterator[Any]:
    """Yield the items of the list at `start`, which end the document."""
    # Only a key can be spelled so, for a string escapes its quotes; so this counts the entries before a million of them are parsed.
    if data.count(b'"kind":', start) > limits.tensors:
        raise LimitError("too many tensors", rule="R6", expected=f"at most {limits.tensors}")
    at, usual = start + 1, _ENTRY_BYTES + _TERM_BYTES * limits.terms
    most, last = usual, data.startswith(b"]", at)
    while not last:
        piece, most = data[at : at + most], usual
        try:
            items, last = _whole_items(codecs.utf_8_decode(piece, "strict", at + len(piece) == len(data))[0])
            for item in items:
                _check(item, limits.json_depth - 2)
            spelled = dump_canonical(items)[1:-1]
        except (ValueError, RecursionError) as error:
            raise _not_canonical(error) from error
        if not items:
            # Once more, with the pieces that an entry may have, if its values are few enough to be built.
            longest = usual + _PIECE_BYTES * limits.pieces
            end = _find_tensors(data[at : at + longest], limits, cut=False, entry=True)
            if len(piece) > usual or end is None or not usual <= end < longest:
                raise _not_canonical("an entry is malformed, or longer than any can be")
            most = end + 1
            continue
        if not data.startswith(spelled, at):
            raise _not_canonical("keys, spaces or escapes differ")
        yield from items
        at += len(spelled) + (not last)
    if not data.endswith(b"]}") or at + 2 != len(data):
        raise _not_canonical("`tensors` is not the last key")


def _whole_items(text: str) -> tuple[list[Any], bool]:
    """Return the items of a list that end inside `text` before a `,` or `]`, and whether the last of them ends the list."""
    items, at = [], 0
    while at < len(text):
        try:
            item, at = _DECODER.raw_decode(text, at)
        except json.JSONDecodeError:
            break  # cut; malformed if it still cannot be read where the next piece begins with it
        if text[at : at + 1] not in (",", "]"):
            break
        items.append(item)
        if text[at] == "]":
            return items, True
        at += 1
    return items, False


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Make an object of JSON; raises ValueError where a key stands twice."""
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a key stands twice")
    return result


def _refuse(token: str) -> NoReturn:
    raise ValueError(f"{token} is not allowed")


_DECODER = json.JSONDecoder(object_pairs_hook=unique_keys, parse_float=_refuse, parse_constant=_refuse)


def _check(value: Any, depth: int) -> None:
    """Check the integers in a document, and that it is nested at most `depth` deep; scalars are 0 deep."""
    if type(value) is int:
        if not -_MAX_INT < value < _MAX_INT:
            raise ValueError("an integer is 2^53 or more")
    elif type(value) is dict or type(value) is list:
        if depth == 0:
            raise ValueError("nested too deep")
        for item in value.values() if type(value) is dict else value:
            if type(item) is not str:  # most are, and a call for each would take a tenth of the time of reading an index
                _check(item, depth - 1)


def _not_canonical(why: object) -> FormatError:
    return FormatError(f"the index is not canonical JSON: {why}", rule="R4")
