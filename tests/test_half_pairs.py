"""Halves of surrogate pairs, which JSON may spell and no UTF-8 holds: in names of files, and in configs that are written again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.builders import moved, random_tensor, read_folder, write_folder

import deltapack
from deltapack.errors import CheckpointError

E = {"model.embed_tokens.weight": random_tensor(1, (64, 32))}
HALF = "\ud800"


def config(tied: bool) -> dict[str, str]:
    return {"config.json": json.dumps({"model_type": HALF, "tie_word_embeddings": tied})}


def test_a_shard_whose_name_is_none(tmp_path: Path) -> None:
    base, broken = write_folder(tmp_path / "base", E), tmp_path / "broken"
    broken.mkdir()
    index = {"metadata": {}, "weight_map": {name: f"{HALF}.safetensors" for name in E}}
    (broken / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=r"d800.*no such file|d800.*is missing|no such file"):
        deltapack.compress(base, broken, tmp_path / "p.dpk")


def test_configs_that_are_written_again(tmp_path: Path) -> None:
    """One gets the settings of a pack for transformers, one says anew whether heads are tied: what is in it stays."""
    base = write_folder(tmp_path / "base", {**E, "lm_head.weight": random_tensor(2, (64, 32))}, config(False))
    for name, seed in (("a", 3), ("b", 4)):
        write_folder(tmp_path / name, {key: moved(tensor, seed) for key, tensor in E.items()}, config(True))
        deltapack.compress(base, tmp_path / name, tmp_path / f"{name}.dpk")
    deltapack.write_model_folder(tmp_path / "a.dpk", base, tmp_path / "folder")
    packs = [tmp_path / "a.dpk", tmp_path / "b.dpk"]
    deltapack.merge(base, packs, tmp_path / "merged", assets="base")
    for folder in ("folder", "merged"):
        said = json.loads(read_folder(tmp_path / folder)["config.json"].decode())
        assert said["model_type"] == HALF and said["tie_word_embeddings"] is True
