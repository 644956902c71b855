"""One document, one spelling."""

from __future__ import annotations

import json
import tracemalloc
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.laws import examples

from deltapack.errors import DeltapackError, FormatError, LimitError
from deltapack.format import canonical
from deltapack.format.canonical import dump_canonical, load_canonical, load_index
from deltapack.limits import DEFAULT_LIMITS

leaves = st.none() | st.booleans() | st.integers(-(2**53) + 1, 2**53 - 1) | st.text(st.characters(codec="utf-8"))
documents = st.recursive(
    leaves, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4), max_leaves=20
)


@given(documents)
def test_round_trip(document: Any) -> None:
    data = dump_canonical(document)
    loaded = load_canonical(data, 64)
    assert dump_canonical(loaded) == data
    assert json.dumps(loaded) == json.dumps(json.loads(data))


@given(documents)
def test_other_spellings_are_refused(document: Any) -> None:
    canonical = dump_canonical(document)
    for text in (json.dumps(document, indent=1), json.dumps(document), " " + canonical.decode(), canonical.decode() + "\n"):
        if text.encode() != canonical:
            with pytest.raises(FormatError):
                load_canonical(text.encode(), 64)


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


def whole_index(data: bytes, **limits: int) -> Any:
    """Read an index to its end and put it together again."""
    top, found = load_index(data, replace(DEFAULT_LIMITS, **limits))
    rows = list(found)
    if isinstance(top, dict) and "tensors" in top:
        assert top["tensors"] == []
        return top | {"tensors": rows}
    assert not rows
    return top


indices = st.fixed_dictionaries({"recipe": documents, "tensors": st.lists(documents, max_size=6)}, optional={"optional": documents})
ENTRY_BYTES = [1, 7, 64, 1 << 16]


@given(indices, st.sampled_from(ENTRY_BYTES))
def test_index_in_pieces(index: Any, size: int) -> None:
    """Wherever the pieces end, in a number, a character of four bytes or an escape, the items are the same; longer ones are refused."""
    data = dump_canonical(index)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(canonical, "_ENTRY_BYTES", size)
        longest = max((len(dump_canonical(item)) for item in index["tensors"]), default=0)
        if longest < size:
            assert json.dumps(whole_index(data, json_depth=64, terms=0, pieces=0)) == json.dumps(json.loads(data))
        else:
            with pytest.raises(FormatError) as caught:
                whole_index(data, json_depth=64, terms=0, pieces=0)
            assert caught.value.rule == "R4"


@given(indices, st.sampled_from(ENTRY_BYTES))
def test_long_entries_are_read_once_more(index: Any, size: int) -> None:
    """An entry that may have pieces is read however long it is, if its values are few."""
    data = dump_canonical(index)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(canonical, "_ENTRY_BYTES", size)
        assert json.dumps(whole_index(data, json_depth=64, terms=0)) == json.dumps(json.loads(data))


def test_values_of_long_entries_are_counted() -> None:
    """What is longer than an entry without pieces is counted before it is built; what follows it does not count."""
    few: list[list[int]] = [[]] * 60_000
    many: list[list[int]] = [[]] * 66_000
    assert len(whole_index(dump_canonical({"tensors": [few, few]}))["tensors"]) == 2
    with pytest.raises(LimitError, match="in one entry"):
        whole_index(dump_canonical({"tensors": [few, {"tensors": many}]}))


@examples(300)
@given(indices, st.data())
def test_damaged_index_is_refused_or_canonical(index: Any, data: st.DataObject) -> None:
    text = bytearray(dump_canonical(index))
    at = data.draw(st.integers(0, len(text) - 1))
    pieces = [b"", b" ", b"]", b"}", b",", b"1", b'"', b"\\", b":", b"{", b"[", b"\xff", b'"tensors":[],', b"[]}"]
    piece = data.draw(st.sampled_from(pieces))
    text[at : at + data.draw(st.integers(0, 2))] = piece
    try:
        found = whole_index(bytes(text), json_depth=64)
    except DeltapackError as error:
        assert error.rule == "R4"
    else:
        assert dump_canonical(found) == bytes(text)


def test_depth_counts_from_the_outside() -> None:
    """The list of `tensors` has depth 2 in its document, its items begin there."""
    for text in (b'{"recipe":%s,"tensors":[]}', b'{"tensors":[1,%s]}'):
        inner = 7 if b"recipe" in text else 6
        whole_index(text % (b"[" * inner + b"]" * inner))
        with pytest.raises(FormatError, match="deep"):
            whole_index(text % (b"[" * (inner + 1) + b"]" * (inner + 1)))


@pytest.mark.parametrize(
    "free",
    [b'[1,"a",{"b":null}]', b'[[[]],{},{"tensors":"x"}]', b'["\\"tensors\\":[","\\\\",1,2]'],
)
def test_values_outside_tensors_are_counted(free: bytes) -> None:
    """Containers and scalars count, keys do not, nor what stands in strings; `tensors` is free."""

    def count(value: Any) -> int:
        return 1 + sum(map(count, value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()))

    data = b'{"recipe":%s,"tensors":[[1,2,3,4,5,6],[7,8,9]]}' % free
    values = 1 + count(json.loads(free))
    assert whole_index(data, index_values=values) == json.loads(data)
    with pytest.raises(LimitError) as caught:
        whole_index(data, index_values=values - 1)
    assert caught.value.rule == "R4"


def test_text_before_tensors_is_bounded() -> None:
    data = b'{"created_by":"%s","tensors":[]}' % (b"a" * 100)
    start = data.index(b"[]")
    assert whole_index(data, index_head_bytes=start) == json.loads(data)
    with pytest.raises(LimitError):
        whole_index(data, index_head_bytes=start - 1)


@pytest.mark.parametrize("inner", [b"[]", b'{"":{}}', b"0"])
@pytest.mark.parametrize(
    ("around", "error"),
    [
        (b'{"recipe":[%s],"tensors":[]}', LimitError),
        (b'{"recipe":[],"tensors":[[%s]]}', LimitError),
        (b'{"recipe":[],"tensors":[%s]}', None),
        (b"[%s]", LimitError),
    ],
)
def test_memory_for_an_index_of_many_values(inner: bytes, around: bytes, error: type[DeltapackError] | None) -> None:
    """Whatever unfolds to megabytes of values, no more than a piece of it is ever built."""
    data = around % b",".join([inner] * (5_000_000 // (len(inner) + 1)))
    tracemalloc.start()
    try:
        if error is None:
            assert next(load_index(data, DEFAULT_LIMITS)[1]) == json.loads(inner)
        else:
            with pytest.raises(error):
                whole_index(data, index_values=2000)
        assert tracemalloc.get_traced_memory()[1] < 10 << 20
    finally:
        tracemalloc.stop()
