"""Weights in sub-folders travel in one pack and come back into their folders, or are refused by name."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
import torch
from support.builders import Model, decode_by_spec, random_tensor, read_file, read_folder, tuned_model, write_file

import deltapack
from deltapack.checkpoint import open_checkpoint
from deltapack.errors import CheckpointError, MergeConflictError, RecipeError, UnsupportedError
from deltapack.merging.recipe import MergeRecipe, Rule, Schedule, constant


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
    "a folder too deep": ["a/b/c/d/e/f/model.safetensors"],
    "a pickle too deep": ["a/b/c/d/e/f/pytorch_model.bin"],
    "a folder whose name cannot travel": ["a:b/model.safetensors"],
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


TOP = {"model.safetensors": model(1, "w")}


def refused(base: Path, ft: Path, pack: Path) -> str:
    with pytest.raises(UnsupportedError) as caught:
        deltapack.compress(base, ft, pack)
    assert not pack.exists() and caught.value.hint
    return str(caught.value)


def test_links_to_folders_with_weights_are_refused(tmp_path: Path) -> None:
    base, ft = write(tmp_path / "base", TOP), write(tmp_path / "ft", tuned(TOP))
    write(tmp_path / "shared", {"deep/model.safetensors": model(2, "v")})
    (ft / "2_Dense").symlink_to(tmp_path / "shared")
    assert "2_Dense/deep/model.safetensors" in refused(base, ft, tmp_path / "pack.dpk")
    (ft / "2_Dense").unlink()
    write(ft / "3_Dense", {"model.safetensors": model(2, "v")})
    (ft / "4_Dense").symlink_to("3_Dense")
    assert "4_Dense/model.safetensors" in refused(base, ft, tmp_path / "pack.dpk")
    report = deltapack.compress(ft, write(tmp_path / "plain", tuned(TOP)), tmp_path / "pack.dpk")
    assert any("not read in the base" in note and "4_Dense" in note for note in report.notes)


def test_links_to_nothing_of_the_model_are_said(tmp_path: Path) -> None:
    files = TOP | {"checkpoint-500/model.safetensors": model(1, "w")}
    base, ft = write(tmp_path / "base", TOP), write(tmp_path / "ft", files, {"data/text.txt": ""})
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").touch()
    for name, target in {"latest": "checkpoint-500", "self": ".", "above": "..", "texts": "../texts"}.items():
        (ft / name).symlink_to(target)
    report = deltapack.compress(base, ft, tmp_path / "pack.dpk")
    assert any("left out above/, latest/, self/, texts/: a link to a folder" in note for note in report.notes)


def test_folders_that_cannot_be_listed_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base, ft = write(tmp_path / "base", TOP), write(tmp_path / "ft", tuned(TOP), {"2_Dense/config.json": "{}"})
    listed = Path.iterdir

    def closed(path: Path) -> Iterator[Path]:
        if path.name == "2_Dense":
            raise PermissionError(13, "Permission denied")
        yield from listed(path)

    monkeypatch.setattr(Path, "iterdir", closed)
    assert "Permission denied" in refused(base, ft, tmp_path / "pack.dpk")


LISTS = {
    "model_index.json": {"unet": ["diffusers", "UNet2DConditionModel"]},
    "modules.json": [{"idx": 0, "path": ""}, {"idx": 1, "path": "unet", "type": "sentence_transformers.models.Dense"}],
}


@pytest.mark.parametrize("listing", LISTS)
@pytest.mark.parametrize("name", ["unet/model.onnx", "unet/query/x.gguf"])
def test_parts_that_are_in_another_format_only_are_refused(listing: str, name: str, tmp_path: Path) -> None:
    side = {listing: json.dumps(LISTS[listing])}
    base = write(tmp_path / "base", TOP, side)
    assert Path(name).name in refused(base, write(tmp_path / "ft", tuned(TOP), side | {name: ""}), tmp_path / "pack.dpk")
    both = write(tmp_path / "both", tuned(TOP) | {"unet/model.safetensors": model(2, "v")}, side | {name: "", "onnx/model.onnx": ""})
    assert deltapack.compress(base, both, tmp_path / "pack.dpk", allow_unrelated=True).kinds == {"delta": 1, "exact": 1}


@pytest.mark.parametrize("listing", ["", "{", "[1, {}]", "[" * 100_000])
def test_exports_beside_a_model_are_said(listing: str, tmp_path: Path) -> None:
    side = {"modules.json": listing} if listing else {}
    ft = write(tmp_path / "ft", tuned(TOP), side | {"onnx/model.onnx": "", "gg/x.gguf": ""})
    report = deltapack.compress(write(tmp_path / "base", TOP), ft, tmp_path / "pack.dpk")
    assert any("left out gg/x.gguf, onnx/model.onnx: weights" in note for note in report.notes)


def two_models(path: Path, file: Model, shards: Model) -> Path:
    """A folder whose sub-folder has one file and an index of a shard."""
    write(path, TOP | {"d/model.safetensors": file, "d/model-00001-of-00001.safetensors": shards})
    index = {"weight_map": dict.fromkeys(shards, "model-00001-of-00001.safetensors")}
    (path / "d" / "model.safetensors.index.json").write_text(json.dumps(index))
    return path


def test_a_choice_of_weights_holds_in_sub_folders(tmp_path: Path) -> None:
    one, other = model(5, "v"), model(6, "v")
    ft = two_models(tmp_path / "ft", tuned_model(one), tuned_model(other))
    base = write(tmp_path / "base", TOP | {"d/model.safetensors": one})
    with pytest.raises(RecipeError, match="two models") as caught:
        deltapack.compress(base, ft, tmp_path / "pack.dpk")
    assert "'d/v'" in str(caught.value) and "in d/model.safetensors " in str(caught.value)
    for choice, expected in (("single", one), ("index", other)):
        deltapack.compress(base, ft, tmp_path / f"{choice}.dpk", weight_files=choice, recipe=deltapack.Recipe(exclude="d/v"))
        deltapack.apply(base, tmp_path / f"{choice}.dpk", tmp_path / choice)
        assert flat(weights(tmp_path / choice))["d/v"] == tuned_model(expected)["v"]
        with open_checkpoint(ft, weights=choice) as checkpoint:
            assert any(note.startswith("d/: ") and "was read, not" in note for note in checkpoint.notes)
    deltapack.compress(ft, base, tmp_path / "back.dpk", weight_files="index", allow_unrelated=True)
    with deltapack.open_pack(tmp_path / "back.dpk") as pack:
        assert pack["d/v"].kind == "delta"
    equal = two_models(tmp_path / "equal", one, one)
    with open_checkpoint(equal) as checkpoint:
        assert not checkpoint.unread and any("has the same weights" in note for note in checkpoint.notes)
    write(equal, {"d/more.safetensors": one})
    assert "more.safetensors" in refused(base, equal, tmp_path / "pack.dpk")


def test_a_choice_of_weights_in_memory(tmp_path: Path) -> None:
    one, other = model(5, "v"), model(6, "v")
    base = two_models(tmp_path / "base", one, other)
    ft = write(tmp_path / "ft", TOP | {"d/model.safetensors": tuned_model(other)})
    pack = tmp_path / "pack.dpk"
    deltapack.compress(base, ft, pack, weight_files="index")
    with pytest.raises(RecipeError, match="two models"):
        deltapack.load_state_dict(base, pack)
    with pytest.raises(RecipeError, match="two models"):
        deltapack.load_model(base, pack)
    state = deltapack.load_state_dict(base, pack, weight_files="index")
    with pytest.raises(UnsupportedError, match="several folders"):
        deltapack.load_model(base, pack, weight_files="index")
    tensors = deltapack.load_state_dict(base, [write_unchanged(base, tmp_path)], weight_files="index")
    with pytest.raises(RecipeError, match="two models"):
        deltapack.attach(tensors, base)
    with deltapack.attach(tensors, base, weight_files="index").activate(pack):
        assert all(torch.equal(tensors[name].view(torch.uint8), state[name].view(torch.uint8)) for name in state)


def write_unchanged(base: Path, tmp_path: Path) -> Path:
    """A pack of the base itself."""
    deltapack.compress(base, base, tmp_path / "same.dpk", weight_files="index")
    return tmp_path / "same.dpk"


@pytest.mark.parametrize("wrapper", ["module.", "_orig_mod.", "base_model.model.", "state_dict.", "model_state_dict.module."])
def test_wrappers_in_sub_folders(wrapper: str, tmp_path: Path) -> None:
    names = [f"m.{number}.weight" for number in range(3)]
    files = {"unet/model.safetensors": model(2, *names), "vae/model.safetensors": model(8, *names)}
    side = {"model_index.json": "{}"}
    base = write(tmp_path / "base", files, side)
    wrapped = {file: {wrapper + name: tensor for name, tensor in tensors.items()} for file, tensors in tuned(files).items()}
    report = deltapack.compress(base, write(tmp_path / "ft", wrapped, side), tmp_path / "pack.dpk")
    assert report.kinds == {"delta": 6}
    with deltapack.open_pack(tmp_path / "pack.dpk") as pack:
        found = {entry.name: entry.base.name for entry in pack.index.entries if entry.base}
    assert found == {f"{folder}/{wrapper}{name}": f"{folder}/{name}" for folder in ("unet", "vae") for name in names}
    deltapack.apply(base, tmp_path / "pack.dpk", tmp_path / "out")
    assert weights(tmp_path / "out").keys() == files.keys()


@pytest.mark.parametrize("folder", ["0_Transformer", "0_Transformer/inner", "v1.5"])
@pytest.mark.parametrize("back", [False, True])
def test_a_folder_in_front_of_names_is_a_prefix_like_another(folder: str, back: bool, tmp_path: Path) -> None:
    names = ["embeddings.weight", *(f"layers.{number}.{part}.weight" for number in range(2) for part in "qkv")]
    dense = {"2_Dense/model.safetensors": model(50, "linear.weight")}
    top, inner = {"model.safetensors": model(2, *names)}, {f"{folder}/model.safetensors": tuned_model(model(2, *names))}
    side = {"modules.json": "[]"}
    one, other = write(tmp_path / "one", top | dense, side), write(tmp_path / "other", inner | dense, side)
    base, ft = (other, one) if back else (one, other)
    report = deltapack.compress(base, ft, tmp_path / "pack.dpk")
    assert report.kinds["delta"] == len(names)
    assert any(f"removing the prefix '{folder}/' from the {'base' if back else 'fine-tune'}" in note for note in report.notes)
    deltapack.apply(base, tmp_path / "pack.dpk", tmp_path / "out")
    assert weights(tmp_path / "out").keys() == weights(ft).keys()


def test_folders_of_one_shape_are_never_taken_for_each_other(tmp_path: Path) -> None:
    names, side = [f"layers.{number}.{part}.weight" for number in range(2) for part in "qkv"], {"model_index.json": "{}"}
    base = write(tmp_path / "base", {"model.safetensors": model(2, *names)}, side)
    both = {f"{folder}/model.safetensors": tuned_model(model(2, *names)) for folder in ("text_encoder", "text_encoder_2")}
    report = deltapack.compress(base, write(tmp_path / "ft", both, side), tmp_path / "pack.dpk", allow_unrelated=True)
    assert report.kinds == {"exact": 2 * len(names), "removed": len(names)} and any(
        "more than one partner is possible" in note for note in report.notes
    )


def test_layers_of_a_sub_folder_have_their_depth(tmp_path: Path) -> None:
    names, side = [f"blocks.{number}.attn.weight" for number in range(3)], {"model_index.json": "{}"}
    files = {"transformer/model.safetensors": model(2, *names), "vae/model.safetensors": model(8, "layers.7.weight")}
    base, packs = write(tmp_path / "base", files, side), []
    for seed in (100, 200):
        ft = write(tmp_path / f"ft{seed}", tuned(files, seed), side)
        packs.append(tmp_path / f"{seed}.dpk")
        deltapack.compress(base, ft, packs[-1])
    rows = [row.name for row in deltapack.survey_merge(base, packs).layers]
    assert rows == ["layer 0", "layer 1", "layer 2", "layer 7"]
    recipe = MergeRecipe(weights=(Schedule((Rule((0.0, 1.0)),)), constant(0.0)))
    deltapack.merge(base, packs, tmp_path / "out", recipe=recipe)
    deltapack.merge(base, packs[:1], tmp_path / "half", weights=0.5)
    deltapack.apply(base, packs[0], tmp_path / "whole")
    out, half, whole = (flat(weights(tmp_path / name)) for name in ("out", "half", "whole"))
    for name, expected in zip([*names, "layers.7.weight"], (flat(files), half, whole, whole), strict=True):
        key = f"vae/{name}" if name.startswith("layers") else f"transformer/{name}"
        assert out[key] == expected[key] and flat(files)[key] != whole[key]
