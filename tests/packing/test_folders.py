"""Weights in sub-folders travel in one pack and come back into their folders, or are refused by name."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from support.builders import Model, decode_by_spec, random_tensor, read_file, read_folder, tuned_model, write_file

import deltapack
from deltapack.checkpoint import open_checkpoint
from deltapack.errors import CheckpointError, MergeConflictError, RecipeError, UnsupportedError


def model(seed: int, *names: str) -> Model:
    return {name: random_tensor(seed + number, (16, 24)) for number, name in enumerate(names)}


def write(path: Path, files: Mapping[str, Model], side: Mapping[str, str] | None = None) -> Path:
    """Weight files by relative name, and side files."""
    for name, tensors in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        write_file(path / name, tensors)
    for name, text in (side or {}).items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_text(text)
    return path


SENTENCES = {
    "model.safetensors": model(1, "embed", "layer/with/slash"),
    "2_Dense/model.safetensors": model(5, "linear.weight", "linear.bias"),
    "3_Asym/query/model.safetensors": model(9, "linear.weight"),
}
SIDE = {"config.json": "{}", "modules.json": "[]", "2_Dense/config.json": "{}", "1_Pooling/config.json": "{}"}
DIFFUSION = {
    "unet/diffusion_pytorch_model-00001-of-00002.safetensors": model(20, "a"),
    "unet/diffusion_pytorch_model-00002-of-00002.safetensors": model(21, "b"),
    "text_encoder/model.safetensors": model(22, "a"),
    "vae/diffusion_pytorch_model.safetensors": model(23, "a"),
}
INDEX = {"a": "diffusion_pytorch_model-00001-of-00002.safetensors", "b": "diffusion_pytorch_model-00002-of-00002.safetensors"}
DIFFUSION_SIDE = {
    "model_index.json": "{}",
    "unet/config.json": "{}",
    "scheduler/scheduler_config.json": "{}",
    "unet/diffusion_pytorch_model.safetensors.index.json": json.dumps({"metadata": {}, "weight_map": INDEX}),
}
PAIRS = {"sentences": (SENTENCES, SIDE), "diffusion": (DIFFUSION, DIFFUSION_SIDE)}


def tuned(files: Mapping[str, Model], seed: int = 100) -> dict[str, Model]:
    return {name: tuned_model(tensors, seed + number) for number, (name, tensors) in enumerate(files.items())}


def flat(files: Mapping[str, Model]) -> Model:
    """All tensors under their names in the whole checkpoint."""
    return {"".join(f"{part}/" for part in Path(file).parts[:-1]) + name: t for file, ts in files.items() for name, t in ts.items()}


def weights(path: Path) -> dict[str, Model]:
    return {file.relative_to(path).as_posix(): read_file(file) for file in sorted(path.rglob("*.safetensors"))}


@pytest.mark.parametrize("kind", PAIRS)
def test_sub_folders_come_back_as_they_were(kind: str, tmp_path: Path) -> None:
    files, side = PAIRS[kind]
    base, ft = write(tmp_path / "base", files, side), write(tmp_path / "ft", tuned(files), side)
    pack = tmp_path / "pack.dpk"
    deltapack.compress(base, ft, pack, recipe=deltapack.Recipe(values="f32", drop_rate=0.5))
    with deltapack.open_pack(pack) as opened:
        assert opened.index.required == ("folders",) and {*opened} == {*flat(files)}
    assert deltapack.verify(pack, base).base_tensors == len(flat(files))
    deltapack.apply(base, pack, tmp_path / "out")
    found = weights(tmp_path / "out")
    assert {name: list(tensors) for name, tensors in found.items()} == {name: list(tensors) for name, tensors in files.items()}
    assert flat(found) == decode_by_spec(flat(files), pack)
    assert read_folder(tmp_path / "out").keys() == read_folder(ft).keys()
    deltapack.apply(base, pack, tmp_path / "out", force=True)  # what it wrote, it may replace
    with pytest.raises(RecipeError, match="one file cannot hold weights of sub-folders"):
        deltapack.apply(base, pack, tmp_path / "out.safetensors")
    deltapack.merge(base, [pack, pack], tmp_path / "merged.dpk", weights=0.5)
    deltapack.apply(base, tmp_path / "merged.dpk", tmp_path / "merged")
    deltapack.merge(base, [pack, pack], tmp_path / "both", weights=0.5)
    assert weights(tmp_path / "merged") == weights(tmp_path / "both")
    assert deltapack.load_state_dict(base, pack).keys() == flat(files).keys()
    with pytest.raises(UnsupportedError, match="several folders"):
        deltapack.load_model(base, pack)


def test_layout_of_folders_that_only_one_side_has(tmp_path: Path) -> None:
    top, new = {"model.safetensors": model(1, "w")}, {"head/adapter_model.safetensors": model(2, "w")}
    base, ft = write(tmp_path / "base", top | {"old/model.safetensors": model(3, "w")}), write(tmp_path / "ft", tuned(top) | new)
    deltapack.compress(base, ft, tmp_path / "pack.dpk", allow_unrelated=True)
    deltapack.apply(base, tmp_path / "pack.dpk", tmp_path / "out")
    assert weights(tmp_path / "out").keys() == weights(ft).keys()
    deltapack.apply(base, tmp_path / "pack.dpk", tmp_path / "small", max_shard_size=1000)
    assert weights(tmp_path / "small").keys() == weights(ft).keys()


def test_shards_and_ties_of_a_sub_folder(tmp_path: Path) -> None:
    base = write(tmp_path / "base", {"model.safetensors": model(1, "w"), "d/model.safetensors": model(2, "a.weight", "b.weight")})
    ft = write(tmp_path / "ft", {"model.safetensors": model(1, "w")})
    (ft / "d").mkdir()
    write_file(ft / "d" / "model.safetensors", tuned_model(model(2, "a.weight", "b.weight")), {"tied.weight": "a.weight"})
    deltapack.compress(base, ft, tmp_path / "pack.dpk")
    deltapack.apply(base, tmp_path / "pack.dpk", tmp_path / "out", max_shard_size=16 * 24 * 4)
    index = json.loads((tmp_path / "out" / "d" / "model.safetensors.index.json").read_text())
    assert index["weight_map"] == {"a.weight": "model-00001-of-00002.safetensors", "b.weight": "model-00002-of-00002.safetensors"}
    with open_checkpoint(tmp_path / "out") as checkpoint:
        assert dict(checkpoint.aliases) == {"d/tied.weight": "d/a.weight"}
        assert list(checkpoint.tensors) == ["d/a.weight", "d/b.weight", "w"]


@pytest.mark.parametrize("name", ["pytorch_model.bin", "diffusion_pytorch_model.bin"])
def test_files_of_torch_in_a_sub_folder(name: str, tmp_path: Path) -> None:
    paths = []
    for folder in ("base", "ft"):
        paths.append(write(tmp_path / folder, {"model.safetensors": model(1, "w")}, {"2_Dense/config.json": "{}"}))
        torch.save({"linear": torch.ones(3, 4) * len(folder)}, paths[-1] / "2_Dense" / name)
    deltapack.compress(paths[0], paths[1], tmp_path / "pack.dpk", allow_unrelated=True)
    deltapack.apply(paths[0], tmp_path / "pack.dpk", tmp_path / "out")
    stem = name.removesuffix(".bin") if name.startswith("diff") else "model"
    assert weights(tmp_path / "out").keys() == {"model.safetensors", f"2_Dense/{stem}.safetensors"}


VARIANTS = {
    "a second precision": ["unet/model.safetensors", "unet/model.fp16.safetensors"],
    "a second precision at the top": ["model.fp16.safetensors"],
    "two checkpoints": ["unet/one.safetensors", "unet/two.safetensors"],
    "shards without an index": ["unet/model-00001-of-00002.safetensors", "unet/model-00002-of-00002.safetensors"],
    "a pickle of another name": ["voices/alloy.pt"],
}


@pytest.mark.parametrize("case", VARIANTS)
def test_weights_are_never_left_out_in_silence(case: str, tmp_path: Path) -> None:
    top = {"model.safetensors": model(1, "w")}
    base, ft = write(tmp_path / "base", top), write(tmp_path / "ft", tuned(top) | {name: model(3, "w") for name in VARIANTS[case]})
    with pytest.raises(UnsupportedError) as caught:
        deltapack.compress(base, ft, tmp_path / "pack.dpk")
    last = Path(VARIANTS[case][-1]).name
    assert caught.value.exit_code == 5 and last in str(caught.value) and not (tmp_path / "pack.dpk").exists()
    deltapack.compress(base, write(tmp_path / "plain", tuned(top)), tmp_path / "pack.dpk")
    deltapack.apply(ft if case != "a second precision at the top" else base, tmp_path / "pack.dpk", tmp_path / "out", verify=False)


@pytest.mark.parametrize("folder", ["checkpoint-500", "global_step10", "epoch_1", "optimizer", "runs"])
def test_states_of_training_stay_behind_and_are_said(folder: str, tmp_path: Path) -> None:
    top = {"model.safetensors": model(1, "w")}
    base, ft = write(tmp_path / "base", top), write(tmp_path / "ft", tuned(top) | {f"{folder}/model.safetensors": model(1, "w")})
    report = deltapack.compress(base, ft, tmp_path / "pack.dpk")
    assert report.kinds == {"delta": 1} and any(f"left out {folder}/" in note for note in report.notes)


def test_names_and_folders_that_contradict_each_other(tmp_path: Path) -> None:
    odd = write(tmp_path / "odd", {"model.safetensors": model(1, "d/w"), "d/model.safetensors": model(2, "v")})
    with pytest.raises(CheckpointError, match="the name of one in a sub-folder"):
        open_checkpoint(odd)
    several = write(tmp_path / "several", {"a/model.safetensors": model(1, "w"), "b/model.safetensors": model(2, "w")})
    with pytest.raises(CheckpointError, match="Name the folder of one model, such as"):
        open_checkpoint(several)
    base = write_file(tmp_path / "base.safetensors", model(1, "d/w", "v"))
    one = write(tmp_path / "one", {"model.safetensors": tuned_model(model(1, "d/w", "v"))})
    two = write(tmp_path / "two", {"model.safetensors": tuned_model(model(2, "v")), "d/model.safetensors": tuned_model(model(1, "w"))})
    for name, path in (("one", one), ("two", two)):
        deltapack.compress(base, path, tmp_path / f"{name}.dpk", allow_unrelated=True)
    with pytest.raises(MergeConflictError, match="different folders"):
        deltapack.merge(base, [tmp_path / "one.dpk", tmp_path / "two.dpk"], tmp_path / "out")
