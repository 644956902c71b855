"""config.json of a checkpoint is read where that can be, and says nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.builders import random_tensor, write_file, write_folder

from deltapack.checkpoint import config, config_of, open_checkpoint

BASE = {"a": random_tensor(1, (40, 30))}


@pytest.mark.parametrize("text", [None, "", "[]", "{", "[" * 100_000, "\xff", '{"a": "more than forty bytes, which are too many"}'])
def test_a_config_that_cannot_be_read_says_nothing(text: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config, "_LARGEST", 40 if text and "forty" in text else config._LARGEST)
    write_folder(tmp_path / "m", BASE)
    (tmp_path / "m" / "config.json").unlink()
    if text is not None:
        (tmp_path / "m" / "config.json").write_bytes(text.encode("latin-1"))
    with open_checkpoint(tmp_path / "m") as checkpoint:
        assert config_of(checkpoint) == {}


def test_what_it_says(tmp_path: Path) -> None:
    write_folder(tmp_path / "m", BASE, {"config.json": '{"model_type": "llama"}'})
    with open_checkpoint(tmp_path / "m") as checkpoint:
        assert config_of(checkpoint) == {"model_type": "llama"}
    with open_checkpoint(write_file(tmp_path / "m.safetensors", BASE)) as checkpoint:
        assert config_of(checkpoint) == {}
