"""Folders of torch.distributed.checkpoint: one rank, many, boxes in all dimensions, states of training, and hostile metadata."""

from __future__ import annotations

import gc
import io
import pickle
import re
import subprocess
import sys
import zipfile
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.builders import bytes_of
from support.distributed import Extent, Parts, parts_of, save_alone
from support.laws import examples
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex

import deltapack
from deltapack.checkpoint import boxes as boxes_module
from deltapack.checkpoint import open_checkpoint
from deltapack.checkpoint.boxes import flaw_of
from deltapack.checkpoint.files import open_to_read
from deltapack.checkpoint.pickled import read_pickle
from deltapack.checkpoint.torchzip import read_records
from deltapack.dtypes import BY_NAME
from deltapack.errors import CheckpointError, DeltapackError, LimitError, NotACheckpointError, UnsupportedError
from deltapack.limits import DEFAULT_LIMITS
from deltapack.sources.local import LocalFile


def check(folder: Path, state: dict[str, torch.Tensor]) -> None:
    """All ranges of all tensors are those of `state`."""
    with open_checkpoint(folder) as checkpoint:
        assert list(checkpoint.tensors) == sorted(state)
        for name, tensor in state.items():
            raw, size, numel = bytes_of(tensor), tensor.element_size(), tensor.numel()
            for start in range(numel + 1):
                for stop in {start, min(start + 1, numel), (start + numel) // 2, numel}:
                    assert checkpoint.read(name, start, max(start, stop)).tobytes() == raw[start * size : max(start, stop) * size], name


def test_what_one_process_saves(tmp_path: Path) -> None:
    matrix = torch.arange(77.0).reshape(7, 11)
    state = {
        "layers.0.weight": matrix,
        "transposed": matrix.t(),
        "columns": matrix[:, 3:7],
        "scalar": torch.tensor(3),
        "empty": torch.zeros(0, 3),
        "one": torch.ones(1, 1, 1),
    }
    save_alone(state, tmp_path / "x")
    check(tmp_path / "x", state)
    with open_checkpoint(tmp_path / "x") as checkpoint:
        assert checkpoint.notes == ()
        assert [path.name for path in checkpoint.weight_paths()] == [".metadata", "__0_0.distcp"]
        assert checkpoint.list_side_files() == ([], [])
        assert checkpoint.file_range("layers.0.weight", 2) is not None


@pytest.mark.parametrize("dtype", BY_NAME.values(), ids=str)
def test_every_element_type(dtype: Any, tmp_path: Path) -> None:
    raw = torch.arange(80, 128, dtype=torch.uint8)
    tensor = raw % 2 == 0 if dtype.torch == "bool" else raw.view(getattr(torch, dtype.torch))
    save_alone({"w": tensor}, tmp_path / "x")
    with open_checkpoint(tmp_path / "x") as checkpoint:
        assert checkpoint.tensors["w"].dtype is dtype
        assert checkpoint.read("w").tobytes() == bytes_of(tensor)


@st.composite
def cut_tensors(draw: st.DrawFn) -> tuple[torch.Tensor, list[Extent]]:
    """A tensor, and boxes that fill it: a box is cut in two at any place in any dimension, again and again."""
    shape = tuple(draw(st.lists(st.integers(1, 6), min_size=1, max_size=4)))
    boxes: list[Extent] = [((0,) * len(shape), shape)]
    for _ in range(draw(st.integers(0, 7))):
        start, extent = boxes.pop(draw(st.integers(0, len(boxes) - 1)))
        at = draw(st.integers(0, len(shape) - 1))
        first = draw(st.integers(0, extent[at]))  # also none of it: a rank that has nothing
        second = (*start[:at], start[at] + first, *start[at + 1 :])
        boxes += [
            (start, (*extent[:at], first, *extent[at + 1 :])),
            (second, (*extent[:at], extent[at] - first, *extent[at + 1 :])),
        ]
    full = [box for box in boxes if 0 not in box[1]]
    return torch.arange(torch.Size(shape).numel(), dtype=torch.int16).reshape(shape), full or boxes


@examples(60)
@given(cut=cut_tensors(), ranks=st.integers(1, 3))
def test_any_boxes_come_out_as_one_tensor(
    cut: tuple[torch.Tensor, list[Extent]], ranks: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    tensor, boxes = cut
    folder = tmp_path_factory.mktemp("cut")
    parts_of(folder, {"w": tensor}, {"w": boxes}, ranks=ranks).write(folder)
    check(folder, {"w": tensor})


def test_pieces_without_elements_need_no_place(tmp_path: Path) -> None:
    parts = parts_of(tmp_path, {"w": torch.arange(6.0)})
    parts.described["w"].chunks.append(ChunkStorageMetadata(torch.Size([6]), torch.Size([0])))
    check(parts.write(tmp_path), {"w": torch.arange(6.0)})


RANKS = """
import os, sys, torch, torch.distributed as dist, torch.distributed.checkpoint as dcp
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Shard, distribute_tensor
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict, get_state_dict
rank, out = int(sys.argv[1]), sys.argv[2]
dist.init_process_group("gloo", init_method=f"file://{out}/meet", rank=rank, world_size=2)
mesh = init_device_mesh("cpu", (2,))
torch.manual_seed(1)
model = torch.nn.Sequential(torch.nn.Linear(5, 7), torch.nn.Linear(7, 3))
fully_shard(model, mesh=mesh)
optimizer = torch.optim.AdamW(model.parameters())
model(torch.ones(2, 5)).sum().backward()
optimizer.step()
of_model, of_optimizer = get_state_dict(model, optimizer)
of_model["columns"] = distribute_tensor(torch.arange(35.0).reshape(5, 7), mesh, [Shard(1)])
dcp.save({"app": {"model": of_model, "optim": of_optimizer}}, checkpoint_id=f"{out}/saved")
full = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
if rank == 0:
    torch.save({**full, "columns": torch.arange(35.0).reshape(5, 7)}, f"{out}/full.pt")
dist.barrier()  # nobody leaves while another still needs it
sys.stdout.flush(); sys.stderr.flush()
os._exit(0)  # all is written: where Python ends on its own, gloo's threads may still want its lock, and abort
"""


@pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="this torch has no gloo")
def test_what_two_ranks_of_fsdp_save(tmp_path: Path) -> None:
    runs = [subprocess.Popen([sys.executable, "-W", "ignore", "-c", RANKS, str(rank), str(tmp_path)]) for rank in range(2)]
    assert [run.wait(timeout=300) for run in runs] == [0, 0]
    assert len(list((tmp_path / "saved").glob("*.distcp"))) == 2
    check(tmp_path / "saved", torch.load(tmp_path / "full.pt"))
    with open_checkpoint(tmp_path / "saved") as checkpoint:
        assert checkpoint.notes == ("of the distributed checkpoint app.model was read, not app.optim",)


W, M = torch.arange(4.0), torch.ones(4)
STATES: dict[str, tuple[dict[str, Any], list[str], str]] = {
    "plain": ({"model.a": W, "lm_head.b": W}, ["lm_head.b", "model.a"], ""),
    "app": ({"app": {"model": {"x.a": W}, "optim": {"state": {"x.a": {"exp_avg": M}}}}}, ["x.a"], "app.model was read, not app.optim"),
    "titan": ({"x.a": W, "optimizer": {"state.x.a.exp_avg": M}, "lr_scheduler": {"t": M}}, ["x.a"], "not lr_scheduler, optimizer"),
    "accelerate": ({"model": {"model.x.a": W, "model.x.b": W}}, ["model.x.a", "model.x.b"], ""),
    "counters": ({"model": {"a": W}, "seen": M, "ema": {"a": M}}, ["a"], "model was read, not ema, seen"),
    "nested": ({"model": {"layers": [{"a": W}, {"a": W}]}}, ["layers.0.a", "layers.1.a"], ""),
    "parts": ({"vision": {"a": W}, "text": {"a": W}}, ["text.a", "vision.a"], ""),
    "flat": ({"decoder.a": W, "optimizer.state.exp_avg.decoder.a": M, "rng_state.0": M}, ["decoder.a"], "not optimizer, rng_state"),
    "odd": ({"optimizer_embedding.weight": W, "x.optim.a": W}, ["optimizer_embedding.weight", "x.optim.a"], ""),
}


@pytest.mark.parametrize("case", STATES)
def test_of_a_state_of_training_the_model_is_read(case: str, tmp_path: Path) -> None:
    state, names, note = STATES[case]
    save_alone(state, tmp_path / "x")
    with open_checkpoint(tmp_path / "x") as checkpoint:
        assert list(checkpoint.tensors) == names
        assert all(checkpoint.read(name).tolist() == W.tolist() for name in names)
        assert note in "".join(checkpoint.notes) and bool(note) == bool(checkpoint.notes)


def test_without_paths_the_first_part_of_a_name_counts(tmp_path: Path) -> None:
    parts = parts_of(tmp_path, {"model.a": W, "optimizer.state.a": M})
    parts.planner = None
    parts.write(tmp_path)
    with open_checkpoint(tmp_path) as checkpoint:
        assert list(checkpoint.tensors) == ["model.a"]
        assert checkpoint.notes == ("of the distributed checkpoint the model was read, not optimizer",)


@pytest.mark.parametrize(
    ("state", "text"),
    [
        ({"optim": {"a": M}}, "no tensors of a model, but the state of an optimizer: expected the state dict of a model, found optim.a"),
        ({"step": 3}, "no tensors of a model: expected"),
        ({"one": {"model": {"a": W}}, "two": {"model": {"a": W}}}, "more than one model in the checkpoint: found one.model and two.model"),
    ],
)
def test_what_has_no_one_model(state: dict[str, Any], text: str, tmp_path: Path) -> None:
    save_alone(state, tmp_path / "x")
    with pytest.raises(NotACheckpointError, match=text):
        open_checkpoint(tmp_path / "x")


def test_two_tensors_of_one_name(tmp_path: Path) -> None:
    parts_of(tmp_path, {"a": W, "b": W}, paths={"a": ("model", "w"), "b": ("model", "w")}).write(tmp_path)
    with pytest.raises(CheckpointError, match=r"'w': two tensors of the model have one name"):
        open_checkpoint(tmp_path)


def test_a_checkpoint_of_a_trainer_with_fsdp(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    save_alone({"model": {"a": W}}, tmp_path / "pytorch_model_fsdp_0")
    save_alone({"optimizer": {"a": M}}, tmp_path / "optimizer_0")
    with open_checkpoint(tmp_path) as checkpoint:
        assert checkpoint.read("a").tolist() == W.tolist()
        assert checkpoint.notes == ("the weights are those in pytorch_model_fsdp_0",)
        assert [file.name for file in checkpoint.side_files()] == ["config.json"]
    save_alone({"model": {"a": W}}, tmp_path / "pytorch_model_fsdp_1")
    with pytest.raises(NotACheckpointError, match="several distributed checkpoints"):
        open_checkpoint(tmp_path)


def test_use_cases_take_such_a_folder(tmp_path: Path) -> None:
    state = {"a.weight": torch.randn(30, 40), "b.bias": torch.randn(9)}
    parts_of(tmp_path / "base", state, {"a.weight": [((0, 0), (30, 10)), ((0, 10), (30, 30))]}).write(tmp_path / "base")
    tuned = {name: tensor + 0.1 * torch.randn_like(tensor) for name, tensor in state.items()}
    save_alone({"model": tuned}, tmp_path / "tuned")
    deltapack.compress(tmp_path / "base", tmp_path / "tuned", tmp_path / "x.dpk", recipe=deltapack.Recipe(drop_rate=0, values="f32"))
    deltapack.apply(tmp_path / "base", tmp_path / "x.dpk", tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir() if not path.name.startswith(".")] == ["model.safetensors"]
    with open_checkpoint(tmp_path / "out") as checkpoint:
        assert checkpoint.read("b.bias").tobytes() == bytes_of(tuned["b.bias"])


def test_parts_are_not_named_as_checkpoints(tmp_path: Path) -> None:
    save_alone({"a": W}, tmp_path)
    for name in (".metadata", "__0_0.distcp"):
        with pytest.raises(NotACheckpointError, match="part of a distributed checkpoint"):
            open_checkpoint(tmp_path / name)
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):  # what loaders look for comes first
        open_checkpoint(tmp_path)


def test_torch_is_not_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_alone({"a": W}, tmp_path / "x")
    monkeypatch.setitem(sys.modules, "torch", None)
    with open_checkpoint(tmp_path / "x") as checkpoint:
        assert checkpoint.read("a").tolist() == W.tolist()


def change(**values: Any) -> Callable[[Parts], None]:
    """Lie about where the first piece of `w` lies."""

    def apply(parts: Parts) -> None:
        for name, value in values.items():
            setattr(next(iter(parts.stored.values())), name, value)

    return apply


def boxes(*own: Extent) -> Callable[[Parts], None]:
    """Say that `w` is made of these pieces."""

    def apply(parts: Parts) -> None:
        info = next(iter(parts.stored.values()))
        parts.described["w"].chunks = [ChunkStorageMetadata(torch.Size(start), torch.Size(extent)) for start, extent in own]
        parts.stored = {MetadataIndex("w", torch.Size(start)): info for start, _ in own}

    return apply


def described(**values: Any) -> Callable[[Parts], None]:
    """Say something else of `w`."""

    def apply(parts: Parts) -> None:
        for name, value in values.items():
            setattr(parts.described["w"], name, value)

    return apply


class Odd:
    """A class that no reader may build."""

    def __repr__(self) -> str:  # the name of a case is the same in every process
        return "Odd()"

    def __reduce__(self) -> tuple[Any, ...]:
        return sys.exit, ("this ran",)


LIES: dict[str, tuple[Callable[[Parts], Any], str]] = {
    "missing file": (change(relative_path="__7_0.distcp"), "no such file"),
    "file above": (change(relative_path="../__0_0.distcp"), "a file that cannot be a part"),
    "absolute file": (change(relative_path="/etc/passwd"), "a file that cannot be a part"),
    "no file": (change(relative_path=3), "a file that cannot be a part"),
    "offset behind the end": (change(offset=1 << 40), "ends before a piece"),
    "offset of 128 bits": (change(offset=1 << 128), "not a readable pickle"),
    "negative offset": (change(offset=-1), "a place that cannot be"),
    "text as offset": (change(offset="0"), "a place that cannot be"),
    "length behind the end": (change(length=1 << 20), "ends before a piece"),
    "cut archive": (change(length=600), "not a readable zip archive"),
    "no archive": (change(length=0), "not a readable zip archive"),
    "shifted archive": (change(offset=64, length=700), "not a readable zip archive"),
    "compressed": (change(transform_descriptors=("zstd",)), "compressed or encrypted"),
    "no pieces": (boxes(), "found pieces with 0 elements"),
    "a gap": (boxes(((0, 0), (2, 4))), "found pieces with 8 elements"),
    "an overlap": (boxes(((0, 0), (2, 4)), ((1, 0), (1, 4))), "found pieces that overlap"),
    "twice": (boxes(((0, 0), (1, 4)), ((0, 0), (2, 4))), "found pieces that overlap"),
    "outside": (boxes(((2, 0), (3, 4))), "reaches beyond the tensor"),
    "another piece": (boxes(((0, 0), (1, 4)), ((1, 0), (2, 4))), "another piece than the metadata say"),
    "another rank": (boxes(((0,), (12,))), "another number of dimensions"),
    "another shape": (described(size=torch.Size([4, 3])), "do not make up the tensor"),
    "huge": (described(size=torch.Size([1 << 60, 1 << 60])), "too large"),
    "many dimensions": (described(size=torch.Size([1] * 30)), "too large"),
    "no shape": (described(size="3"), "no size"),
    "no type": (described(properties=None), "no element type"),
    "no place": (lambda parts: parts.stored.clear(), "do not say where a piece lies"),
    "no storage data": (lambda parts: setattr(parts, "stored", None), "do not say where tensors lie"),
    "odd storage data": (lambda parts: setattr(parts, "stored", {"w": 1}), "expected MetadataIndex, found str"),
    "odd place": (lambda parts: parts.stored.update(dict.fromkeys(parts.stored, 3)), "expected _StorageInfo, found int"),
    "odd chunk": (lambda parts: parts.described["w"].chunks.append(Odd()), "expected ChunkStorageMetadata, found sys.exit"),
    "odd key": (lambda parts: parts.described.update({3: parts.described["w"]}), "no state_dict_metadata"),
    "many attributes": (lambda parts: parts.described["w"].__dict__.update({str(at): at for at in range(99)}), "too many attributes"),
    "empty name": (lambda parts: parts.planner and parts.planner.update(w=("",)), "empty"),
    "long name": (lambda parts: parts.planner and parts.planner.update(w=("w" * 600,)), "too long"),
    "surrogate as file": (change(relative_path="\ud800"), "a file that cannot be a part"),
    "surrogate": (lambda parts: parts.planner and parts.planner.update(w=("\ud800",)), "not valid Unicode"),
}


@pytest.mark.parametrize("case", LIES)
def test_metadata_that_lie(case: str, tmp_path: Path) -> None:
    lie, text = LIES[case]
    parts = parts_of(tmp_path, {"w": torch.arange(12.0).reshape(3, 4)}, ranks=1)
    lie(parts)
    with pytest.raises(DeltapackError, match=text) as caught:
        open_checkpoint(parts.write(tmp_path))
    assert str(tmp_path) in str(caught.value)


def test_odd_objects_that_nobody_asks_for_are_data(tmp_path: Path) -> None:
    parts = parts_of(tmp_path, {"w": W}, ranks=1)
    parts.planner = {"w": ("w",), "odd": Odd(), 3: 4}
    parts.described["odd"] = Odd()
    check(parts.write(tmp_path), {"w": W})


def pieces_saved(value: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [
        (torch.arange(12.0).reshape(4, 3), CheckpointError, r"expected f32 \[3, 4\], found f32 \[4, 3\]"),
        (torch.arange(12).reshape(3, 4), CheckpointError, r"expected f32 \[3, 4\], found i64 \[3, 4\]"),
        (torch.zeros(3, 4, dtype=torch.complex128), CheckpointError, "found None"),
        ({"w": torch.zeros(3, 4)}, UnsupportedError, "only plain dense tensors are read: found Pairs"),
        (
            torch.ones(3, 4, dtype=torch.complex64).conj(),
            UnsupportedError,
            "only plain dense tensors are read: found torch._utils._rebuild",
        ),
        (torch._neg_view(torch.ones(3, 4)), UnsupportedError, "only plain dense tensors are read: found torch._utils"),
        (torch.eye(3).to_sparse(), UnsupportedError, "_rebuild_sparse_tensor"),
        (torch.nn.Linear(2, 2), UnsupportedError, "Linear"),
        (Odd(), UnsupportedError, "found sys.exit"),
    ],
    ids=str,
)
def test_archives_with_something_else(value: object, error: type[DeltapackError], text: str, tmp_path: Path) -> None:
    parts = parts_of(tmp_path, {"w": torch.arange(12.0).reshape(3, 4)}, ranks=1)
    data = pieces_saved(value)
    (tmp_path / "__0_0.distcp").write_bytes(data)
    parts.stored = {index: _StorageInfo("__0_0.distcp", 0, len(data)) for index in parts.stored}
    with pytest.raises(error, match=text) as caught:
        open_checkpoint(parts.write(tmp_path))
    assert caught.value.tensor == "w"


def repacked(data: bytes, method: int, change: Callable[[str, bytes], bytes | None]) -> bytes:
    """An archive of torch once more, with other records."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(out, "w", method) as new:
        for name in old.namelist():
            record = change(name, old.read(name))
            if record is not None:
                new.writestr(name, record)
    return out.getvalue()


def in_pickle(before: bytes, after: bytes) -> Callable[[str, bytes], bytes | None]:
    """Let the pickle of an archive say something else."""

    def change(name: str, data: bytes) -> bytes:
        if not name.endswith("data.pkl"):
            return data
        assert data.count(before) == 1
        return data.replace(before, after)

    return change


NOT_DENSE = "only plain dense tensors are read: found torch._utils._rebuild_tensor_v2"


@pytest.mark.parametrize(
    ("method", "change", "error", "text"),
    [
        (zipfile.ZIP_DEFLATED, lambda name, data: data, UnsupportedError, "a piece is compressed or big-endian"),
        (
            zipfile.ZIP_STORED,
            lambda name, data: b"big" if name.endswith("byteorder") else data,
            UnsupportedError,
            "a piece is compressed or big-endian",
        ),
        (zipfile.ZIP_STORED, lambda name, data: None if "/data/" in name else data, CheckpointError, "not in its archive"),
        (zipfile.ZIP_STORED, in_pickle(b"K\x00K\x03K\x04", b"J\xff\xff\xff\xffK\x03K\x04"), UnsupportedError, NOT_DENSE),
        (zipfile.ZIP_STORED, in_pickle(b"K\x04K\x01\x86", b"K\x04\x85"), UnsupportedError, NOT_DENSE),
        (zipfile.ZIP_STORED, in_pickle(b"K\x04K\x01\x86", b"NN\x86"), UnsupportedError, NOT_DENSE),
        (zipfile.ZIP_STORED, in_pickle(b"K\x04K\x01\x86", b"K\x05K\x01\x86"), CheckpointError, "reaches beyond its record"),
    ],
    ids=["compressed", "big-endian", "no elements", "before its record", "a stride missing", "strides of nothing", "too far apart"],
)
def test_archives_that_lie(
    method: int, change: Callable[[str, bytes], bytes | None], error: type[DeltapackError], text: str, tmp_path: Path
) -> None:
    parts = parts_of(tmp_path, {"w": torch.arange(12.0).reshape(3, 4)}, ranks=1)
    data = repacked((tmp_path / "__0_0.distcp").read_bytes(), method, change)
    (tmp_path / "__0_0.distcp").write_bytes(data)
    parts.stored = {index: _StorageInfo("__0_0.distcp", 0, len(data)) for index in parts.stored}
    with pytest.raises(error, match=re.escape(text)) as caught:
        open_checkpoint(parts.write(tmp_path))
    assert caught.value.tensor == "w"


def test_pieces_share_no_bytes(tmp_path: Path) -> None:
    parts = parts_of(tmp_path, {"w": W, "v": W}, ranks=1)
    for key in "tu":  # each of the four lies in the file, which has room for two
        parts.described[key] = parts.described["w"]
        parts.stored[MetadataIndex(key, torch.Size([0]))] = next(iter(parts.stored.values()))
    with pytest.raises(CheckpointError, match="pieces share bytes of a file"):
        open_checkpoint(parts.write(tmp_path))


def test_a_parameter_is_a_tensor(tmp_path: Path) -> None:
    parts = parts_of(tmp_path, {"w": W}, ranks=1)
    data = pieces_saved(torch.nn.Parameter(W))
    (tmp_path / "__0_0.distcp").write_bytes(b"before" + data)
    parts.stored = {index: _StorageInfo("__0_0.distcp", 6, len(data)) for index in parts.stored}
    check(parts.write(tmp_path), {"w": W})


@pytest.mark.parametrize("name", [".metadata", "__0_0.distcp"])
def test_cut_and_flipped_files_raise_only_our_errors(name: str, tmp_path: Path) -> None:
    parts_of(tmp_path, {"w": torch.ones(4, 5), "v": W}, {"w": [((0, 0), (4, 2)), ((0, 2), (4, 3))]}, ranks=1).write(tmp_path)
    intact = (tmp_path / name).read_bytes()
    for at in range(0, len(intact), 7 if name == ".metadata" else 23):
        for content in (intact[:at], intact[:at] + bytes([intact[at] ^ 0x55]) + intact[at + 1 :]):
            (tmp_path / name).write_bytes(content)
            try:
                with open_checkpoint(tmp_path) as checkpoint:
                    for tensor in checkpoint.tensors:
                        checkpoint.read(tensor)
            except (CheckpointError, UnsupportedError, LimitError) as error:
                assert str(tmp_path) in str(error.path)


def frame(body: bytes) -> bytes:
    return b"\x80\x04" + body + b"."


BOMBS = {
    "empty": b"",
    "another pickle": pickle.dumps({"w": 1}, 4),
    "call": pickle.dumps(Odd(), 4),
    "memory far away": frame(b"Nr\xff\xff\xff\xff"),
    "remembered before": frame(b"j\xff\xff\xff\xff"),
    "long text": frame(b"\x8d" + b"\xff" * 8),
    "long bytes": frame(b"\x8e" + b"\x00" * 6 + b"\x01\x00"),
    "large integer": frame(b"\x8a\xff" + b"\x01" * 255),
    "no mark": frame(b"Nt"),
    "mark as a value": frame(b"(\x85"),
    "nothing": frame(b""),
    "unknown instruction": frame(b"\xfe"),
    "extension": frame(b"\x82\x01"),
    "protocol 9": b"\x80\x09N.",
    "endless name": frame(b"cos"),
    "depth": frame(b")" + b"\x85" * 100_000),
    "itself": frame(b"]\x94h\x00a"),
    "list of no list": frame(b"NNa"),
    "dict of no dict": frame(b"NNNs"),
    "state of no object": frame(b"NNb"),
    "name of numbers": frame(b"K\x01K\x02\x93"),
}


@pytest.mark.parametrize("case", BOMBS)
def test_pickles_that_are_no_metadata(case: str, tmp_path: Path) -> None:
    parts_of(tmp_path, {"w": W}, ranks=1)
    (tmp_path / ".metadata").write_bytes(BOMBS[case])
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(tmp_path)
    assert caught.value.path == tmp_path / ".metadata"


def test_limits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parts = parts_of(tmp_path, {"w": W, "v": W}, {"w": [((0,), (1,)), ((1,), (3,))]}, ranks=1).write(tmp_path)
    for limits in (replace(DEFAULT_LIMITS, header_bytes=100), replace(DEFAULT_LIMITS, numel=3), replace(DEFAULT_LIMITS, tensors=1)):
        with pytest.raises(LimitError):
            open_checkpoint(parts, limits)
    with monkeypatch.context() as patch:
        patch.setattr("deltapack.checkpoint.distributed._MOST_PIECES", 2)
        with pytest.raises(LimitError, match="too many pieces"):
            open_checkpoint(parts)
    empty = parts_of(tmp_path / "empty", {"w": W, "v": W}, ranks=1)
    for own in empty.described.values():
        own.__dict__.setdefault("chunks", []).extend([ChunkStorageMetadata(torch.Size([0]), torch.Size([0]))] * 2)
    with monkeypatch.context() as patch:
        patch.setattr("deltapack.checkpoint.distributed._MOST_PIECES", 5)
        with pytest.raises(LimitError, match="too many pieces"):
            open_checkpoint(empty.write(tmp_path / "empty"))
    monkeypatch.setattr("deltapack.checkpoint.pickled._MOST_STEPS", 50)
    with pytest.raises(LimitError, match="too many instructions"):
        open_checkpoint(parts)


def test_lists_and_dicts_of_a_pickle_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deltapack.checkpoint.pickled._MOST_CONTAINERS", 50)
    assert read_pickle(b"\x80\x02" + b"]0" * 50 + b"N.", Path("x")) is None
    for instruction in (b"]", b"}", b"\x8f"):
        with pytest.raises(LimitError, match="too many lists and dicts"):
            read_pickle(b"\x80\x02" + (instruction + b"0") * 51 + b"N.", Path("x"))
    assert gc.isenabled()


@pytest.mark.parametrize("shape", [(5,), (4, 6), (2, 3, 4)])
def test_cells_of_a_grid_are_known_without_comparing_them(shape: tuple[int, ...]) -> None:
    cuts = [sorted({0, size // 2, size - 1, size}) for size in shape]
    sides = [list(pairwise(own)) for own in cuts]
    boxes = [(tuple(low for low, _ in cell), tuple(high - low for low, high in cell)) for cell in product(*sides)]
    assert boxes_module._is_grid(shape, boxes) and flaw_of(shape, boxes) is None
    assert not boxes_module._is_grid(shape, boxes[1:])
    (start, extent), *others = boxes
    longer = (start, (extent[0] + 1, *extent[1:]))
    assert not boxes_module._is_grid(shape, [longer, *others])


def test_many_pieces_in_a_grid_are_a_tensor() -> None:
    assert flaw_of((5000,), [((at,), (1,)) for at in range(5000)]) is None


def test_the_directory_of_an_archive_is_bounded(tmp_path: Path) -> None:
    (tmp_path / "piece").write_bytes(pieces_saved(W))
    with closing(open_to_read(tmp_path / "piece")) as file:
        records = read_records(file, DEFAULT_LIMITS)
        assert records is not None
        with pytest.raises(LimitError, match="directory"):
            read_records(file, replace(DEFAULT_LIMITS, header_bytes=len(records.data_pkl)))


def test_pieces_in_no_grid_are_compared_up_to_a_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = [((0, 0), (1, 3)), ((0, 3), (2, 1)), ((1, 0), (2, 3)), ((2, 3), (1, 1))]
    tensor = torch.arange(12.0).reshape(3, 4)
    folder = parts_of(tmp_path, {"w": tensor}, {"w": own}).write(tmp_path)
    check(folder, {"w": tensor})
    monkeypatch.setattr("deltapack.checkpoint.boxes._MOST_UNEVEN", 3)
    with pytest.raises(CheckpointError, match="4 pieces that are in no grid"):
        open_checkpoint(folder)


def test_no_more_is_read_than_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tensor = torch.arange(6000, dtype=torch.int16).reshape(20, 30, 10)
    cut = [((0, 0, 0), (20, 10, 4)), ((0, 10, 0), (20, 20, 4)), ((0, 0, 4), (20, 10, 6)), ((0, 10, 4), (20, 20, 6))]
    folder = parts_of(tmp_path, {"w": tensor}, {"w": cut}).write(tmp_path)
    asked: list[int] = []
    read_into = LocalFile.read_into

    def counted(file: LocalFile, offset: int, view: memoryview) -> None:
        asked.append(len(view))
        read_into(file, offset, view)

    with open_checkpoint(folder) as checkpoint:
        monkeypatch.setattr(LocalFile, "read_into", counted)
        for start, stop, reads in ((0, 6000, 4), (7, 8, 1), (299, 301, 2), (300, 900, 4), (3, 5997, 3 + 3 + 12 * 4)):
            asked.clear()
            assert checkpoint.read("w", start, stop).tolist() == list(range(start, stop))
            assert sum(asked) == 2 * (stop - start) and len(asked) <= reads
