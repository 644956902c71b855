"""One document, one spelling."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deltapack.errors import DeltapackError, FormatError
from deltapack.format.canonical import dump_canonical, load_canonical

leaves = st.none() | st.booleans() | st.integers(-(2**53) + 1, 2**53 - 1) | st.text(st.characters(codec="utf-8"))
documents = st.recursive(
    leaves, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4), max_leaves=20
)


@settings(deadline=None)
@given(documents)
def test_round_trip(document: Any) -> None:
    data = dump_canonical(document)
    loaded = load_canonical(data, 64)
    assert dump_canonical(loaded) == data
    assert json.dumps(loaded) == json.dumps(json.loads(data))


@settings(deadline=None)
@given(documents)
def test_other_spellings_are_refused(document: Any) -> None:
    canonical = dump_canonical(document)
    for text in (json.dumps(document, indent=1), json.dumps(document), " " + canonical.decode(), canonical.decode() + "\n"):
        if text.encode() != canonical:
            with pytest.raises(FormatError):
                load_canonical(text.encode(), 64)


@settings(deadline=None)
@given(st.binary(max_size=40))
def test_any_bytes_are_refused_or_canonical(data: bytes) -> None:
    try:
        document = load_canonical(data, 8)
    except DeltapackError as error:
        assert error.rule == "R4"
    else:
        assert dump_canonical(document) == data


def test_keys_are_sorted_by_utf8_bytes() -> None:
    assert dump_canonical({"\U00010000": 1, "\uffff": 2}) == '{"\uffff":2,"\U00010000":1}'.encode()


def test_escapes_are_the_shortest() -> None:
    text = '"\\\b\f\n\r\t\x00\x1f/\x7fé'
    assert dump_canonical(text) == b'"\\"\\\\\\b\\f\\n\\r\\t\\u0000\\u001f/\x7f' + 'é"'.encode()
    assert load_canonical(dump_canonical(text), 8) == text


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xef\xbb\xbf{}",
        b"{}\0",
        b"\xff\xfe{\x00}\x00",
        b'"\xff"',
        b'"\xed\xa0\x80"',
        rb'"\ud800"',
        rb'{"\udfff":1}',
        rb'"\u0041"',
        rb'"\u001F"',
        rb'"\/"',
        b'"\x01"',
        b'{"a":1,"a":1}',
        b'{"a":{"b":1,"b":2}}',
        b'{"b":1,"a":1}',
        b"1.0",
        b"1e3",
        b"-0",
        b"-0.0",
        b"01",
        b"+1",
        b"NaN",
        b"[Infinity]",
        b"-Infinity",
        str(2**53).encode(),
        str(-(2**53)).encode(),
        b"[" + b"9" * 5000 + b"]",
        b"[" * 100_000,
        b"[" * 100_000 + b"]" * 100_000,
        b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
        b"[1,]",
        b"{'a':1}",
        b"[1] // comment",
        b"\xc0\x80",
    ],
    ids=lambda data: repr(data[:24]),
)
def test_hostile_documents(data: bytes) -> None:
    with pytest.raises(FormatError) as caught:
        load_canonical(data, 8)
    assert caught.value.rule == "R4"


def test_depth() -> None:
    assert load_canonical(b"[" * 8 + b"]" * 8, 8) == [[[[[[[[]]]]]]]]
    with pytest.raises(FormatError, match="deep"):
        load_canonical(b"[" * 9 + b"]" * 9, 8)


def test_largest_integers() -> None:
    data = f"[{2**53 - 1},{1 - 2**53}]".encode()
    assert load_canonical(data, 8) == [2**53 - 1, 1 - 2**53]
