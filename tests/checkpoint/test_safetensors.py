"""The header parser and writer against the safetensors library, and against files that lie."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import HealthCheck, given
from hypothesis import strategies as st
from support.headers import RawSafetensors
from support.laws import examples

from deltapack.checkpoint.files import open_to_read
from deltapack.checkpoint.layout import NewTensor
from deltapack.checkpoint.reader import open_checkpoint
from deltapack.checkpoint.safetensors import header_bytes, parse_safetensors
from deltapack.dtypes import BY_NAME
from deltapack.errors import CheckpointError, DeltapackError, LimitError, UnsupportedError
from deltapack.limits import DEFAULT_LIMITS


def entry(dtype: object = "F32", shape: object = (2,), offsets: object = (0, 8)) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


BAD_HEADERS: dict[str, tuple[object, bytes, str]] = {
    "not json": (b"{nope}", b"", "not valid JSON: Expecting"),
    "not utf-8": (b'{"\xff": 1}', b"", "not valid JSON: 'utf-8'"),
    "a list": (b"[]", b"", "not a JSON object"),
    "leading space": (b" {}", b"", "not a JSON object"),
    "empty": (b"", b"", "not a JSON object"),
    "nan": (b'{"a": NaN}', b"", "NaN is not JSON"),
    "deep": (b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}", b"", "not valid JSON: maximum recursion"),
    "huge integer": (b'{"a":{"dtype":"F32","shape":[' + b"9" * 5000 + b'],"data_offsets":[0,8]}}', bytes(8), "Exceeds the limit"),
    "duplicate tensor": (b'{"a":%b,"a":%b}' % ((json.dumps(entry()).encode(),) * 2), bytes(8), "'a' appears twice"),
    "duplicate field": (b'{"a":{"dtype":"F32","dtype":"F32","shape":[2],"data_offsets":[0,8]}}', bytes(8), "'dtype' appears twice"),
    "lone surrogate": (b'{"\\ud800":%b}' % json.dumps(entry()).encode(), bytes(8), "not valid Unicode"),
    "nul in name": ({"a\0b": entry()}, bytes(8), "empty or holds a NUL"),
    "empty name": ({"": entry()}, bytes(8), "empty or holds a NUL"),
    "entry is null": ({"a": None}, b"", "entry is wrong"),
    "missing field": ({"a": {"dtype": "F32", "shape": [2]}}, bytes(8), "entry is wrong"),
    "extra field": ({"a": {**entry(), "more": 1}}, bytes(8), "entry is wrong"),
    "metadata not strings": ({"__metadata__": {"a": 1}}, b"", "__metadata__ is not"),
    "metadata is a list": ({"__metadata__": []}, b"", "__metadata__ is not"),
    "negative dimension": ({"a": entry(shape=[-2])}, bytes(8), "shape is wrong"),
    "float dimension": ({"a": entry(shape=[2.0])}, bytes(8), "shape is wrong"),
    "bool dimension": ({"a": entry(shape=[True], offsets=[0, 4])}, bytes(4), "shape is wrong"),
    "shape is a string": ({"a": entry(shape="2")}, bytes(8), "shape is wrong"),
    "shape too large": ({"a": entry(shape=[3])}, bytes(8), "do not fit the shape"),
    "three offsets": ({"a": entry(offsets=[0, 8, 8])}, bytes(8), "offsets are wrong"),
    "bool offset": ({"a": entry(offsets=[False, 8])}, bytes(8), "offsets are wrong"),
    "offsets reversed": ({"a": entry(offsets=[8, 0])}, bytes(8), "offsets are wrong"),
    "offset not a number": ({"a": entry(offsets=[None, 8])}, bytes(8), "offsets are wrong"),
    "hole at the start": ({"a": entry(offsets=[8, 16])}, bytes(16), "a hole before"),
    "hole": ({"a": entry(), "b": entry(offsets=[16, 24])}, bytes(24), "a hole before"),
    "overlap": ({"a": entry(), "b": entry(offsets=[4, 12])}, bytes(12), "two tensors share bytes"),
    "same bytes": ({"a": entry(), "b": entry()}, bytes(8), "two tensors share bytes"),
    "file cut": ({"a": entry()}, bytes(7), "the file size does not fit"),
    "bytes after the end": ({"a": entry()}, bytes(9), "the file size does not fit"),
    "bytes without tensors": ({}, bytes(1), "the file size does not fit"),
}


@pytest.mark.parametrize("case", BAD_HEADERS)
def test_a_bad_header_is_refused(case: str, raw_safetensors: RawSafetensors) -> None:
    header, data, what = BAD_HEADERS[case]
    path = raw_safetensors(header, data)
    with pytest.raises(CheckpointError, match=what) as caught:
        open_checkpoint(path)
    assert str(path) in str(caught.value)


def test_an_error_names_tensor_expected_and_found(raw_safetensors: RawSafetensors) -> None:
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(raw_safetensors({"w": entry(shape=[3])}, bytes(8)))
    assert (caught.value.tensor, caught.value.found) == ("w", 8)
    assert "12 bytes" in str(caught.value.expected)


@pytest.mark.parametrize("dtype", ["f32", "F 4", "X" * 33, "", None, 1, []])
def test_an_unknown_element_type_is_unsupported(dtype: object, raw_safetensors: RawSafetensors) -> None:
    with pytest.raises(UnsupportedError):
        open_checkpoint(raw_safetensors({"a": entry(dtype=dtype)}, bytes(8)))


@pytest.mark.parametrize(
    ("content", "hint"),
    [
        (b"", "too short"),
        (b"1234567", "found 7"),
        ((1 << 63).to_bytes(8, "little") + b"{}", "damaged"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "git-lfs"),
        (b"<!DOCTYPE html><html></html>", "web page"),
        (b"PK\x03\x04" + bytes(30), ".pt"),
        (b"GGUF" + bytes([3, 0, 0, 0, 0, 0, 0, 0]), "GGUF"),
    ],
)
def test_what_is_not_safetensors_is_told(content: bytes, hint: str, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(path)
    assert caught.value.path == path and hint in f"{caught.value} {caught.value.hint}"


@pytest.mark.parametrize(
    ("limit", "header"),
    [
        ({"header_bytes": 10}, {"a": entry()}),
        ({"tensors": 0}, {"a": entry()}),
        ({"ndim": 0}, {"a": entry()}),
        ({"numel": 1}, {"a": entry()}),
        ({"name_bytes": 1}, {"ab": entry()}),
    ],
)
def test_limits_are_enforced(limit: dict[str, int], header: object, raw_safetensors: RawSafetensors) -> None:
    with pytest.raises(LimitError):
        open_checkpoint(raw_safetensors(header, bytes(8)), replace(DEFAULT_LIMITS, **limit))


def test_a_zero_dimension_beside_a_huge_one_holds_nothing(raw_safetensors: RawSafetensors) -> None:
    path = raw_safetensors({"a": entry(shape=[1 << 50, 0], offsets=[0, 0])})
    with open_checkpoint(path) as checkpoint:
        assert checkpoint.read("a").size == 0


def test_the_order_is_that_of_the_data_not_of_the_header(raw_safetensors: RawSafetensors) -> None:
    path = raw_safetensors({"b": entry(offsets=[8, 16]), "a": entry()}, np.arange(4, dtype="<f4").tobytes())
    with open_checkpoint(path) as checkpoint:
        assert checkpoint.weight_shards() == [("model.safetensors", ["a", "b"])]
        assert checkpoint.read("b").tolist() == [2, 3]


names = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=20)
shapes = st.lists(st.integers(0, 4), max_size=3).map(tuple)
tensors = st.lists(
    st.builds(NewTensor, names, st.sampled_from(list(BY_NAME.values())), shapes), unique_by=lambda tensor: tensor.name
).filter(lambda found: all(tensor.name != "__metadata__" for tensor in found))


@examples(50, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(tensors, st.dictionaries(names, names, max_size=2))
def test_a_written_header_is_parsed_back(tmp_path: Path, written: list[NewTensor], metadata: dict[str, str]) -> None:
    header = header_bytes(written, metadata)
    assert len(header) % 8 == 0
    path = tmp_path / "x.safetensors"
    path.write_bytes(header + bytes(sum(tensor.nbytes for tensor in written)))
    file = open_to_read(path)
    try:
        parsed = parse_safetensors(file)
    finally:
        file.close()
    found = {info.name: (info.dtype, info.shape) for info, _ in parsed.tensors}
    assert found == {tensor.name: (tensor.dtype, tensor.shape) for tensor in written}
    assert parsed.metadata == metadata


def test_a_written_header_is_read_by_the_library(tmp_path: Path) -> None:
    wanted = {"a": np.arange(6, dtype="<f4").reshape(2, 3), "b": np.array([1, 2], "<i8"), "c": np.array(7, "|u1")}
    order = ["b", "a", "c"]
    kinds = {"a": "f32", "b": "i64", "c": "u8"}
    header = header_bytes([NewTensor(name, BY_NAME[kinds[name]], wanted[name].shape) for name in order], {"format": "pt"})
    (tmp_path / "x.safetensors").write_bytes(header + b"".join(wanted[name].tobytes() for name in order))
    found = safetensors.numpy.load_file(tmp_path / "x.safetensors")
    assert {name: (array.shape, array.tobytes()) for name, array in found.items()} == {
        name: (array.shape, array.tobytes()) for name, array in wanted.items()
    }


@examples(200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_only_our_errors_escape_from_a_mutated_file(tmp_path: Path, data: st.DataObject) -> None:
    text = json.dumps({"__metadata__": {"a": "b"}, "a": entry(), "b": entry("BF16", [2, 2], [8, 16])}).encode()
    raw = bytearray(len(text).to_bytes(8, "little") + text + bytes(16))
    for _ in range(data.draw(st.integers(1, 3))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.sampled_from(b'\0 {}[]",:019-eE.\\\xff\x7f'))
    del raw[data.draw(st.integers(0, len(raw))) :]
    path = tmp_path / "x.safetensors"
    path.write_bytes(raw)
    try:
        with open_checkpoint(path) as checkpoint:
            for name in checkpoint.tensors:
                checkpoint.read(name)
    except DeltapackError as error:
        assert error.path == path
