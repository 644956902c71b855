"""PyTorch state dicts, new and old format, and pickles that are none."""

from __future__ import annotations

import io
import json
import os
import pickle
import sys
import tracemalloc
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from support.builders import bytes_of

from deltapack.checkpoint import open_checkpoint
from deltapack.checkpoint.files import open_to_read
from deltapack.checkpoint.torchzip import read_records
from deltapack.dtypes import BY_NAME
from deltapack.errors import CheckpointError, LimitError, NotACheckpointError, UnsupportedError
from deltapack.limits import DEFAULT_LIMITS


def state() -> dict[str, torch.Tensor]:
    matrix = torch.arange(77.0).reshape(7, 11)
    cube = torch.arange(60, dtype=torch.int16).reshape(3, 4, 5)
    return {
        "z.first": matrix,
        "a.tied": matrix,
        "transposed": matrix.t(),
        "rows": matrix[2:5],
        "columns": matrix[:, 3:7],
        "every other": torch.arange(20)[1::2],
        "expanded": torch.tensor([1.5]).expand(4, 3),
        "permuted": cube.permute(2, 0, 1),
        "one row": cube.permute(1, 2, 0)[1:2],
        "scalar": torch.tensor(3),
        "empty": torch.zeros(0, 3),
        "parameter": torch.nn.Parameter(torch.ones(3)),
    }


@pytest.mark.parametrize("modern", [True, False], ids=["zip", "legacy"])
def test_every_range_of_every_view(modern: bool, tmp_path: Path) -> None:
    tensors = state()
    torch.save(tensors, tmp_path / "pytorch_model.bin", _use_new_zipfile_serialization=modern)
    with open_checkpoint(tmp_path) as checkpoint:
        assert checkpoint.aliases == {"a.tied": "z.first"}
        assert list(checkpoint.tensors) == sorted(tensors.keys() - {"a.tied"})
        assert bool(checkpoint.notes) != modern
        for name, tensor in tensors.items():
            raw, size, numel = bytes_of(tensor), tensor.element_size(), tensor.numel()
            for start in range(0, numel, 3):
                for stop in {start, start + 1, (start + numel) // 2, numel}:
                    assert checkpoint.read(name, start, stop).tobytes() == raw[start * size : stop * size], name


LEGACY = ["f64", "f32", "f16", "bf16", "c64", "i64", "i32", "i16", "i8", "u8", "bool"]  # torch loads no others


@pytest.mark.parametrize(
    ("modern", "dtype"),
    [(True, dtype) for dtype in BY_NAME.values()] + [(False, BY_NAME[name]) for name in LEGACY],
    ids=str,
)
def test_every_element_type(modern: bool, dtype: Any, tmp_path: Path) -> None:
    raw = torch.arange(80, 128, dtype=torch.uint8)
    tensor = raw % 2 == 0 if dtype.torch == "bool" else raw.view(getattr(torch, dtype.torch))
    torch.save({"w": tensor}, tmp_path / "w.pt", _use_new_zipfile_serialization=modern)
    with open_checkpoint(tmp_path / "w.pt") as checkpoint:
        assert checkpoint.tensors["w"].dtype is dtype
        assert checkpoint.read("w").tobytes() == bytes_of(tensor)


@pytest.mark.parametrize("modern", [True, False], ids=["zip", "legacy"])
def test_a_file_saved_on_a_gpu(modern: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.serialization, "location_tag", lambda storage: "cuda:3")
    torch.save({"w": torch.arange(5.0)}, tmp_path / "w.pth", _use_new_zipfile_serialization=modern)
    monkeypatch.undo()
    with open_checkpoint(tmp_path / "w.pth") as checkpoint:
        assert checkpoint.read("w", 1, 3).tolist() == [1, 2]


def test_repacked_archives_are_read_from_the_right_record(tmp_path: Path) -> None:
    tensors = {f"t{at}": torch.full((4,), float(at)) for at in range(12)}
    torch.save(tensors, tmp_path / "w.pt")
    for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        out = tmp_path / f"{method}.pt"
        with zipfile.ZipFile(tmp_path / "w.pt") as old, zipfile.ZipFile(out, "w", method) as new:
            for name in sorted(old.namelist(), reverse=True):
                new.writestr(name, old.read(name))
        with open_checkpoint(out) as checkpoint:
            assert {name: checkpoint.read(name).tolist() for name in tensors} == {name: tensor.tolist() for name, tensor in tensors.items()}
            assert bool(checkpoint.notes) == (method == zipfile.ZIP_DEFLATED)


@pytest.mark.parametrize("key", ["state_dict", "model", "module", "model_state_dict"])
def test_a_wrapped_state_dict_is_found_and_told(key: str, tmp_path: Path) -> None:
    torch.save({key: {"w": torch.ones(2)}, "epoch": 3, "optimizer": {"lr": 0.1}}, tmp_path / "w.pt")
    with open_checkpoint(tmp_path / "w.pt") as checkpoint:
        assert list(checkpoint.tensors) == ["w"]
        assert key in checkpoint.notes[0] and "epoch, optimizer" in checkpoint.notes[0]


class Custom:
    """A class that no reader of state dicts may build."""

    def __repr__(self) -> str:  # the name of a case is the same in every process
        return "Custom()"

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("exit 1",)


@pytest.mark.parametrize("modern", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize(
    "document",
    [
        {"w": torch.ones(2), "epoch": 3},
        {"w": Custom()},
        {3: torch.ones(2)},
        {"model": {"w": torch.ones(1)}, "state_dict": {"w": torch.ones(1)}},
        {"model": {"w": torch.ones(1), "x": 1}},
        {"a": {"b": {"c": torch.ones(1)}}},
        {},
        [torch.ones(2)],
        torch.ones(2),
        None,
    ],
    ids=str,
)
def test_what_is_no_state_dict_of_tensors_is_refused(document: object, modern: bool, tmp_path: Path) -> None:
    torch.save(document, tmp_path / "w.pt", _use_new_zipfile_serialization=modern)
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(tmp_path / "w.pt")
    assert "w.pt" in str(caught.value)


@pytest.mark.parametrize("tensor", [torch.eye(2).to_sparse(), torch.ones(2, dtype=torch.complex128)], ids=["sparse", "c128"])
def test_other_tensors_are_unsupported(tensor: torch.Tensor, tmp_path: Path) -> None:
    torch.save({"w": tensor}, tmp_path / "w.pt")
    with pytest.raises((UnsupportedError, CheckpointError)):
        open_checkpoint(tmp_path / "w.pt")


@pytest.mark.parametrize("content", [b"", b"PK", b"PK\x03\x04", b"\x80\x02}q\x00.", b"garbage" * 99, b"\x80\x04\x95" + b"\xff" * 8])
def test_garbage(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "w.bin").write_bytes(content)
    with pytest.raises(CheckpointError):
        open_checkpoint(tmp_path / "w.bin")


@pytest.mark.parametrize("modern", [True, False], ids=["zip", "legacy"])
def test_cut_and_flipped_files_raise_only_our_errors(modern: bool, tmp_path: Path) -> None:
    torch.save({"w": torch.ones(20), "v": torch.ones(3)}, tmp_path / "w.pt", _use_new_zipfile_serialization=modern)
    whole = (tmp_path / "w.pt").read_bytes()
    bad = tmp_path / "bad.pt"
    for at in range(0, len(whole), 37):
        for content in (whole[:at], whole[:at] + bytes([whole[at] ^ 0x55]) + whole[at + 1 :]):
            bad.write_bytes(content)
            try:
                with open_checkpoint(bad) as checkpoint:
                    for name in checkpoint.tensors:
                        checkpoint.read(name)
            except (CheckpointError, UnsupportedError, LimitError) as error:
                assert error.path == bad


def rewrite(source: Path, out: Path, change: Any) -> None:
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(out, "w") as new:
        for name in old.namelist():
            for new_name, data in change(name, old.read(name)):
                new.writestr(new_name, data)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_archives_that_lie(tmp_path: Path) -> None:
    torch.save({"w": torch.ones(20)}, tmp_path / "w.pt")
    lies = {
        "short record": lambda name, data: [(name, data[:40] if "/data/" in name else data)],
        "no record": lambda name, data: [] if "/data/" in name else [(name, data)],
        "two of a name": lambda name, data: [(name, data), (name, data)],
        "no pickle": lambda name, data: [] if name.endswith("data.pkl") else [(name, data)],
        "two pickles": lambda name, data: [(name, data), (f"x{name}", data)],
        "script": lambda name, data: [(name, data), (name.replace("data.pkl", "constants.pkl"), data)],
    }
    for case, change in lies.items():
        rewrite(tmp_path / "w.pt", tmp_path / "bad.pt", change)
        with pytest.raises(CheckpointError):
            open_checkpoint(tmp_path / "bad.pt")
            pytest.fail(case)


def test_limits(tmp_path: Path) -> None:
    torch.save({"w": torch.ones(20)}, tmp_path / "w.pt")
    for limits in (replace(DEFAULT_LIMITS, header_bytes=10), replace(DEFAULT_LIMITS, numel=10)):
        with pytest.raises(LimitError):
            open_checkpoint(tmp_path / "w.pt", limits)


def test_a_big_endian_file_is_swapped(tmp_path: Path) -> None:
    torch.save({"w": torch.arange(4, dtype=torch.int32)}, tmp_path / "w.pt")

    def swap(name: str, data: bytes) -> list[tuple[str, bytes]]:
        if name.endswith("byteorder"):
            return [(name, b"big")]
        return [(name, b"".join(data[at : at + 4][::-1] for at in range(0, 16, 4)) if "/data/" in name else data)]

    rewrite(tmp_path / "w.pt", tmp_path / "big.pt", swap)
    with open_checkpoint(tmp_path / "big.pt") as checkpoint:
        assert checkpoint.read("w").tolist() == [0, 1, 2, 3]
        assert checkpoint.notes


def test_no_more_of_a_word_is_unpacked_than_there_can_be(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "w.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("w/data.pkl", b"")
        archive.writestr("w/byteorder", bytes(1 << 20))
    file = open_to_read(tmp_path / "w.pt")
    tracemalloc.start()
    try:
        assert read_records(file, DEFAULT_LIMITS) is None
        assert tracemalloc.get_traced_memory()[1] < 1 << 18
    finally:
        tracemalloc.stop()
        file.close()


def test_without_torch_the_way_out_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save({"w": torch.ones(2)}, tmp_path / "w.pt")
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(UnsupportedError, match="pip install torch"):
        open_checkpoint(tmp_path / "w.pt")


def test_a_sharded_folder_of_bin_files(tmp_path: Path) -> None:
    names = ["pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin"]
    tied = torch.ones(3)
    torch.save({"b": tied, "a": tied}, tmp_path / names[0])
    torch.save({"c": torch.zeros(2)}, tmp_path / names[1])
    weight_map = {"b": names[0], "a": names[0], "c": names[1]}
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))
    with open_checkpoint(tmp_path) as checkpoint:
        assert checkpoint.aliases == {"a": "b"}
        assert checkpoint.weight_shards() == [(names[0], ["b"]), (names[1], ["c"])]
        assert checkpoint.notes == ()


def test_reading_a_range_of_a_large_file_does_not_read_the_file(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    count = 1 << 30
    path = tmp_path / "w.pt"
    write_sparse(path, count)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with open_checkpoint(path) as checkpoint:
        assert checkpoint.tensors["w"].numel == count
        assert checkpoint.read("w", count - 2).tolist() == [0, 0]
        assert checkpoint.read("t", count - 2).tolist() == [0, 0]
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 << 10
    path.unlink()


def write_sparse(path: Path, count: int) -> None:
    """Write the archive of a bf16 matrix of `count` zeros (and its transpose), the zeros as a hole of the file."""

    class Pickler(pickle.Pickler):
        def persistent_id(self, value: object) -> object:
            return ("storage", torch.BFloat16Storage, "0", "cpu", count) if value == "STORAGE" else None

    class Rebuild:
        def __init__(self, size: tuple[int, int], stride: tuple[int, int]) -> None:
            self.size, self.stride = size, stride

        def __reduce__(self) -> tuple[Any, ...]:
            return torch._utils._rebuild_tensor_v2, ("STORAGE", 0, self.size, self.stride, False, {})

    buffer = io.BytesIO()
    half = count // 2
    Pickler(buffer, 2).dump({"w": Rebuild((2, half), (half, 1)), "t": Rebuild((half, 2), (1, half))})
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("w/data.pkl", buffer.getvalue())
        archive.writestr("w/data/0", b"")
        archive.writestr("w/version", b"3\n")
    grow_record(path, "w/data/0", 2 * count)


def grow_record(path: Path, name: str, size: int) -> None:
    """Move what follows the empty record `name` by `size` bytes, leaving a hole."""
    with zipfile.ZipFile(path) as archive:
        entry = archive.getinfo(name)
        directory = archive.start_dir
    raw = path.read_bytes()
    begin = entry.header_offset + 30 + len(name)
    head, tail = bytearray(raw[:begin]), bytearray(raw[begin:])
    at = directory - begin
    while tail[at : at + 4] == b"PK\x01\x02":
        length = int.from_bytes(tail[at + 28 : at + 30], "little")
        if bytes(tail[at + 46 : at + 46 + length]).decode() == name:
            tail[at + 20 : at + 28] = size.to_bytes(4, "little") * 2
        offset = int.from_bytes(tail[at + 42 : at + 46], "little")
        if offset >= begin:
            tail[at + 42 : at + 46] = (offset + size).to_bytes(4, "little")
        at += 46 + length
    assert tail[at : at + 4] == b"PK\x05\x06"
    tail[at + 16 : at + 20] = (directory + size).to_bytes(4, "little")
    with path.open("wb") as file:
        file.write(head)
        file.seek(size, os.SEEK_CUR)
        file.write(tail)


class Odd:
    """What no state dict holds."""


@pytest.mark.parametrize("modern", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("what", ["module", "training state", "object"])
def test_what_else_torch_saves_is_not_called_damaged(what: str, modern: bool, tmp_path: Path) -> None:
    documents = {
        "module": torch.nn.Linear(2, 2),
        "training state": {"epoch": 3, "model": {"w": torch.ones(1)}, "rng": Odd()},
        "object": Odd(),
    }
    torch.save(documents[what], tmp_path / "w.pt", _use_new_zipfile_serialization=modern)
    with pytest.raises(NotACheckpointError, match=r"Python object \((torch\.nn\.modules\.linear\.Linear|\S*Odd)\)") as caught:
        open_checkpoint(tmp_path / "w.pt")
    text = str(caught.value)
    assert "torch.save(model.state_dict(), path)" in text and not any(word in text for word in ("weights_only", "allowed", "load failed"))


def test_damage_is_told_in_words_of_ours(tmp_path: Path) -> None:
    torch.save({"w": torch.ones(20)}, tmp_path / "w.pt", _use_new_zipfile_serialization=False)
    (tmp_path / "w.pt").write_bytes((tmp_path / "w.pt").read_bytes()[:-30])
    with pytest.raises(CheckpointError, match=r"cannot be read as a PyTorch file\. It is cut or damaged") as caught:
        open_checkpoint(tmp_path / "w.pt")
    assert caught.value.exit_code == 3
