"""A checkpoint that came whole is held against a pack that restores it: what is the same, what is not, and what does not count."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from support.builders import Model, edited, random_tensor, read_file, small_model, tuned_model, write_file, write_folder

import deltapack
from deltapack.errors import CheckpointError, FormatError, ModelMismatchError, NotACheckpointError

BASE = small_model()
TUNED = tuned_model(BASE)
FILES = {"config.json": '{"tuned": 1}', "README.md": "text"}


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, an exact pack, a lossy one, and what they restore."""
    folder = tmp_path_factory.mktemp("matching")
    write_folder(folder / "base", BASE)
    write_folder(folder / "tuned", TUNED, FILES)
    for name, recipe in (("exact", deltapack.Recipe(exact=True)), ("lossy", deltapack.Recipe(drop_rate=0.5))):
        deltapack.compress(folder / "base", folder / "tuned", folder / f"{name}.dpk", recipe=recipe)
        deltapack.apply(folder / "base", folder / f"{name}.dpk", folder / name)
    return folder


@pytest.mark.parametrize("name", ["exact", "lossy"])
@pytest.mark.parametrize("workers", [1, 4])
def test_what_a_pack_restores_is_what_it_restores(name: str, workers: int, here: Path) -> None:
    seen: list[tuple[int, int]] = []
    report = deltapack.verify_model(
        here / f"{name}.dpk", here / name, workers=workers, progress=lambda done, total: seen.append((done, total))
    )
    with deltapack.open_pack(here / f"{name}.dpk") as pack:
        assert (report.pack_id, report.content_id, report.base_fingerprint) == (pack.id, pack.content_id, pack.index.base_fingerprint)
        assert report.tensor_bytes == pack.index.result_bytes
    assert (report.tensors, report.side_files, report.notes) == (4, 1, [])
    assert report.weight_files_match == (name == "exact")
    assert seen[-1] == (report.tensor_bytes, report.tensor_bytes) and seen == sorted(seen)


def test_the_fine_tune_is_what_an_exact_pack_restores_and_not_what_a_lossy_one_does(here: Path) -> None:
    assert deltapack.verify_model(here / "exact.dpk", here / "tuned").weight_files_match
    with pytest.raises(ModelMismatchError, match=r"tensor 'embed.weight': the tensor has other elements than the pack restores"):
        deltapack.verify_model(here / "lossy.dpk", here / "tuned")


def as_pickle(folder: Path) -> None:
    tensors = {name: torch.from_numpy(tensor.bits.copy()) for name, tensor in TUNED.items()}
    torch.save(tensors, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def in_shards(folder: Path) -> None:
    model = read_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = {name: f"model-{number:05}-of-{len(model):05}.safetensors" for number, name in enumerate(model, 1)}
    for name, file in names.items():
        write_file(folder / file, {name: model[name]})
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": names}))


def as_links(folder: Path) -> None:
    """As the cache of the Hub has it."""
    blobs = folder.with_name("blobs")
    blobs.mkdir()
    for path in list(folder.iterdir()):
        path.rename(blobs / path.name)
        path.symlink_to(blobs / path.name)


SAME: dict[str, tuple[Callable[[Path], object], str]] = {
    "another card": (lambda folder: (folder / "README.md").write_text("another"), ""),
    "no card": (lambda folder: (folder / "README.md").unlink(), ""),
    "a licence": (lambda folder: (folder / "LICENSE").write_text("free"), ""),
    "a signature": (lambda folder: (folder / "model.sig").write_text("{}"), "not compared, as packs hold no such files: 'model.sig'"),
    "another order in the file": (
        lambda folder: write_file(folder / "model.safetensors", dict(reversed(TUNED.items()))),
        "the tensors lie in the weight files otherwise",
    ),
    "shards": (in_shards, "the tensors lie in the weight files otherwise"),
    "links": (as_links, ""),
    "a pickle": (as_pickle, "the tensors lie in the weight files otherwise"),
}


@pytest.mark.parametrize(("change", "note"), SAME.values(), ids=SAME.keys())
def test_what_does_not_count(change: Callable[[Path], object], note: str, here: Path, tmp_path: Path) -> None:
    shutil.copytree(here / "tuned", tmp_path / "model")
    change(tmp_path / "model")
    report = deltapack.verify_model(here / "exact.dpk", tmp_path / "model")
    assert len(report.notes) == bool(note) and all(note in found for found in report.notes)


def with_tensors(change: Callable[[Model], Model]) -> Callable[[Path], object]:
    return lambda folder: write_file(folder / "model.safetensors", change(TUNED))


OTHER: dict[str, tuple[Callable[[Path], object], str]] = {
    "one bit": (
        with_tensors(lambda m: m | {"layer.bias": edited(m["layer.bias"], 3, np.float32(0))}),
        "tensor 'layer.bias': the tensor has",
    ),
    "a tensor more": (with_tensors(lambda m: m | {"x": m["positions"]}), "the tensors are others than .*: found 'x' too many"),
    "a tensor less": (
        with_tensors(lambda m: {k: v for k, v in m.items() if k != "positions"}),
        "the tensors are others than .*: found 'positions' lacking",
    ),
    "a shape": (
        with_tensors(lambda m: m | {"layer.bias": random_tensor(1, (70, 10))}),
        "the shape is another: expected .700., found .70, 10.",
    ),
    "a type": (
        with_tensors(lambda m: m | {"layer.bias": random_tensor(1, (700,), "bf16")}),
        "the type is another: expected f32, found bf16",
    ),
    "a tie": (
        lambda folder: write_file(folder / "model.safetensors", TUNED, {"head.weight": "embed.weight"}),
        "second names of tied tensors are others than .*: found 'head.weight' too many",
    ),
    "a file": (lambda folder: (folder / "config.json").write_text("{}"), "the side file config.json is another"),
    "a file less": (lambda folder: (folder / "config.json").unlink(), "the side files are others than .*: found 'config.json' lacking"),
    "a file more": (lambda folder: (folder / "vocab.json").write_text("{}"), "found 'vocab.json' too many"),
    "code": (lambda folder: (folder / "modeling.py").write_text("print()"), "found 'modeling.py' too many"),
}


@pytest.mark.parametrize(("change", "text"), OTHER.values(), ids=OTHER.keys())
def test_what_counts(change: Callable[[Path], object], text: str, here: Path, tmp_path: Path) -> None:
    shutil.copytree(here / "tuned", tmp_path / "model")
    change(tmp_path / "model")
    with pytest.raises(ModelMismatchError, match=text) as caught:
        deltapack.verify_model(here / "exact.dpk", tmp_path / "model")
    assert caught.value.path == tmp_path / "model" and caught.value.exit_code == 4


def test_one_file_has_tensors_alone(here: Path, tmp_path: Path) -> None:
    report = deltapack.verify_model(here / "exact.dpk", here / "tuned" / "model.safetensors")
    assert report.notes == ["one file has no side files: tensors alone were compared"] and report.side_files == 0
    deltapack.compress(here / "base" / "model.safetensors", here / "tuned" / "model.safetensors", tmp_path / "bare.dpk")
    deltapack.apply(here / "base", tmp_path / "bare.dpk", tmp_path / "out")
    told = deltapack.verify_model(tmp_path / "bare.dpk", tmp_path / "out")
    assert told.notes == ["the pack says nothing of side files: those of the model were not compared"]
    with deltapack.open_pack(tmp_path / "bare.dpk") as pack:
        assert told.content_id == pack.content_id


def test_weights_and_types_of_an_apply_are_other_models(here: Path, tmp_path: Path) -> None:
    deltapack.apply(here / "base", here / "lossy.dpk", tmp_path / "half", weight=0.5)
    deltapack.apply(here / "base", here / "lossy.dpk", tmp_path / "bf16", dtype="bf16")
    for folder in ("half", "bf16"):
        with pytest.raises(ModelMismatchError):
            deltapack.verify_model(here / "lossy.dpk", tmp_path / folder)


def test_weights_that_cannot_be_read_are_refused(here: Path, tmp_path: Path) -> None:
    """They may be what is loaded, and nothing is known of them."""
    shutil.copytree(here / "tuned", tmp_path / "model")
    (tmp_path / "model" / "unet").mkdir()
    (tmp_path / "model" / "unet" / "model.safetensors").write_bytes(b"\xff" * 8)
    with pytest.raises(CheckpointError):
        deltapack.verify_model(here / "exact.dpk", tmp_path / "model")


def test_what_is_no_model_and_what_is_no_pack(here: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(NotACheckpointError):
        deltapack.verify_model(here / "exact.dpk", tmp_path / "empty")
    with pytest.raises(FormatError):
        deltapack.verify_model(here / "tuned" / "model.safetensors", here / "tuned")
