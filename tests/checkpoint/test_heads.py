"""Heads of weight files are kept byte for byte, and files written behind them are the files that they are from."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.headers import RawSafetensors

from deltapack.checkpoint import Checkpoint, Head, Shard, open_checkpoint, open_writer, plan_shards, shards_of_heads
from deltapack.checkpoint.heads import BARE
from deltapack.dtypes import BY_NAME
from deltapack.errors import FormatError, InputChangedError, LimitError, OutputError
from deltapack.limits import Limits

F32 = BY_NAME["f32"]
Rows = list[tuple[str, str, list[int], int, int]]
"""Name, type, shape and offsets of tensors, in the order of the header."""

ODD: Rows = [  # elements in another order than the header, scalars, no elements, types of all widths, not aligned
    ("z", "F32", [2, 3], 9, 33),
    ("flag", "BOOL", [3], 0, 3),
    ("none", "F64", [0, 4], 9, 9),
    ("a", "BF16", [3], 3, 9),
    ("scalar", "F64", [], 33, 41),
    ("f4", "F4", [2, 3], 41, 44),
    ("new", "X7", [8], 44, 51),
    ("complex", "C64", [1], 51, 59),
    ("last", "U8", [0], 59, 59),
]


def header(rows: Rows, metadata: object = None) -> dict[str, Any]:
    start = {} if metadata is None else {"__metadata__": metadata}
    return start | {name: {"shape": shape, "dtype": dtype, "data_offsets": [begin, end]} for name, dtype, shape, begin, end in rows}


def framed(text: bytes) -> bytes:
    return len(text).to_bytes(8, "little") + text


def head_of(rows: Rows, name: str = "model.safetensors", metadata: object = None) -> Head:
    return Head(name, framed(json.dumps(header(rows, metadata)).encode()))


def f32(name: str, begin: int, count: int) -> tuple[str, str, list[int], int, int]:
    return (name, "F32", [count], 4 * begin, 4 * (begin + count))


def restored(source: Checkpoint, out: Path) -> None:
    """Write the tensors of a checkpoint behind its heads, in small pieces."""
    heads = source.heads()
    shards, indices = shards_of_heads(heads, source.tensors.values(), path=source.path, aliases=source.aliases, folders=source.folders)
    with open_writer(out, shards, indices=indices, aliases={"of": "others"}, metadata={"": {"no": "use"}}) as writer:
        for name, info in sorted(source.tensors.items(), reverse=True):
            for start in range(0, info.numel, 2):
                writer.write(name, start, source.read(name, start, min(info.numel, start + 2)))


def files_of(folder: Path) -> dict[str, bytes]:
    paths = [path for path in folder.rglob("*") if path.is_file() and not path.name.startswith(".")]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


TEXTS = {
    "plain": json.dumps(header(ODD)).encode(),
    "metadata": json.dumps(header(ODD, {"format": "pt", "ü": "\u2028", "x": ""}), ensure_ascii=False).encode(),
    "metadata-last": json.dumps(header(ODD) | {"__metadata__": {}}, indent=1).encode(),
    "metadata-null": json.dumps(header(ODD) | {"__metadata__": None}).encode(),
    "second-name": json.dumps(header(ODD, {"b.weight": "z", "deltapack.tied": '["b.weight"]'})).encode(),
    "spaces": json.dumps(header(ODD)).encode() + b"  \n\t" + b" " * 37,
}


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
@pytest.mark.parametrize("out", ["out", "out.safetensors"])
def test_a_file_is_what_it_was(text: bytes, out: str, raw_safetensors: RawSafetensors, tmp_path: Path) -> None:
    path = raw_safetensors(text, bytes(range(59)), "in.safetensors")
    with open_checkpoint(path) as source:
        assert source.heads() == (Head(BARE, framed(text)),)
        assert (source.head(BARE), source.head("in.safetensors")) == (framed(text), None)
        restored(source, tmp_path / out)
    written = tmp_path / out if out.endswith(".safetensors") else tmp_path / out / BARE
    assert written.read_bytes() == path.read_bytes()


@pytest.mark.parametrize("text", [b"{}", b"{}      ", b'{"__metadata__":{"a":"b"}}'])
def test_a_file_without_tensors(text: bytes, raw_safetensors: RawSafetensors, tmp_path: Path) -> None:
    path = raw_safetensors(text)
    with open_checkpoint(path) as source:
        restored(source, tmp_path / "out.safetensors")
    assert (tmp_path / "out.safetensors").read_bytes() == path.read_bytes()


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    """A folder of shards, with one in which a sub-folder has shards, too, and one with a single file of another name."""
    folder = tmp_path / "in"
    for place, stem in (("", "model"), ("unet/", "diffusion"), ("unet/deep/", "")):
        (folder / place).mkdir(parents=True)
        write = RawSafetensors(folder / place)
        if stem:
            files = [f"{stem}-{number:05d}-of-00002.safetensors" for number in (1, 2)]
            write(header([f32("b", 1, 2), f32("a", 0, 1)], {"second": "a"}), bytes(range(12)), files[0])
            write(json.dumps(header([f32("c", 0, 1)])).encode() + b"   ", b"cccc", files[1])
            index = {"weight_map": {"c": files[1], "b": files[0], "a": files[0]}, "metadata": {"total_size": -1}, "x": [1]}
            (folder / place / f"{stem}.safetensors.index.json").write_text(json.dumps(index, indent=3) + "\r\n")
        else:
            write(header([f32("w", 0, 2)]), b"12345678", "any name.safetensors")
    return folder


def test_folders_of_shards(sharded: Path, tmp_path: Path) -> None:
    before = files_of(sharded)
    assert len(before) == 7
    with open_checkpoint(sharded) as source:
        assert [head.name for head in source.heads()] == sorted(before)
        assert all(before[head.name].startswith(head.data) for head in source.heads())
        restored(source, tmp_path / "out")
    assert files_of(tmp_path / "out") == before


def test_one_file_of_several_heads_is_made_anew(sharded: Path, tmp_path: Path) -> None:
    with open_checkpoint(sharded) as source:
        heads = [head for head in source.heads() if head.name.startswith("model")]
        tensors = [source.tensors[name] for name in "abc"]
        shards, indices = shards_of_heads(heads, tensors, path=sharded)
        with open_writer(tmp_path / "out.safetensors", shards, indices=indices) as writer:
            for name in "abc":
                writer.write(name, 0, source.read(name))
    with open_checkpoint(tmp_path / "out.safetensors") as checkpoint:
        assert checkpoint.metadata == {"": {"format": "pt"}} and list(checkpoint.tensors) == list("abc")


def test_files_of_another_kind_have_no_heads(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    torch.save({"w": torch.zeros(2)}, tmp_path / "pytorch_model.bin")
    with open_checkpoint(tmp_path) as source:
        assert source.heads() == () and source.head("pytorch_model.bin") is None
    (tmp_path / "part").mkdir()
    RawSafetensors(tmp_path / "part")(header([f32("w", 0, 1)]), b"1234")
    with open_checkpoint(tmp_path) as source:
        assert set(source.tensors) == {"w", "part/w"} and source.heads() == ()


def test_an_index_beside_the_only_file(sharded: Path, tmp_path: Path) -> None:
    folder = sharded / "unet" / "deep"
    text = json.dumps({"weight_map": {"w": "any name.safetensors"}})
    (folder / "any name.safetensors.index.json").write_text(text)
    before = files_of(folder)
    with open_checkpoint(folder) as source:
        assert [head.name for head in source.heads()] == ["any name.safetensors", "any name.safetensors.index.json"]
        restored(source, tmp_path / "out")
    assert files_of(tmp_path / "out") == before


@pytest.mark.parametrize("limits", [Limits(heads=6), Limits(heads_bytes=700), Limits(header_bytes=190)])
def test_heads_are_bounded(limits: Limits, sharded: Path) -> None:
    with pytest.raises(LimitError), open_checkpoint(sharded, limits) as source:
        source.heads()
    with open_checkpoint(sharded) as source:
        assert sum(len(head.data) for head in source.heads()) > 700


def test_a_file_that_was_cut(sharded: Path) -> None:
    with open_checkpoint(sharded) as source:
        (sharded / "model-00002-of-00002.safetensors").write_bytes(b"\x20\0\0\0\0\0\0\0")
        with pytest.raises(InputChangedError, match=r"changed while it was read: expected .* bytes, found 8"):
            source.heads()


WANTED = [("a", F32, (2,)), ("b", F32, (1,))]
GOOD = [f32("a", 0, 2), f32("b", 2, 1)]
ONE, TWO = ("m-00001-of-00002.safetensors", "m-00002-of-00002.safetensors")
SHARDS = [head_of([f32("a", 0, 2)], ONE), head_of([f32("b", 0, 1)], TWO)]


def index(weight_map: object, name: str = "m.safetensors.index.json") -> Head:
    return Head(name, json.dumps({"weight_map": weight_map}).encode())


def shards_for(heads: list[Head], wanted: Any = WANTED, **options: Any) -> list[Shard]:
    tensors = [tensor for shard in plan_shards(wanted) for tensor in shard.tensors]
    shards, _ = shards_of_heads(heads, tensors, path=Path("x.dpk"), **options)
    return shards


def test_heads_that_fit() -> None:
    assert [tensor.name for tensor in shards_for([head_of(GOOD)])[0].tensors] == ["a", "b"]
    assert [shard.file for shard in shards_for([*SHARDS, index({"a": ONE, "b": TWO})])] == [ONE, TWO]
    assert len(shards_for([*SHARDS, index({"a": ONE, "c": TWO})], aliases={"c": "b"})) == 2
    in_folder = shards_for([head_of(GOOD, "f/x.safetensors")], [("f/a", F32, (2,)), ("f/b", F32, (1,))], folders=["f"])
    assert (in_folder[0].prefix, [tensor.name for tensor in in_folder[0].tensors]) == ("f/", ["f/a", "f/b"])


BAD: dict[str, tuple[list[Head], str]] = {
    "none": ([], "no head of a weight file speaks of a tensor"),
    "missing": ([head_of(GOOD[:1])], "no head of a weight file speaks of a tensor"),
    "more": ([head_of([*GOOD, f32("c", 3, 1)])], "a tensor that is not to be in this file"),
    "more-without-elements": ([head_of([*GOOD, f32("c", 3, 0)])], "a tensor that is not to be in this file"),
    "other-type": ([head_of([("a", "I32", [2], 0, 8), GOOD[1]])], "another type or shape: expected f32 .2., found i32 .2."),
    "other-shape": ([head_of([("a", "F32", [2, 1], 0, 8), GOOD[1]])], "another type or shape"),
    "hole": ([head_of([GOOD[0], f32("b", 3, 1)])], "a hole before"),
    "overlap": ([head_of([GOOD[0], f32("b", 1, 1)])], "share bytes"),
    "size": ([head_of([("a", "F32", [2], 0, 9), f32("b", 2, 1)])], "do not fit the shape"),
    "unknown-type": ([head_of([("a", "f32", [2], 0, 8), GOOD[1]])], "unknown element type"),
    "empty": ([Head("model.safetensors", b"")], "another length than it says"),
    "short": ([Head("model.safetensors", b"\2\0\0\0\0\0\0\0{")], "expected 2, found 1"),
    "long": ([Head("model.safetensors", head_of(GOOD).data + b" ")], "another length than it says"),
    "no-json": ([Head("model.safetensors", framed(b"{a}"))], "not valid JSON"),
    "list": ([Head("model.safetensors", framed(b"[]"))], "not a JSON object"),
    "metadata": ([head_of(GOOD, metadata={"a": 1})], "not an object of strings"),
    "two-files": ([head_of(GOOD), head_of(GOOD, "other.safetensors")], "in two weight files"),
    "shard-twice": ([*SHARDS, head_of([f32("b", 0, 1)], "x.safetensors")], "in two weight files"),
    "no-index": (SHARDS, "do not go together: found 2 weight files and 0 indices"),
    "two-indices": ([*SHARDS, index({"a": ONE, "b": TWO}), index({"a": ONE, "b": TWO}, "n.safetensors.index.json")], "do not go together"),
    "index-alone": ([head_of(GOOD), index({"a": "y.safetensors"}, "f/m.safetensors.index.json")], "0 weight files and 1 indices in 'f/'"),
    "index-elsewhere": ([*SHARDS, index({"a": ONE, "b": "../x.safetensors"})], "cannot be a shard"),
    "index-other-files": ([*SHARDS, index({"a": ONE, "b": ONE})], "names other weight files"),
    "index-swapped": ([*SHARDS, index({"b": ONE, "a": TWO})], "disagree"),
    "index-more": ([*SHARDS, index({"a": ONE, "b": TWO, "c": TWO})], "disagree"),
    "index-no-map": ([*SHARDS, Head("m.safetensors.index.json", b"{}")], "no weight_map"),
    "sub-folder": ([head_of(GOOD, "f/model.safetensors")], "a tensor that is not to be in this file"),
}


@pytest.mark.parametrize(("heads", "text"), BAD.values(), ids=BAD)
def test_heads_that_do_not_fit(heads: list[Head], text: str) -> None:
    with pytest.raises(FormatError, match=text) as caught:
        shards_for(heads)
    assert (caught.value.path, caught.value.rule) == (Path("x.dpk"), "R9")


def test_a_head_in_a_folder_that_is_none_or_another() -> None:
    wanted = [("f/g/a", F32, (2,)), ("f/b", F32, (1,))]
    rows = [("g/a", "F32", [2], 0, 8), f32("b", 2, 1)]
    for folders in (["f/g", "f"], []):
        with pytest.raises(FormatError, match="not to be in this file"):
            shards_for([head_of(rows, "f/model.safetensors")], wanted, folders=folders)
    with pytest.raises(LimitError):
        shards_for([head_of(GOOD)], limits=Limits(header_bytes=20))


def test_the_same_file_may_be_written_again_and_another_is_kept(raw_safetensors: RawSafetensors, tmp_path: Path) -> None:
    path, out = raw_safetensors(header(ODD), bytes(range(59)), "in.safetensors"), tmp_path / "out.safetensors"
    with open_checkpoint(path) as source:
        shards, _ = shards_of_heads(source.heads(), source.tensors.values(), path=path)
        for spoil, force in ((0, True), (1, True), (0, False)):
            data = path.read_bytes()
            out.write_bytes(data[:-1] + bytes([data[-1] ^ spoil]))
            before = out.read_bytes()
            expected = nullcontext() if force and not spoil else pytest.raises(OutputError, match="did not write" if force else "exists")
            with expected, open_writer(out, shards, force=force) as writer:
                for name in source.tensors:
                    writer.write(name, 0, source.read(name))
            assert out.read_bytes() == before
    out.write_bytes(b"\2\0\0\0\0\0\0\0{}")
    with pytest.raises(OutputError, match="did not write"), open_writer(out, shards, force=True):
        raise AssertionError("refused before anything is read")


def test_missing_elements_are_still_an_error(tmp_path: Path) -> None:
    with pytest.raises(Exception, match="not completely written"), open_writer(tmp_path / "out", shards_for([head_of(GOOD)])) as writer:
        writer.write("a", 0, np.zeros(2, "<f4"))
    assert not (tmp_path / "out").exists()


def test_heads_that_unfold_are_refused_before_they_are_parsed() -> None:
    """A frame of a few kilobytes may hold a hundred megabytes of empty lists, each many times as large for a program."""
    lists = Head(BARE, framed(b'{"x":[' + b"[]," * (1 << 20) + b"[]]}"))
    with pytest.raises(LimitError, match="too many values"):
        shards_of_heads([lists], [], path=Path("x.dpk"))
