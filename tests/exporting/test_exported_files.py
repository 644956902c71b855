"""A pack as a file of differences, as files of PyTorch, and as the restored model."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from support.builders import random_tensor, read_file, read_folder, tuned_model, whole, write_folder

import deltapack
from deltapack import Recipe
from deltapack.errors import OutputError, RecipeError


def make(folder: Path, dtype: str = "bf16") -> Path:
    base = {
        "up.weight": random_tensor(1, (40, 30), dtype),
        "down.weight": random_tensor(2, (30, 40), dtype),
        "norm.weight": random_tensor(3, (30,), dtype),
        "steps": whole("i64", np.arange(4)),
    }
    tuned = {**tuned_model(base), "down.weight": base["down.weight"], "steps": whole("i64", np.arange(4) + 1)}
    tuned["head.weight"] = random_tensor(4, (3, 30), dtype)
    for name, model in (("base", base), ("tuned", tuned)):
        write_folder(folder / name, model, {"config.json": json.dumps({"name": name})})
    deltapack.compress(folder / "base", folder / "tuned", folder / "x.dpk", recipe=Recipe(exact=True), workers=1)
    return folder / "x.dpk"


@pytest.mark.parametrize("dtype", [None, "f32"])
def test_differences(dtype: str | None, tmp_path: Path) -> None:
    pack = make(tmp_path)
    report = deltapack.export_difference(pack, tmp_path / "base", tmp_path / "d.safetensors", dtype=dtype)
    base, tuned = (load_file(tmp_path / name / "model.safetensors") for name in ("base", "tuned"))
    found = load_file(tmp_path / "d.safetensors")
    assert found.keys() == {"up.weight", "norm.weight", "steps", "head.weight"}
    assert (report.differences, report.whole) == (2, ["head.weight", "steps"])
    for name in ("up.weight", "norm.weight"):
        exact = tuned[name].float() - base[name].float()
        assert torch.equal(found[name], exact if dtype else exact.bfloat16())
        if dtype:
            assert torch.equal((base[name].float() + found[name]).bfloat16(), tuned[name])
    assert torch.equal(found["steps"], tuned["steps"]) and torch.equal(found["head.weight"], tuned["head.weight"])
    with safe_open(tmp_path / "d.safetensors", "np") as file:
        assert json.loads(file.metadata()["whole"]) == ["head.weight", "steps"]


def test_files_of_torch(tmp_path: Path) -> None:
    pack = make(tmp_path)
    report = deltapack.export_torch(pack, tmp_path / "base", tmp_path / "torch")
    assert sorted(read_folder(tmp_path / "torch")) == ["config.json", "pytorch_model.bin"] and report.files == ("pytorch_model.bin",)
    assert json.loads((tmp_path / "torch" / "config.json").read_text()) == {"name": "tuned"}
    state, tuned = torch.load(tmp_path / "torch" / "pytorch_model.bin", weights_only=True), load_file(tmp_path / "tuned/model.safetensors")
    assert state.keys() == tuned.keys() and all(torch.equal(state[name], tensor) for name, tensor in tuned.items())
    assert report.tensors == len(tuned)


def test_several_files_of_torch_with_an_index(tmp_path: Path) -> None:
    pack = make(tmp_path)
    report = deltapack.export_torch(pack, tmp_path / "base", tmp_path / "torch", max_shard_size=2500)
    assert len(report.files) > 1 and report.files[0].startswith("pytorch_model-00001-of-")
    index = json.loads((tmp_path / "torch" / "pytorch_model.bin.index.json").read_text())
    assert set(index["weight_map"].values()) == set(report.files) and not list((tmp_path / "torch").glob("*.safetensors*"))
    deltapack.compress(tmp_path / "tuned", tmp_path / "torch", tmp_path / "same.dpk", recipe=Recipe(exact=True), workers=1)
    with deltapack.open_pack(tmp_path / "same.dpk") as same:
        assert {entry.kind for entry in same.values()} == {"unchanged"}


def test_files_of_diffusers_keep_their_name(tmp_path: Path) -> None:
    """Its loader asks for `diffusion_pytorch_model.bin` and the index of that name."""
    stem = "diffusion_pytorch_model"
    for number, name in enumerate(("base", "tuned")):
        files = {f"{stem}-0000{part}-of-00002.safetensors": f"layer{part}.weight" for part in (1, 2)}
        (tmp_path / name).mkdir()
        for file, tensor in files.items():
            save_file({tensor: torch.full((6, 4), 1.0 + number)}, tmp_path / name / file, {"format": "pt"})
        index = {"metadata": {"total_size": 192}, "weight_map": {tensor: file for file, tensor in files.items()}}
        (tmp_path / name / f"{stem}.safetensors.index.json").write_text(json.dumps(index))
    deltapack.compress(tmp_path / "base", tmp_path / "tuned", tmp_path / "x.dpk", recipe=Recipe(exact=True), workers=1)
    report = deltapack.export_torch(tmp_path / "x.dpk", tmp_path / "base", tmp_path / "torch")
    assert list(report.files) == [f"{stem}-00001-of-00002.bin", f"{stem}-00002-of-00002.bin"]
    assert sorted(read_folder(tmp_path / "torch")) == [*report.files, f"{stem}.bin.index.json"]
    index = json.loads((tmp_path / "torch" / f"{stem}.bin.index.json").read_text())
    assert index["weight_map"] == {f"layer{part}.weight": file for part, file in enumerate(report.files, 1)}


def test_tied_tensors_share(tmp_path: Path) -> None:
    for number, name in enumerate(("base", "tuned")):
        (tmp_path / name).mkdir()
        kept = torch.full((6, 4), 1.0 + number)
        torch.save({"a.weight": kept, "b.weight": kept}, tmp_path / name / "pytorch_model.bin")
    deltapack.compress(tmp_path / "base", tmp_path / "tuned", tmp_path / "x.dpk", recipe=Recipe(exact=True), workers=1)
    deltapack.export_torch(tmp_path / "x.dpk", tmp_path / "base", tmp_path / "out")
    state = torch.load(tmp_path / "out" / "pytorch_model.bin", weights_only=True)
    assert state["a.weight"].data_ptr() == state["b.weight"].data_ptr() and float(state["b.weight"][0, 0]) == 2.0


def test_the_restored_model(tmp_path: Path) -> None:
    pack = make(tmp_path)
    deltapack.apply(tmp_path / "base", pack, tmp_path / "applied")
    deltapack.export_full(pack, tmp_path / "base", tmp_path / "full")
    assert read_folder(tmp_path / "full") == read_folder(tmp_path / "applied")
    deltapack.export_full(pack, tmp_path / "base", tmp_path / "full.safetensors", dtype="f32")
    assert {tensor.dtype for tensor in read_file(tmp_path / "full.safetensors").values()} == {"f32", "i64"}


def test_what_is_refused(tmp_path: Path) -> None:
    pack = make(tmp_path)
    with pytest.raises(RecipeError, match="one file"):
        deltapack.export_difference(pack, tmp_path / "base", tmp_path / "folder")
    save_file({"x": torch.zeros(1)}, tmp_path / "d.safetensors")
    (tmp_path / "there").mkdir()
    with pytest.raises(OutputError, match="exists"):
        deltapack.export_difference(pack, tmp_path / "base", tmp_path / "d.safetensors")
    with pytest.raises(OutputError, match="exists"):
        deltapack.export_torch(pack, tmp_path / "base", tmp_path / "there")
    for export in (deltapack.export_torch, deltapack.export_full, deltapack.write_model_folder):
        out = tmp_path / export.__name__
        out.symlink_to(tmp_path / "nothing")
        with pytest.raises(OutputError, match=r"exists|symbolic link"):
            export(pack, tmp_path / "base", out)
        assert out.is_symlink()
    with pytest.raises(OutputError, match="exists") as caught:
        deltapack.export_full(pack, tmp_path / "base", tmp_path / "d.safetensors")
    assert "--force" not in str(caught.value)  # which no export has


@pytest.mark.parametrize("call", ["export_adapter", "export_torch", "export_full", "write_model_folder"])
def test_nothing_is_written_into_an_input(call: str, tmp_path: Path) -> None:
    pack = make(tmp_path)
    before = read_folder(tmp_path)
    with pytest.raises(OutputError, match=r"base/new: the output lies in one of the inputs: found .*base\. Inputs are never overwritten"):
        getattr(deltapack, call)(pack, tmp_path / "base", tmp_path / "base" / "new", **({"rank": 2} if call == "export_adapter" else {}))
    assert read_folder(tmp_path) == before
