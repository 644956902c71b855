"""Written checkpoints load elsewhere, appear whole or not at all, and replace nothing but checkpoints."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save, save_file
from support.local_files import open_local

from deltapack.checkpoint import (
    Checkpoint,
    FileWriter,
    FolderWriter,
    open_checkpoint,
    open_writer,
    plan_shards,
)
from deltapack.checkpoint.coverage import Coverage
from deltapack.checkpoint.manifest import MANIFEST, manifest_of
from deltapack.dtypes import BY_NAME
from deltapack.errors import CheckpointError, FormatError, OutputError
from deltapack.format import placing

F32, U8 = BY_NAME["f32"], BY_NAME["u8"]
SHARDS = plan_shards([("a", F32, (2, 3)), ("b", F32, (4,))])


def fill(writer: FolderWriter | FileWriter) -> None:
    writer.write("a", 0, np.arange(6, dtype="<f4"))
    writer.write("b", 0, np.arange(4, dtype="<f4"))


OURS = {"": {"deltapack.version": "0"}}
"""What a file says of itself that `apply` or `merge` wrote."""


def write(out: Path, **options: Any) -> None:
    with open_writer(out, SHARDS, **options) as writer:
        fill(writer)


def copy(source: Checkpoint, out: Path, step: int = 5, **options: Any) -> None:
    """Write every tensor of `source` to `out` in small pieces."""
    tensors = [(info.name, info.dtype, info.shape) for info in source.tensors.values()]
    shards = plan_shards(tensors, like=source.weight_shards(), **options)
    with open_writer(out, shards, protect=[source.path], aliases=source.aliases) as writer:
        for name, info in source.tensors.items():
            for start in range(0, info.numel, step):
                writer.write(name, start, source.read(name, start, min(info.numel, start + step)))
        for file in source.side_files():
            writer.write_side_file(file.name, file.read())


def left_over(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir() if entry.name != MANIFEST)


def library_knows(tensor: torch.Tensor) -> bool:
    """Older versions of safetensors lack a few types."""
    try:
        save({"w": tensor})
    except KeyError:
        return False
    return True


def test_every_element_type_comes_back_in_the_library(tmp_path: Path) -> None:
    raw = torch.arange(24, dtype=torch.uint8)
    state = {dtype.name: raw.clone().view(getattr(torch, dtype.torch)) for dtype in BY_NAME.values() if dtype.name != "bool"}
    state = {name: tensor for name, tensor in state.items() if library_knows(tensor)}
    assert {"f64", "f32", "f16", "bf16", "f8_e4m3fn", "f8_e5m2", "i64", "i32", "i16", "i8", "u8"} <= set(state)
    state |= {"bool": raw % 3 == 0, "scalar": torch.tensor(1.5), "empty": torch.zeros(0, 2), "odd": raw[:3].clone()}
    save_file(state, tmp_path / "in.safetensors")
    with open_checkpoint(tmp_path / "in.safetensors") as source:
        copy(source, tmp_path / "out", 2)
        copy(source, tmp_path / "out.safetensors", 3)
    for path in (tmp_path / "out" / "model.safetensors", tmp_path / "out.safetensors"):
        with safe_open(path, "pt") as file:
            assert file.metadata() == {"format": "pt"}
            assert sorted(file.keys()) == sorted(state)
            for name, tensor in state.items():
                found = file.get_tensor(name)
                assert (found.dtype, found.shape) == (tensor.dtype, tensor.shape)
                assert found.reshape(-1).view(torch.uint8).tolist() == tensor.reshape(-1).view(torch.uint8).tolist()
    assert left_over(tmp_path) == ["in.safetensors", "out", "out.safetensors"]


@pytest.mark.parametrize("max_shard_size", [None, 20_000])
def test_transformers_loads_what_was_written(max_shard_size: int | None, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        vocab_size=32, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, tie_word_embeddings=True,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config).to(torch.bfloat16)
    model.save_pretrained(tmp_path / "in")
    with open_checkpoint(tmp_path / "in") as source:
        copy(source, tmp_path / "out", 1000, max_shard_size=max_shard_size)
    assert (tmp_path / "out" / "model.safetensors.index.json").exists() == (max_shard_size is not None)
    loaded = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "out", dtype="auto")
    wanted = model.state_dict()
    assert loaded.state_dict().keys() == wanted.keys()
    for name, tensor in loaded.state_dict().items():
        assert tensor.dtype == torch.bfloat16
        assert torch.equal(tensor.view(torch.int16), wanted[name].view(torch.int16)), name


def test_a_sharded_folder_has_an_index_and_reads_back(tmp_path: Path) -> None:
    shards = plan_shards([("b", F32, (4,)), ("a", F32, (2, 3))], max_shard_size=24)
    with open_writer(tmp_path / "out", shards, aliases={"tied": "b"}) as writer:
        fill(writer)
        writer.write_side_file("1_Pooling/config.json", b"{}")
    text = (tmp_path / "out" / "model.safetensors.index.json").read_text()
    one, two = (f"model-0000{at}-of-00002.safetensors" for at in (1, 2))
    assert json.loads(text) == {"metadata": {"total_size": 40}, "weight_map": {"a": two, "b": one}}
    assert text.endswith("}\n") and text.index('"a"') < text.index('"b"')
    with open_checkpoint(tmp_path / "out") as checkpoint:
        assert checkpoint.aliases == {"tied": "b"}
        assert checkpoint.read("tied").tolist() == [0, 1, 2, 3]
        assert [(file.name, file.read()) for file in checkpoint.side_files()] == [("1_Pooling/config.json", b"{}")]


def test_a_single_file_joins_shards_and_has_no_side_files(tmp_path: Path) -> None:
    shards = plan_shards([("b", F32, (4,)), ("a", F32, (2, 3))], max_shard_size=24)
    with open_writer(tmp_path / "out.safetensors", shards) as writer:
        fill(writer)
        writer.write_side_file("config.json", b"{}")
    assert left_over(tmp_path) == ["out.safetensors"]
    with open_checkpoint(tmp_path / "out.safetensors") as checkpoint:
        assert checkpoint.read("a").tolist() == [0, 1, 2, 3, 4, 5]


def test_a_checkpoint_without_tensors(tmp_path: Path) -> None:
    with open_writer(tmp_path / "out", plan_shards([])) as writer:
        writer.write_side_file("config.json", b"")
    with open_checkpoint(tmp_path / "out") as checkpoint:
        assert dict(checkpoint.tensors) == {}


def test_threads_write_in_any_order(tmp_path: Path) -> None:
    values = np.arange(40_000, dtype="<f4")
    with open_writer(tmp_path / "out", plan_shards([("a", F32, (200, 200))])) as writer, ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda at: writer.write("a", at, values[at : at + 400]), range(39_600, -1, -400)))
    with open_checkpoint(tmp_path / "out") as checkpoint:
        assert checkpoint.read("a").tobytes() == values.tobytes()


def test_modes_follow_the_umask(tmp_path: Path) -> None:
    old = os.umask(0o027)
    try:
        write(tmp_path / "out")
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "out").stat().st_mode) == 0o750
    assert stat.S_IMODE((tmp_path / "out" / "model.safetensors").stat().st_mode) == 0o640


@pytest.mark.parametrize("name", ["out", "out.safetensors"])
@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit, OutputError])
def test_an_exception_leaves_nothing(error: type[BaseException], name: str, tmp_path: Path) -> None:
    def stop() -> None:
        raise error("stop")

    with pytest.raises(error), open_writer(tmp_path / name, SHARDS) as writer:
        fill(writer)
        stop()
    assert left_over(tmp_path) == []


@pytest.mark.parametrize("name", ["out", "out.safetensors"])
def test_missing_elements_are_an_error_and_leave_nothing(name: str, tmp_path: Path) -> None:
    with pytest.raises(OutputError) as caught, open_writer(tmp_path / name, SHARDS) as writer:
        writer.write("a", 0, np.zeros(6, "<f4"))
        writer.write("b", 1, np.zeros(3, "<f4"))
    assert (caught.value.tensor, caught.value.expected, caught.value.found) == ("b", 4, "3 elements")
    assert left_over(tmp_path) == []


@pytest.mark.parametrize(
    ("name", "start", "array"),
    [
        ("x", 0, np.zeros(1, "<f4")),
        ("a", 0, np.zeros(1, "<f8")),
        ("a", -1, np.zeros(1, "<f4")),
        ("a", 6, np.zeros(1, "<f4")),
        ("a", 0, np.zeros(7, "<f4")),
        ("b", 1, np.zeros(2, "<f4")),
    ],
)
def test_a_wrong_write_is_an_error(name: str, start: int, array: np.ndarray[Any, Any], tmp_path: Path) -> None:
    with pytest.raises(OutputError), open_writer(tmp_path / "out", SHARDS) as writer:
        fill(writer)
        writer.write(name, start, array)
    assert left_over(tmp_path) == []


def test_a_write_after_the_end_is_an_error(tmp_path: Path) -> None:
    with open_writer(tmp_path / "out", SHARDS) as writer:
        fill(writer)
    with pytest.raises(OutputError):
        writer.write("a", 0, np.zeros(1, "<f4"))
    with pytest.raises(OutputError):
        writer.write_side_file("config.json", b"")


@pytest.mark.parametrize("name", ["../x.json", "/x.json", ".git/config", "model.safetensors", "x.bin"])
def test_a_hostile_side_file_leaves_nothing(name: str, tmp_path: Path) -> None:
    with pytest.raises(FormatError), open_writer(tmp_path / "out", SHARDS) as writer:
        fill(writer)
        writer.write_side_file(name, b"x")
    assert left_over(tmp_path) == []


@pytest.mark.parametrize("names", [["a.json", "a.json"], ["a.json", "a.json/b.json"], ["a/b.json", "a"]])
def test_side_files_that_collide(names: list[str], tmp_path: Path) -> None:
    with pytest.raises(OutputError), open_writer(tmp_path / "out", SHARDS) as writer:
        fill(writer)
        for name in names:
            writer.write_side_file(name, b"x")
    assert left_over(tmp_path) == []


def test_a_disk_that_is_too_small_is_told_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=39))
    with pytest.raises(OutputError, match="40 bytes"):
        write(tmp_path / "out")
    with pytest.raises(OutputError, match="free disk"), open_writer(tmp_path / "out", plan_shards([]), side_bytes=40):
        pass
    assert left_over(tmp_path) == []


def test_a_disk_that_fills_up_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OutputError, match="No space left"), open_writer(tmp_path / "out", SHARDS) as writer:
        monkeypatch.setattr(os, "pwrite", full)
        writer.write("a", 0, np.zeros(6, "<f4"))
    assert left_over(tmp_path) == []


def test_an_existing_output_needs_force(tmp_path: Path) -> None:
    for name in ("out", "out.safetensors"):
        write(tmp_path / name, metadata=OURS)
        with pytest.raises(OutputError, match="--force"):
            write(tmp_path / name, metadata=OURS)
        write(tmp_path / name, metadata=OURS, force=True)
    assert left_over(tmp_path) == ["out", "out.safetensors"]


def _framed(header: bytes) -> bytes:
    return len(header).to_bytes(8, "little") + header


@pytest.mark.parametrize(
    "content",
    [
        _framed(b"{}"),
        _framed(b'{"__metadata__":{"format":"pt"}}'),
        _framed(b'{"__metadata__":["deltapack.version"]}'),
        _framed(b'{"deltapack.version":"1"}'),
        _framed(b"{" + b"[" * 100_000),
        _framed(b"{\xff}"),
        (2**63).to_bytes(8, "little") + b"{}",
        b"\x40\0\0\0\0\0\0\0{",
    ],
    ids=["empty", "plain", "list", "tensor", "deep", "text", "long", "cut"],
)
def test_a_file_of_others_is_not_replaced(content: bytes, tmp_path: Path) -> None:
    out = tmp_path / "out.safetensors"
    out.write_bytes(content)
    text = (
        r"that deltapack did not write, or restored byte for byte, .*: expected deltapack\.version .* in its metadata, found none\. Move or"
    )
    with pytest.raises(OutputError, match=text) as caught:
        write(out, metadata=OURS, force=True)
    assert caught.value.path == out and out.read_bytes() == content and left_over(tmp_path) == ["out.safetensors"]


def test_an_empty_folder_needs_no_force(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    write(tmp_path / "out")
    assert left_over(tmp_path / "out") == ["model.safetensors"]


@pytest.mark.parametrize("exchange", [True, False])
def test_a_replaced_checkpoint_leaves_no_stale_file(exchange: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not exchange:
        monkeypatch.setattr(placing, "_renameat2", lambda one, other, flags: False)
    out = tmp_path / "out"
    (out / "1_Pooling").mkdir(parents=True)
    stale = "model-00001-of-00002.safetensors model.safetensors.index.json pytorch_model.bin config.json LICENSE"
    for name in [*stale.split(), "modeling_x.py", "1_Pooling/config.json"]:
        (out / name).write_bytes(b"old")
    (out / MANIFEST).write_bytes(manifest_of(out, "checkpoint"))
    write(out, force=True)
    assert left_over(out) == ["model.safetensors"]
    assert left_over(tmp_path) == ["out"]


@pytest.mark.parametrize(
    "foreign",
    [
        "thesis.docx",
        "train.py",
        ".env",
        ".git/config",
        "optimizer.pt",
        "onnx/model.onnx",
        "sub/train.py",
        "trainer_state.json",
    ],
)
def test_a_folder_that_holds_more_than_a_checkpoint_is_kept(foreign: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    write(out)
    (out / foreign).parent.mkdir(exist_ok=True)
    (out / foreign).write_bytes(b"precious")
    with pytest.raises(OutputError) as caught:
        write(out, force=True)
    assert str(caught.value.found).rstrip("/") in foreign
    assert (out / foreign).read_bytes() == b"precious"


def test_a_folder_of_texts_is_no_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.md").write_text("precious")
    with pytest.raises(OutputError, match=r"no list of what deltapack wrote.*notes\.md"):
        write(tmp_path / "out", force=True)
    assert (tmp_path / "out" / "notes.md").read_text() == "precious"


def test_a_file_that_appears_while_writing_is_kept(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(OutputError), open_writer(out, SHARDS) as writer:
        fill(writer)
        out.mkdir()
        (out / "precious").write_text("x")
    assert left_over(tmp_path) == ["out"]
    assert left_over(out) == ["precious"]


def test_the_old_folder_is_put_back_when_the_swap_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    write(out)
    (out / "config.json").write_text("old")
    (out / MANIFEST).write_bytes(manifest_of(out, "checkpoint"))
    rename = os.rename

    def fail_on_new(source: Path, target: Path) -> None:
        if str(source).endswith(".partial") and (Path(source) / "config.json").exists() is False:
            raise OSError(errno.EACCES, "denied")
        rename(source, target)

    monkeypatch.setattr(placing, "_renameat2", lambda one, other, flags: False)
    monkeypatch.setattr(os, "rename", fail_on_new)
    with pytest.raises(OutputError, match="denied"):
        write(out, force=True)
    assert left_over(tmp_path) == ["out"]
    assert (out / "config.json").read_text() == "old"


def test_kinds_of_outputs_that_are_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "folder.safetensors").mkdir()
    write(tmp_path / "real")
    (tmp_path / "link").symlink_to("real")
    for out in ("file", "folder.safetensors", "link", "missing/out", "missing/out.safetensors", ".."):
        with pytest.raises(OutputError):
            write(tmp_path / out, force=True)
    assert left_over(tmp_path) == ["file", "folder.safetensors", "link", "real"]


def test_inputs_are_never_overwritten(tmp_path: Path) -> None:
    base = tmp_path / "parent" / "base"
    base.parent.mkdir()
    write(base)
    pack = tmp_path / "parent" / "x.dpk"
    pack.write_bytes(b"pack")
    (tmp_path / "link").symlink_to(base)
    os.link(base / "model.safetensors", tmp_path / "hard.safetensors")
    refused = [base, base / "out", base / "out.safetensors", base.parent, base.parent / "." / "base", tmp_path / "link"]
    for out in [*refused, tmp_path / "link" / "out", base / ".." / "base", tmp_path / "hard.safetensors"]:
        with pytest.raises(OutputError, match="input"):
            write(out, force=True, protect=[base, base / "model.safetensors", pack])
    write(tmp_path / "parent" / "base2", protect=[base, pack])
    assert left_over(base) == ["model.safetensors"]


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL")
def test_a_killed_process_leaves_nothing_under_the_final_name(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys, pathlib, numpy as np\n"
        "from deltapack.checkpoint import open_writer, plan_shards\n"
        "from deltapack.dtypes import BY_NAME\n"
        "with open_writer(sys.argv[1], plan_shards([('a', BY_NAME['f32'], (6,))])) as writer:\n"
        "    writer.write('a', 0, np.zeros(6, '<f4'))\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "out")], cwd=root, check=False)
    assert done.returncode == -9
    assert not (tmp_path / "out").exists()
    assert sorted(name.rpartition(".")[2] for name in left_over(tmp_path)) == ["lock", "partial"]
    write(tmp_path / "out")
    assert left_over(tmp_path) == ["out"]


@given(st.lists(st.tuples(st.integers(0, 20), st.integers(1, 6))))
def test_coverage_counts_each_element_once(ranges: list[tuple[int, int]]) -> None:
    coverage, seen = Coverage(), set[int]()
    for start, length in ranges:
        new = set(range(start, start + length))
        assert coverage.add(start, start + length) == (not new & seen)
        if not new & seen:
            seen |= new
        assert coverage.count == len(seen)
    assert coverage.starts == sorted(coverage.starts)
    assert all(stop < start for stop, start in zip(coverage.stops, coverage.starts[1:], strict=False))


def test_bytes_are_copied_from_file_to_file(tmp_path: Path) -> None:
    """With and without the same place in a block of the file system, over several blocks and in parts."""
    data = np.random.default_rng(1).integers(0, 256, 50_000, np.uint8)
    (tmp_path / "source").write_bytes(data.tobytes())
    tensors = [("a", U8, (20_000,)), ("b", F32, (3, 1000))]
    with contextlib.closing(open_local(tmp_path / "source")) as source:
        for shift in (0, 1, 123, None):
            out = tmp_path / "out.safetensors"
            with open_writer(out, plan_shards(tensors), force=True, metadata=OURS) as writer:
                at = writer._places["a"][2] if shift is None else shift
                for start, count in ((5001, 14_999), (0, 1), (1, 5000)):
                    writer.copy("a", start, count, source, at + start)
                writer.copy("b", 0, 3000, source, 7)
                with pytest.raises(OutputError, match="twice"):
                    writer.copy("b", 5, 1, source, 7)
                with pytest.raises(OutputError, match="no such range"):
                    writer.copy("b", 2999, 2, source, 7)
                with pytest.raises(OutputError, match="not a tensor"):
                    writer.copy("c", 0, 1, source, 7)
            found = load_file(out)
            assert found["a"].numpy().tobytes() == data[at : at + 20_000].tobytes()
            assert found["b"].numpy().tobytes() == data[7:12_007].tobytes()


def test_a_source_that_is_cut_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "source").write_bytes(bytes(100))
    out = open_writer(tmp_path / "out.safetensors", plan_shards([("a", U8, (300,))]))
    with pytest.raises(CheckpointError, match="ended"), contextlib.closing(open_local(tmp_path / "source")) as source, out as writer:
        writer.copy("a", 0, 300, source, 0)
    assert os.listdir(tmp_path) == ["source"]


@pytest.mark.parametrize("can", ["not here", "not at all"])
def test_where_the_system_cannot_copy_bytes_go_through_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, can: str) -> None:
    asked: list[object] = []

    def refuse(*arguments: object) -> int:
        asked.append(arguments)
        raise OSError(errno.EXDEV, "another device")

    if can == "not here":
        monkeypatch.setattr(os, "copy_file_range", refuse)
    else:
        monkeypatch.delattr(os, "copy_file_range")
    (tmp_path / "source").write_bytes(bytes(range(200)))
    out = open_writer(tmp_path / "out.safetensors", plan_shards([("a", U8, (100,))]))
    with contextlib.closing(open_local(tmp_path / "source")) as source, out as writer:
        writer.copy("a", 0, 100, source, 50)
    assert load_file(tmp_path / "out.safetensors")["a"].tolist() == list(range(50, 150))
    assert bool(asked) == (can == "not here")
