"""Merges of models with tied embeddings and without: head and config fit each other, or the merge is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from support.builders import Model, moved, random_tensor, read_file, read_folder, read_model, write_file, write_folder

import deltapack
from deltapack.errors import MergeConflictError

EMBED, HEAD = "model.embed_tokens.weight", "lm_head.weight"
E = random_tensor(1, (64, 32))
TIED: Model = {EMBED: E}
UNTIED: Model = {EMBED: E, HEAD: random_tensor(2, (64, 32))}


def config(tied: bool | None, nested: bool = False, **more: Any) -> dict[str, str]:
    own: dict[str, Any] = {} if tied is None else {"tie_word_embeddings": tied}
    document = {"model_type": "x", "text_config": own} if nested else {"model_type": "x"} | own
    return {"config.json": json.dumps(document | more)}


def made(tmp_path: Path, base: tuple[Model, dict[str, str]], *tuned: tuple[Model, dict[str, str]]) -> tuple[Path, list[Path]]:
    """A base folder, and packs of fine-tunes: tensors moved, with these configs."""
    write_folder(tmp_path / "base", *base)
    packs = []
    for number, (tensors, files) in enumerate(tuned):
        name = "abc"[number]
        write_folder(tmp_path / name, {key: moved(tensor, 10 * number + at) for at, (key, tensor) in enumerate(tensors.items())}, files)
        packs.append(tmp_path / f"{name}.dpk")
        deltapack.compress(tmp_path / "base", tmp_path / name, packs[-1])
    return tmp_path / "base", packs


def result(folder: Path) -> tuple[bool | None, bool]:
    """What the config says, and whether there is a head."""
    document = json.loads((folder / "config.json").read_text())
    said = document.get("tie_word_embeddings", document.get("text_config", {}).get("tie_word_embeddings"))
    return said, HEAD in read_model(folder)


def merge(tmp_path: Path, base: Path, packs: list[Path], **options: Any) -> tuple[bool | None, bool, list[str]]:
    """Merge into a folder and into a pack, which restores the same."""
    report = deltapack.merge(base, packs, tmp_path / "out", force=True, **options)
    deltapack.merge(base, packs, tmp_path / "merged.dpk", force=True, **options)
    deltapack.apply(base, tmp_path / "merged.dpk", tmp_path / "again", force=True)
    deltapack.verify(tmp_path / "merged.dpk", base)
    one, other = read_folder(tmp_path / "out"), read_folder(tmp_path / "again")
    assert one["model.safetensors"] == other["model.safetensors"] and one["config.json"] == other["config.json"]
    deltapack.preview_merge(base, packs, tmp_path / "new", **options)
    return *result(tmp_path / "out"), [str(note) for note in report.notes]


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
@pytest.mark.parametrize("equal", [False, True])
def test_one_ties_and_one_does_not(tmp_path: Path, nested: bool, order: tuple[int, int], equal: bool) -> None:
    start = {EMBED: E, HEAD: E} if equal else UNTIED
    base, packs = made(tmp_path, (start, config(False, nested)), (TIED, config(True, nested)), (start, config(False, nested)))
    tied, untied = packs
    packs = [packs[number] for number in order]
    with pytest.raises(MergeConflictError, match="--prefer PACK") as error:
        deltapack.merge(base, packs, tmp_path / "out")
    assert error.value.tensor == HEAD and "a.dpk ties it" in str(error.value) and not (tmp_path / "out").exists()
    with pytest.raises(MergeConflictError):
        deltapack.preview_merge(base, packs, tmp_path / "out")
    said, head, notes = merge(tmp_path, base, packs, prefer=tied)
    assert (said, head) == (True, False) and any("left out" in note and HEAD in note for note in notes)
    said, head, notes = merge(tmp_path, base, packs, prefer=untied)
    assert (said, head) == (False, True) and any("ties the head" in note and "a.dpk" in note for note in notes)
    assert merge(tmp_path, base, packs, assets="base")[:2] == (False, True)
    with pytest.raises(MergeConflictError):
        deltapack.merge(base, packs, tmp_path / "new", prefer=untied, assets=tied)


def test_all_tie_what_the_base_does_not(tmp_path: Path) -> None:
    """Two configs that differ elsewhere, so that the base's counts: what it says of ties is put right."""
    tuned = [(TIED, config(True, seed=seed)) for seed in (1, 2)]
    base, packs = made(tmp_path, (UNTIED, config(False)), *tuned)
    said, head, notes = merge(tmp_path, base, packs)
    assert (said, head) == (True, False) and any("tie_word_embeddings: true" in note for note in notes)


def test_none_ties_what_the_base_does(tmp_path: Path) -> None:
    base, packs = made(
        tmp_path, (TIED, config(True, nested=True)), (UNTIED, config(False, nested=True)), (UNTIED, config(False, nested=True))
    )
    said, head, notes = merge(tmp_path, base, packs, prefer=packs[0], assets="base")
    assert (said, head) == (False, True) and any("tie_word_embeddings: false" in note for note in notes)
    assert merge(tmp_path, base, packs[:1], assets="base")[:2] == (False, True)


def test_configs_that_say_nothing_tie_where_there_is_no_head(tmp_path: Path) -> None:
    base, packs = made(tmp_path, (UNTIED, config(None)), (TIED, config(None)), (UNTIED, config(None, seed=1)))
    with pytest.raises(MergeConflictError):
        deltapack.merge(base, packs, tmp_path / "out")
    assert merge(tmp_path, base, packs, prefer=packs[0])[:2] == (None, False)
    assert merge(tmp_path, base, packs, prefer=packs[1])[:2] == (None, True)


@pytest.mark.parametrize(
    ("base", "tuned"),
    [
        ((TIED, config(True)), [(TIED, config(True)), (TIED, config(True, seed=1))]),
        ((UNTIED, config(False)), [(UNTIED, config(False)), (UNTIED, config(False, seed=1))]),
        ((UNTIED, config(True)), [(UNTIED, config(True)), (TIED, config(True))]),  # a copy that loaders do not look at
        ((TIED, config(False)), [(TIED, config(False)), (TIED, config(False, seed=1))]),  # no language model
        ((UNTIED, {"config.json": "no JSON"}), [(UNTIED, {"config.json": "no JSON"})] * 2),
        ((UNTIED, {"config.json": "[]"}), [(UNTIED, {"config.json": '{"tie_word_embeddings": "yes"}'})] * 2),
    ],
)
def test_models_that_agree_are_left_alone(tmp_path: Path, base: Any, tuned: list[Any]) -> None:
    folder, packs = made(tmp_path, base, *tuned)
    report = deltapack.merge(folder, packs, tmp_path / "out")
    assert not any("tie" in note for note in report.notes)
    assert (tmp_path / "out" / "config.json").read_text() in {files["config.json"] for _, files in (base, *tuned)}


@pytest.mark.parametrize(
    ("base", "tuned"), [((UNTIED, config(False)), (TIED, config(True))), ((TIED, config(True)), (UNTIED, config(False)))]
)
def test_one_pack_is_what_the_fine_tune_was(tmp_path: Path, base: Any, tuned: Any) -> None:
    folder, packs = made(tmp_path, base, tuned)
    deltapack.apply(folder, packs[0], tmp_path / "out")
    assert result(tmp_path / "out") == (json.loads(tuned[1]["config.json"])["tie_word_embeddings"], HEAD in tuned[0])
    assert merge(tmp_path, folder, packs)[:2] == result(tmp_path / "out")


def test_files_without_a_config_merge_as_ever(tmp_path: Path) -> None:
    base, packs = made(tmp_path, (UNTIED, config(False)), (TIED, config(True)), (UNTIED, config(False)))
    bare = [tmp_path / f"{pack.stem}-bare.dpk" for pack in packs]
    for pack, name in zip(bare, "ab", strict=True):
        deltapack.compress(base / "model.safetensors", tmp_path / name / "model.safetensors", pack)
    deltapack.merge(base / "model.safetensors", bare, tmp_path / "out.safetensors")
    assert HEAD in read_model(tmp_path / "out.safetensors")


def test_loading_is_merging(tmp_path: Path) -> None:
    base, packs = made(tmp_path, (UNTIED, config(False)), (TIED, config(True)), (UNTIED, config(False)))
    with pytest.raises(MergeConflictError, match="output head"):
        deltapack.load_state_dict(base, packs)
    for pack in packs:
        merge(tmp_path, base, packs, prefer=pack)
        state = deltapack.load_state_dict(base, packs, prefer=pack)
        merged = read_model(tmp_path / "out")
        assert {name: tensor.numpy().tobytes() for name, tensor in state.items()} == {name: tensor.raw for name, tensor in merged.items()}


def pipeline(path: Path, tensors: Model, tied: bool, seed: int | None) -> Path:
    """A model whose language model is in a sub-folder, with a config of its own that says whether it ties."""
    top = {"lm_head.weight": random_tensor(7, (64, 32)), "embed_tokens.weight": random_tensor(8, (64, 32))}
    write_folder(path, top if seed is None else {name: moved(tensor, 99 + seed) for name, tensor in top.items()}, config(False))
    (path / "text").mkdir()
    own = tensors if seed is None else {name: moved(tensor, 10 * seed + at) for at, (name, tensor) in enumerate(tensors.items())}
    write_file(path / "text" / "model.safetensors", own)
    (path / "text" / "config.json").write_text(config(tied, seed=seed)["config.json"])
    return path


def text_of(path: Path) -> tuple[bool, bool, bool]:
    """What the config of the sub-folder says, whether a head is in it, and whether one is at the top."""
    said = json.loads((path / "text" / "config.json").read_text())["tie_word_embeddings"]
    return said, HEAD in read_file(path / "text" / "model.safetensors"), HEAD in read_file(path / "model.safetensors")


def test_a_head_in_a_sub_folder_goes_by_the_config_there(tmp_path: Path) -> None:
    base, packs = pipeline(tmp_path / "base", UNTIED, False, None), []
    for seed, tied in enumerate((True, False, True), start=1):
        packs.append(tmp_path / f"{seed}.dpk")
        deltapack.compress(base, pipeline(tmp_path / str(seed), TIED if tied else UNTIED, tied, seed), packs[-1])
    with pytest.raises(MergeConflictError, match="tied to the embeddings") as error:
        deltapack.merge(base, packs[:2], tmp_path / "out")
    assert error.value.tensor == f"text/{HEAD}" and "text/config.json" in str(error.value)
    for preferred, expected in ((0, (True, False, True)), (1, (False, True, True))):
        deltapack.merge(base, packs[:2], tmp_path / "out", prefer=packs[preferred], force=True)
        assert text_of(tmp_path / "out") == expected
    report = deltapack.merge(base, [packs[0], packs[2]], tmp_path / "out", force=True)
    assert any("text/config.json of the result says tie_word_embeddings: true" in str(note) for note in report.notes)
    deltapack.merge(base, [packs[0], packs[2]], tmp_path / "merged.dpk")
    deltapack.apply(base, tmp_path / "merged.dpk", tmp_path / "again")
    assert text_of(tmp_path / "out") == text_of(tmp_path / "again") == (True, False, True)
    assert (tmp_path / "out" / "config.json").read_text() == (base / "config.json").read_text()
